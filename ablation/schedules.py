"""Learning-rate schedules as pure functions of the epoch: nothing to store, nothing to drift.

``epoch`` is 0-based and carries the fraction of the epoch that is done; schedules that change once
per epoch floor it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Per = Literal["epoch", "step"]


def _place(epoch: float, per: Per) -> float:
    return math.floor(epoch) if per == "epoch" else epoch


@dataclass(frozen=True)
class Constant:
    """Constant learning rate, lr(e) = peak."""

    def lr(self, peak: float, epoch: float, epochs: int) -> float:
        """Give the learning rate at an epoch."""
        del epoch, epochs
        return peak

    def momentum(self, base: float, epoch: float, epochs: int) -> float:
        """Give the momentum, unchanged."""
        del epoch, epochs
        return base


@dataclass(frozen=True)
class Piecewise:
    """lr(e) = peak * factor^k, k = milestones passed (TRADES, MART, AWP, LMA, MWPB, EMR).

    Args:
        milestones: 0-based epochs from which the rate is multiplied once more. Papers that count
            from 1 and say "at epoch 75" mean milestone 74.
        factor: multiplier per milestone.
    """

    milestones: Sequence[int]
    factor: float = 0.1

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones={list(self.milestones)} must increase")

    def lr(self, peak: float, epoch: float, epochs: int) -> float:
        """Give the learning rate at an epoch."""
        del epochs
        return peak * self.factor ** sum(epoch >= milestone for milestone in self.milestones)

    def momentum(self, base: float, epoch: float, epochs: int) -> float:
        """Give the momentum, unchanged."""
        del epoch, epochs
        return base


@dataclass(frozen=True)
class Cosine:
    """lr(e) = floor + (peak - floor)(1 + cos(pi e / T)) / 2 (DOSE section 4.1, floor 0.001).

    Args:
        floor: learning rate at the end.
        per: change once per ``epoch`` or every ``step``.
    """

    floor: float = 0.0
    per: Per = "epoch"

    def lr(self, peak: float, epoch: float, epochs: int) -> float:
        """Give the learning rate at an epoch."""
        share = _place(epoch, self.per) / epochs
        return self.floor + (peak - self.floor) * (1 + math.cos(math.pi * share)) / 2

    def momentum(self, base: float, epoch: float, epochs: int) -> float:
        """Give the momentum, unchanged."""
        del epoch, epochs
        return base


@dataclass(frozen=True)
class OneCycle:
    """One cosine up to the peak and one down (torch's OneCycleLR; DyART steps it once per epoch).

    Args:
        pct_start: share of the training spent rising.
        div_factor: the rate starts at peak / div_factor.
        final_div_factor: the rate ends at its start / final_div_factor.
        cycle_momentum: momentum runs 0.95 -> 0.85 -> 0.95 against the rate (torch's default, and
            so DyART's).
        per: change once per ``epoch`` or every ``step``.
    """

    pct_start: float = 0.025
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    cycle_momentum: bool = True
    per: Per = "epoch"

    def _between(self, start: float, peak: float, end: float, epoch: float, epochs: int) -> float:
        last = epochs - 1 if self.per == "epoch" else epochs
        rise = self.pct_start * epochs - (1 if self.per == "epoch" else 0)
        place = _place(epoch, self.per)
        if place <= rise:
            low, high, share = start, peak, place / rise if rise else 1.0
        else:
            low, high, share = peak, end, min(1.0, (place - rise) / max(1e-12, last - rise))
        return high + (low - high) * (1 + math.cos(math.pi * share)) / 2

    def lr(self, peak: float, epoch: float, epochs: int) -> float:
        """Give the learning rate at an epoch."""
        start = peak / self.div_factor
        return self._between(start, peak, start / self.final_div_factor, epoch, epochs)

    def momentum(self, base: float, epoch: float, epochs: int) -> float:
        """Give the momentum at an epoch: ``base`` unless it is cycled."""
        return self._between(0.95, 0.85, 0.95, epoch, epochs) if self.cycle_momentum else base
