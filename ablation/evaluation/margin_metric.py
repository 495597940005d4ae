"""Metrics that no attack decides: a number of each image, and what a table prints of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ablation.boundary import AnyNorm
from ablation.evaluation.attacks import Predict, check_common
from ablation.margins import effective_margin, summarise

SplitName = Literal["test", "val", "train"]


@dataclass(frozen=True)
class Reading:
    """What is told of the numbers of all images.

    Attributes:
        value: the metric's.
        facts: what else there is to say, for the entry's ``params``; plain data.
        flags: warnings.
    """

    value: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@runtime_checkable
class Measure(Protocol):
    """A metric that is measured on clean images instead of attacking them."""

    @property
    def split(self) -> SplitName | None:
        """On which images, whatever the evaluation's are; ``None`` means those."""

    @property
    def unit(self) -> str:
        """Of the metric: ``margin`` or ``radius``."""

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """What the metric's name leaves open: two numbers compare if these agree; plain data."""

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """A number for each image, [N]; NaN where there is none.

        Args:
            predict: the network, in evaluation mode with frozen parameters.
            x: images [N, C, H, W].
            y: labels [N].
        """

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """The metric, from the numbers of all images and whether they are classified correctly."""


@dataclass(frozen=True)
class EffectiveMargin:
    """The mean effective margin of the correctly classified images, in pixels (EMR, Tables 1, 2).

    m = min_{j != y} (z_y - z_j) / ||grad_x (z_y - z_j)||_q over all other classes (EMR, eq. 3), on
    images as they are, training images too: not augmented, not attacked. The tables do not say
    that they average correct images; Figure 1 does, and the printed values allow nothing else (AT
    with wd 0.01 in Table 2 has 34.7% accuracy and 1.22). Images whose gradient vanishes have no
    margin and are left out, with a warning.

    Args:
        split: on which images; ``None`` means those of the evaluation.
        norm: p of the margin, with 1/p + 1/q = 1; never inherited, EMR has l2 beside linf attacks.
        n: measure at most so many images; ``None`` means all.
    """

    split: SplitName | None = None
    norm: AnyNorm = "l2"
    n: int | None = None

    def __post_init__(self) -> None:
        check_common(None, self.n)

    @property
    def unit(self) -> str:
        """See ``Measure``."""
        return "margin"

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """See ``Measure``."""
        del eps, classes
        return {"norm": self.norm, "over": "correct"}

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """See ``Measure``; NaN where the gradient vanishes."""
        found = effective_margin(predict, x, y, self.norm)
        return found.value.masked_fill(found.zero_gradient, torch.nan)

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """See ``Measure``. ``std`` is of the images that count, ``mean_all`` of wrong ones too."""
        there = ~values.isnan()
        mean, std = summarise(values, correct & there)
        lost = int((correct & ~there).sum())
        facts = {
            "std": std,
            "mean_all": summarise(values, there)[0],
            "correct": int(correct.sum()),
            "zero_gradients": lost,
        }
        flag = f"{lost} of {int(correct.sum())} correct images have no gradient: left out"
        return Reading(mean, facts, (flag,) if lost else ())
