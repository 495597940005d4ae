"""Perturbation radii of training attacks: one per example, [N], in pixel units."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ablation.types import Fraction, Views


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
