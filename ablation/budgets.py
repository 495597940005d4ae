"""Perturbation radii of training attacks: one per example, [N], in pixel units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ablation.numerics.functional import margin, probability_margin
from ablation.types import Budget, Fraction, Views


@dataclass(frozen=True)
class Fixed:
    """One perturbation radius for all examples, eps_i = scale * eps.

    Args:
        eps: perturbation radius in pixel units, at least 0.
        scale: factor, at least 0; for phases that start at half the radius.

    Raises:
        ValueError: eps or scale is negative.
    """

    eps: Fraction
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.eps < 0 or self.scale < 0:
            raise ValueError(f"eps={self.eps:g} and scale={self.scale:g} must not be negative")

    def __call__(self, views: Views) -> Tensor:
        """Give the perturbation radii [N] of a batch."""
        x = views.batch.x
        return x.new_full((len(x),), self.eps * self.scale)


@dataclass(frozen=True)
class MarginWeighted:
    """eps_i = eps exp(alpha d_i), d_i the margin of the clean example (MWPB, eq. 2 and 3).

    The margin is of the present network in evaluation mode, on the batch's augmented images; it is
    constant in the weights. Until ``start`` all radii are ``first`` (section 4.4).

    The paper's prose has logit margins, but it defines f(x)_y as a probability (section 3), and its
    radii from 0.018 to 0.055 are possible of probabilities alone: with logits, d_i = 5 would give
    0.57. There is no cap beside |d_i| <= 1; radii of logits end at the image's own diameter.

    Args:
        eps: radius at margin 0, in pixel units, at least 0.
        alpha: 0 gives all examples ``eps``.
        first: radius before ``start``, in pixel units, at least 0.
        start: first epoch of the phase with weighted radii.
        margin: of ``probability`` or ``logit``.

    Raises:
        ValueError: a radius is negative.
    """

    individual: ClassVar[bool] = True

    eps: Fraction
    alpha: float
    first: Fraction
    start: int = 0
    margin: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        if self.eps < 0 or self.first < 0:
            raise ValueError(f"eps={self.eps:g} and first={self.first:g} must not be negative")

    def __call__(self, views: Views) -> Tensor:
        """Give the perturbation radii [N] of a batch."""
        x, y = views.batch.x, views.batch.y
        if views.clock.epoch < self.start:
            return x.new_full((len(x),), self.first)
        z = views.eval("nat").output.logits.detach()
        d = probability_margin(z, y) if self.margin == "probability" else margin(z, y)
        return (self.eps * torch.exp(self.alpha * d)).clamp_max(math.sqrt(x[0].numel())).to(x.dtype)


@dataclass(frozen=True)
class Ramped:
    """Another budget's radii times a factor that rises with the epochs, linearly and then 1.

    Epoch e, 0-based in its phase, has begin + (1 - begin) min(1, (before + e + 1) / over).

    Args:
        budget: what is ramped.
        over: epochs until the factor is 1; a fraction is allowed, 0 means no ramp.
        before: epochs of earlier phases that count.
        begin: where the line starts, in [0, 1].

    Raises:
        ValueError: over is negative, or begin outside [0, 1].
    """

    individual: ClassVar[bool] = True  # so that every epoch records its radii

    budget: Budget
    over: float
    before: int = 0
    begin: float = 0.0

    def __post_init__(self) -> None:
        if self.over < 0 or not 0 <= self.begin <= 1:
            raise ValueError(f"over={self.over:g}: at least 0; begin={self.begin:g}: in [0, 1]")

    def __call__(self, views: Views) -> Tensor:
        """Give the perturbation radii [N] of a batch."""
        done = self.before + views.clock.epoch + 1
        share = min(1.0, done / self.over) if self.over else 1.0
        return self.budget(views) * (self.begin + (1 - self.begin) * share)


@dataclass(frozen=True)
class Remembered:
    """The radius at which each example was last found on the boundary (MMA's eps[idx]).

    Args:
        memory: name of the memory, per example.
        minimum: smallest radius, in pixel units: the floor that anpgd.py applies on reading.

    Raises:
        ValueError: minimum is not positive.
    """

    memory: str
    minimum: Fraction

    def __post_init__(self) -> None:
        if self.minimum <= 0:
            raise ValueError(f"minimum={self.minimum:g}: above 0, or the search has no direction")

    def __call__(self, views: Views) -> Tensor:
        """Give the perturbation radii [N] of a batch."""
        return views.memory(self.memory).to(views.batch.x.dtype).clamp_min(self.minimum)
