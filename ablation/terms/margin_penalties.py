"""Penalties of margins: hinge and exponential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ablation.numerics.boundary import exponential, hinge
from ablation.types import Fraction


class Penalty(Protocol):
    """Cost of a margin."""

    def __call__(self, distance: Tensor) -> Tensor:
        """Map margins in pixels, of any shape, to costs of that shape; 0 at inf."""


@dataclass(frozen=True)
class Hinge:
    """max(0, gamma - R) (DOSE, eq. 4).

    Args:
        gamma: margins beyond it cost nothing; in pixels, above 0.

    Raises:
        ValueError: gamma is not positive.
    """

    gamma: Fraction = 16 / 255

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma={self.gamma:g} must be positive: no margin lies below it")

    def __call__(self, distance: Tensor) -> Tensor:
        """Penalise margins of any shape; 0 at inf."""
        return hinge(distance, self.gamma)


@dataclass(frozen=True)
class Exponential:
    """(1/alpha) exp(-alpha R) 1[R < gamma] (DOSE, eq. 6).

    Of correct samples only: it has no bound for negative margins.

    Args:
        alpha: decay per pixel; above 0.
        gamma: margins beyond it cost nothing; in pixels, above 0.

    Raises:
        ValueError: alpha or gamma is not positive.
    """

    alpha: float = 3.0
    gamma: Fraction = 16 / 255

    def __post_init__(self) -> None:
        if self.gamma <= 0 or self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha:g} and gamma={self.gamma:g} must be positive")

    def __call__(self, distance: Tensor) -> Tensor:
        """Penalise margins of any shape; 0 at inf."""
        return exponential(distance, self.alpha, self.gamma)
