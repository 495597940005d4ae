"""Learning-rate schedules as pure functions of the epoch: nothing to store, nothing to drift.

``epoch`` is 0-based and carries the fraction of the epoch that is done; schedules that change once
per epoch floor it.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim import lr_scheduler

from ablation.text import did_you_mean

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


REFUSED: Mapping[str, str] = {
    "ReduceLROnPlateau": "it follows a measured number, so the rate is no function of the epoch",
    "LambdaLR": "it takes a function, which YAML cannot hold",
    "MultiplicativeLR": "it takes a function, which YAML cannot hold",
    "SequentialLR": "it takes other schedulers, which YAML cannot hold",
    "ChainedScheduler": "it takes other schedulers, which YAML cannot hold",
}
"""torch's schedulers that ``Torch`` does not run, and why not."""
OURS: Mapping[str, str] = {
    "last_epoch": "a run knows its epoch, also where it resumes",
    "verbose": "metrics.jsonl has the rate of every epoch",
    "max_lr": "it is lr",
    "total_steps": "it is the number of epochs",
    "epochs": "it is the number of epochs",
    "steps_per_epoch": "the rate changes once per epoch",
    "scale_fn": "it is a function, which YAML cannot hold",
    "scale_mode": "it is of scale_fn, a function",
}
"""Arguments that the run gives, or nobody can, and why."""
LENGTH = "T_max"
"""An argument that is the number of epochs unless it is given."""


@dataclass(frozen=True)
class Torch:
    """A scheduler of torch by name, stepped once per epoch; its rates are computed by torch.

    StepLR, MultiStepLR, ConstantLR, LinearLR, ExponentialLR, PolynomialLR, CosineAnnealingLR,
    CosineAnnealingWarmRestarts, CyclicLR and OneCycleLR. The optimiser's rate, which most of them
    start at and the last two rise to, is the peak.

    Args:
        name: of the class in ``torch.optim.lr_scheduler``.
        kwargs: its arguments, but for those in ``OURS``. ``T_max`` is the number of epochs unless
            it is given.
    """

    name: str = "CosineAnnealingLR"
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name in REFUSED:
            raise ValueError(f"name={self.name}: {REFUSED[self.name]}")
        if self.name not in (known := _names()):
            raise ValueError(f"name={self.name}: {did_you_mean(self.name, known)}")
        arguments = _arguments(self.name)
        taken = {key: each for key, each in arguments.items() if key not in OURS}
        for key, value in self.kwargs.items():
            if key in OURS and key in arguments:
                raise ValueError(f"kwargs.{key}={value!r}: {OURS[key]}; remove it")
            if key not in taken:
                raise ValueError(f"kwargs.{key}={value!r}: {did_you_mean(key, list(taken))}")
            if isinstance(value, list) and not all(isinstance(each, int) for each in value):
                raise ValueError(f"kwargs.{key}={value!r}: expected whole numbers")
        for key, each in taken.items():
            if each.default is each.empty and key not in self.kwargs and key != LENGTH:
                raise ValueError(f"kwargs.{key} is missing: {self.name} needs it")
        try:
            self._all(0.1, 0.9, 3)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"kwargs={dict(self.kwargs)}: torch's {self.name}: {error}") from error

    def _all(self, peak: float, momentum: float, epochs: int) -> Sequence[tuple[float, float]]:
        return _torch_rates(self.name, json.dumps(dict(self.kwargs)), peak, momentum, epochs)

    def lr(self, peak: float, epoch: float, epochs: int) -> float:
        """Give the learning rate at an epoch."""
        return self._all(peak, 0.9, epochs)[math.floor(epoch)][0]

    def momentum(self, base: float, epoch: float, epochs: int) -> float:
        """Give the momentum at an epoch: ``base`` unless the scheduler cycles it."""
        return self._all(1.0, base, epochs)[math.floor(epoch)][1]


def _names() -> list[str]:
    """Schedulers that are functions of the epoch."""
    classes = {name: getattr(lr_scheduler, name) for name in lr_scheduler.__all__}
    base = lr_scheduler.LRScheduler
    found = [name for name, cls in classes.items() if issubclass(cls, base) and cls is not base]
    return [name for name in found if name not in REFUSED]


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """What a scheduler takes besides the optimiser."""
    parameters = dict(inspect.signature(getattr(lr_scheduler, name)).parameters)
    del parameters["optimizer"]
    return parameters


class _Rates(torch.optim.Optimizer):
    """What a scheduler writes rate and momentum into; it trains nothing."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing: torch warns of a schedule that moves before its optimiser."""


@functools.lru_cache(maxsize=1024)
def _torch_rates(
    name: str, kwargs: str, peak: float, momentum: float, epochs: int
) -> Sequence[tuple[float, float]]:
    """Learning rate and momentum of each epoch, from torch's own class."""
    optimizer = _Rates([torch.zeros(1)], {"lr": peak, "momentum": momentum})
    ours = {LENGTH: epochs, "total_steps": epochs, "max_lr": peak}
    given = {key: value for key, value in ours.items() if key in _arguments(name)}
    scheduler = getattr(lr_scheduler, name)(optimizer, **given | json.loads(kwargs))
    (group,), found = optimizer.param_groups, []
    for epoch in range(epochs):
        if epoch > 0:
            optimizer.step()
            scheduler.step()
        found.append((float(group["lr"]), float(group["momentum"])))
    return found
