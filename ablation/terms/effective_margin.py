"""Effective margin regularisation: a penalty on the input gradients of the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ablation.numerics.penalties import (
    effective_weights,
    probed_weights,
    random_signs,
    squared_gradient,
    weighted_logit,
)
from ablation.types import Views

Scale = Literal["sample", "code"]


class EffectiveNorm(Protocol):
    """Measure of the effective weights at a point."""

    def __call__(self, z: Tensor, x: Tensor, views: Views) -> Tensor:
        """Compute the penalty [R] of logits [R, K] computed from points ``x`` [R, ...]."""


@dataclass(frozen=True)
class ExactNorm:
    """sum_j ||w_j||^2 (EMR, eq. 5): a backward pass per class, all differentiated again."""

    def __call__(self, z: Tensor, x: Tensor, views: Views) -> Tensor:
        """Compute the penalty [R] from one backward pass per class."""
        return effective_weights(z, x)


@dataclass(frozen=True)
class ProbedNorm:
    """An unbiased estimate of ``ExactNorm`` by ``penalties.probed_weights``. Not in the paper.

    Args:
        draws: number of backward passes that are averaged, at least 1.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}: at least 1")

    def __call__(self, z: Tensor, x: Tensor, views: Views) -> Tensor:
        """Estimate the penalty [R] from ``draws`` backward passes."""
        rng = views.rng("emr")
        draws = [probed_weights(z, x, random_signs(z, rng)) for _ in range(self.draws)]
        return torch.stack(draws).mean(0)


@dataclass(frozen=True)
class ApproximateNorm:
    """||sum_j p_j w_j||^2, p = softmax(z / t) a constant (EMR, eq. 7): one backward pass.

    Large t leave mostly the gradient of the mean logit, which no prediction depends on.

    Args:
        temperature: t, above 0; ``None`` is its limit, the mean logit alone.
    """

    temperature: float | None = 40.0

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature:g} must be positive; null: infinite")

    def __call__(self, z: Tensor, x: Tensor, views: Views) -> Tensor:
        """Compute the penalty [R] from one backward pass."""
        return squared_gradient(weighted_logit(z, self.temperature), x)


@dataclass(frozen=True)
class EffectiveWeightNorm:
    """Penalty on the effective weights w_j = grad_x z_j of a point, shape [N] (EMR).

    Liu and Chan (2022), eq. 5 and 7; ziquanliu/Effective_Margin_Reg. Computed from the plain logits
    in evaluation mode, where samples do not depend on each other (section 4).

    Args:
        norm: exact, probed or the paper's approximation.
        view: name of the view whose points are penalised; adversarial in the released code.
        centred: penalise z - mean_j z_j, on which alone predictions depend. Not in the paper.
        scale: ``sample``, the mean over the samples (eq. 5). ``code``, that over N as in the
            released code, which differentiates the batch's mean: its coefficient is N times the
            other's.
    """

    norm: EffectiveNorm = field(default_factory=ExactNorm)
    view: str = "nat"
    centred: bool = False
    scale: Scale = "sample"

    eager: ClassVar[str] = "differentiates twice"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name no train-mode view: the forward is one of evaluation mode."""
        return ()

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        evaluated = views.eval(self.view, input_grad=True)
        z = evaluated.output.logits
        if self.centred:
            z = z - z.mean(1, keepdim=True)
        penalty = views.scatter(self.view, self.norm(z, evaluated.x, views))
        return penalty / views.batch.count if self.scale == "code" else penalty
