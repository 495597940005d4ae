"""Metrics that no attack decides: a number of each image, and what a table prints of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ablation.evaluation.attacks import Pgd, Predict, check_common, check_points
from ablation.numerics.boundary import AnyNorm
from ablation.numerics.margins import Margins, effective_margin, summarise
from ablation.types import Norm

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
    """A metric that is a number of each image: whether it can be broken is not asked."""

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
        return _where_defined(effective_margin(predict, x, y, self.norm))

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """See ``Measure``. ``std`` is of the images that count, ``mean_all`` of wrong ones too."""
        return _reading(values, correct, correct, "correct images have no gradient")


@dataclass(frozen=True)
class AdversarialMargin:
    """The mean effective margin at the points of an attack, where they are classified correctly.

    ``EffectiveMargin`` at other points. EMR does not say of which images its training margins in
    Tables 1 and 2 are; of most adversarially trained rows they are half the test margins (1.18 and
    2.27), which of clean images they can hardly be. A point counts if it is classified correctly
    itself, that is if its margin is positive: EMR draws the margins of correctly classified images,
    and here the point is the image. What the attack broke is left out, so the mean is of fewer
    images than the clean one; ``mean_all`` is of all.

    The points depend on the image alone: the attack starts there and keeps its last iterate.
    Points whose gradient vanishes have no margin and are left out, with a warning.

    Args:
        attack: how the points are found, with its radius and norm: a measure inherits neither.
        split: on which images; ``None`` means those of the evaluation.
        norm: p of the margin, with 1/p + 1/q = 1; not the attack's.
        n: measure at most so many images; ``None`` means all.
    """

    # A class of its own, not a field: a new field would rename every evaluation of clean margins.

    attack: Pgd
    split: SplitName | None = None
    norm: AnyNorm = "l2"
    n: int | None = None

    def __post_init__(self) -> None:
        check_common(None, self.n)
        self._ball()
        if self.attack.start != "clean":
            raise ValueError(
                f"attack.start={self.attack.start}: a measure draws no random numbers; set "
                "attack.start=clean"
            )
        if self.attack.n is not None:
            raise ValueError(f"attack.n={self.attack.n}: set n of the measure instead")

    def _ball(self) -> tuple[float, Norm]:
        eps, norm = self.attack.eps, self.attack.norm
        if eps is None or norm is None:
            raise ValueError(
                "attack.eps and attack.norm: a measure inherits neither; give both, with "
                "ablation-evaluate as eps=8/255 norm=linf"
            )
        return eps, norm

    @property
    def unit(self) -> str:
        """See ``Measure``."""
        return "margin"

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """See ``Measure``; the attack's facts are among them."""
        del eps
        radius, norm = self._ball()
        return {
            **self.attack.describe(radius, classes),
            "attack": "pgd",
            "eps": radius,
            "attack_norm": norm,
            "norm": self.norm,
            "over": "correct at the point",
        }

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """See ``Measure``; NaN where the gradient vanishes at the point.

        Raises:
            AttackError: the attack left its ball.
        """
        eps, norm = self._ball()
        point = self.attack(predict, x, y, eps, norm, torch.Generator(x.device))
        check_points(point, x, eps, norm, "the attack of a margin")
        return _where_defined(effective_margin(predict, point, y, self.norm))

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """See ``Measure``. ``correct`` among the facts counts points, not images."""
        return _reading(
            values, values > 0, correct, "correct images have no gradient where attacked"
        )


def _where_defined(found: Margins) -> Tensor:
    """Margins [N]; NaN where the gradient vanishes."""
    return found.value.masked_fill(found.zero_gradient, torch.nan)


def _reading(values: Tensor, counted: Tensor, expected: Tensor, trouble: str) -> Reading:
    """Mean and deviation of the margins [N] that count.

    Args:
        values: NaN where there is none.
        counted: which of the others to average, [N].
        expected: where one without a value is missed, [N].
        trouble: what to say of these.
    """
    there = ~values.isnan()
    mean, std = summarise(values, counted & there)
    lost = int((expected & ~there).sum())
    facts = {
        "std": std,
        "mean_all": summarise(values, there)[0],
        "correct": int(counted.sum()),
        "zero_gradients": lost,
    }
    flag = f"{lost} of {int(expected.sum())} {trouble}: left out"
    return Reading(mean, facts, (flag,) if lost else ())
