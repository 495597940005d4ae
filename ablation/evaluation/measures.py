"""Measures: metrics that are a number of each image, such as effective margins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ablation.errors import NonFiniteError
from ablation.evaluation.attacks import Pgd, Predict, check_common, check_points
from ablation.numerics.boundary import AnyNorm
from ablation.numerics.functional import cross_entropy, probability_margin
from ablation.numerics.margins import Margins, effective_margin, summarise
from ablation.numerics.ranks import pair_share, rank_correlation
from ablation.numerics.summaries import distribution, share_below
from ablation.types import Fraction, Norm

SplitName = Literal["test", "val", "train"]
MeasureFamily = Literal["margin", "radius", "loss"]


@dataclass(frozen=True)
class Reading:
    """Summary of a measure over all images.

    Attributes:
        value: of the metric.
        facts: further statistics for the entry's ``params``; plain data.
        flags: warnings.
    """

    value: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@runtime_checkable
class Measure(Protocol):
    """Measure a number of each image, without attacking it; see ``MeasureBase``."""

    kind: ClassVar[str]
    family: ClassVar[MeasureFamily]
    unit: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @property
    def split(self) -> SplitName | None:
        """The measure's own split; ``None`` means the evaluation's."""

    @property
    def n(self) -> int | None:
        """The most images to measure; ``None`` means all."""

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State what the metric's name leaves open, as plain data: numbers compare if it agrees."""

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Measure each image, [N]; NaN where there is no number.

        A measure with ``columns`` returns [N, 1 + columns]: its number, then these.

        Args:
            predict: the network, in evaluation mode with frozen parameters.
            x: images [N, C, H, W].
            y: labels [N].
        """

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """Summarise what ``measure`` returned of all images; [N] are classified correctly."""


@dataclass(frozen=True, kw_only=True)
class MeasureBase:
    """Hold the settings that every measure has.

    Attributes:
        kind: the measure's name in results; never changed, saved evaluations are compared by it.
        family: what it measures.
        unit: of the metric.
        columns: further numbers of each image that are kept beside the measure's own, as
            ``<metric>_<column>``.

    Args:
        split: on which images; ``None`` means those of the evaluation.
        n: measure at most so many images; ``None`` means all.
    """

    kind: ClassVar[str]
    family: ClassVar[MeasureFamily]
    unit: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()

    split: SplitName | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        check_common(None, self.n)


@dataclass(frozen=True)
class EffectiveMargin(MeasureBase):
    """Average the effective margin of correctly classified images, in pixels (EMR, Tables 1, 2).

    m = min_{j != y} (z_y - z_j) / ||grad_x (z_y - z_j)||_q over all other classes (EMR, eq. 3), on
    images as they are, training images too: not augmented, not attacked. The tables do not say
    that they average correct images; Figure 1 does, and the printed values allow nothing else (AT
    with wd 0.01 in Table 2 has 34.7% accuracy and 1.22). Images whose gradient vanishes have no
    margin and are left out, with a warning.

    Args:
        norm: p of the margin, with 1/p + 1/q = 1; never inherited, EMR has l2 beside linf attacks.
    """

    kind: ClassVar[str] = "effective_margin"
    family: ClassVar[MeasureFamily] = "margin"
    unit: ClassVar[str] = "margin"

    norm: AnyNorm = "l2"

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Measure``."""
        del eps, classes
        return {"norm": self.norm, "over": "correct"}

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Measure the margins [N]; NaN where the gradient vanishes."""
        return _where_defined(effective_margin(predict, x, y, self.norm))

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """Average. ``std`` is of the images that count, ``mean_all`` of wrong ones too."""
        return _reading(values, correct, correct, "correct images have no gradient")


@dataclass(frozen=True)
class AttackedMeasure(MeasureBase):
    """Measure at the points of an attack that depend on the image alone.

    It starts at the image and keeps its last iterate.

    Args:
        attack: how the points are found, with its radius and norm: a measure inherits neither.
    """

    attack: Pgd

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the attack's settings; see ``Measure``."""
        del eps
        radius, norm = self._ball()
        return {
            **self.attack.describe(radius, classes),
            "attack": self.attack.kind,
            "eps": radius,
            "attack_norm": norm,
        }

    def points(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Attack images [N, C, H, W].

        Raises:
            AttackError: the attack left its ball.
        """
        eps, norm = self._ball()
        points = self.attack(predict, x, y, eps, norm, torch.Generator(x.device)).detach()
        check_points(points, x, eps, norm, f"the attack of {self.kind}")
        return points


@dataclass(frozen=True)
class AdversarialMargin(AttackedMeasure):
    """Average the effective margin at an attack's points that are classified correctly.

    ``EffectiveMargin`` at other points. EMR does not say of which images its training margins in
    Tables 1 and 2 are; of most adversarially trained rows they are half the test margins (1.18 and
    2.27), which of clean images they can hardly be. A point counts if it is classified correctly
    itself, that is if its margin is positive: EMR draws the margins of correctly classified images,
    and here the point is the image. What the attack broke is left out, so the mean is of fewer
    images than the clean one; ``mean_all`` is of all. Points whose gradient vanishes have no margin
    and are left out, with a warning.

    Args:
        attack: see ``AttackedMeasure``.
        norm: p of the margin, with 1/p + 1/q = 1; not the attack's.
    """

    # A class of its own, not a field: a new field would rename every evaluation of clean margins.

    kind: ClassVar[str] = "adversarial_margin"
    family: ClassVar[MeasureFamily] = "margin"
    unit: ClassVar[str] = "margin"

    norm: AnyNorm = "l2"

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings, the attack's among them; see ``Measure``."""
        found = super().describe(eps, classes)
        return {**found, "norm": self.norm, "over": "correct at the point"}

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Measure the margins [N]; NaN where the gradient vanishes at the point.

        Raises:
            AttackError: the attack left its ball.
        """
        point = self.points(predict, x, y)
        return _where_defined(effective_margin(predict, point, y, self.norm))

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """Average. ``correct`` among the facts counts points, not images."""
        return _reading(
            values, values > 0, correct, "correct images have no gradient where attacked"
        )


@dataclass(frozen=True)
class MarginWeightedRadius(MeasureBase):
    """Average MWPB's radius over images as they are: not augmented, in evaluation mode.

    base * exp(alpha * (p_y - max_{j != y} p_j)) (MWPB, eq. 2 to 4), in pixels; the paper says that
    f(x)_y is a probability. Its Table 6 is of the radii that training used, which the run records
    as ``mean_radius``: of augmented images, while the weights moved.

    Args:
        alpha: how much the margin counts.
        base: radius where the margin is 0.
        split: training images unless said otherwise.
    """

    kind: ClassVar[str] = "margin_weighted_radius"
    family: ClassVar[MeasureFamily] = "radius"
    unit: ClassVar[str] = "radius"

    alpha: Fraction
    base: Fraction
    split: SplitName | None = field(default="train", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base < 0:
            raise ValueError(f"base={self.base:g} must not be negative")

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Measure``."""
        del eps, classes
        return {"alpha": self.alpha, "base": self.base, "images": "as they are"}

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Compute the radii [N]."""
        with torch.no_grad():
            logits = predict(x).double()
        return self.base * (self.alpha * probability_margin(logits, y)).exp()

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """Average. Facts: the distribution, and ``below_base``, a share of the images in [0, 1]."""
        del correct
        facts = distribution(values)
        mean = facts.pop("mean")
        return Reading(mean, {**facts, "below_base": share_below(values, self.base)})


@dataclass(frozen=True)
class LossRise(AttackedMeasure):
    """Correlate the loss of clean images with its rise under attack (MWPB, Theorem 1).

    The theorem: at one radius the larger of two clean losses also rises more. The metric is
    Spearman's correlation of CE(x) and CE(x') - CE(x) over the images; 1 is the theorem to the
    letter, 0 no relation. ``pair_share`` is the share of pairs that it holds for.

    Where the theorem must hold: to first order the rise is eps ||grad_x CE||_q, with two classes
    (1 - p_y) eps ||grad_x (z_y - z_k)||_q, and 1 - p_y = 1 - exp(-CE) grows with the loss. So it
    does if that last norm is the same everywhere, as for a linear network, whose rise goes from 0
    to eps ||w||_q and saturates there. Where high losses lie in flat regions it does not.

    Losses are taken from the network's own logits in fp64: in fp32 those of all images with logits
    more than 16.6 apart would be the same 0.

    Args:
        attack: see ``AttackedMeasure``.
    """

    kind: ClassVar[str] = "loss_rise"
    family: ClassVar[MeasureFamily] = "loss"
    unit: ClassVar[str] = "correlation"
    columns: ClassVar[tuple[str, ...]] = ("clean_loss",)

    def measure(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Measure rise and clean loss, [N, 2], in nats.

        Raises:
            AttackError: the attack left its ball.
            NonFiniteError: logits at a point are NaN or infinite.
        """
        points = self.points(predict, x, y)
        with torch.no_grad():
            clean, attacked = (predict(each).double() for each in (x, points))
        if not attacked.isfinite().all():
            raise NonFiniteError("logits", f"points found by the attack of {self.kind}")
        loss = cross_entropy(clean, y)
        return torch.stack([cross_entropy(attacked, y) - loss, loss], 1)

    def read(self, values: Tensor, correct: Tensor) -> Reading:
        """Correlate over all images; the same of the correct ones among the facts.

        A pair counts for ``pair_share`` if its clean losses differ, and holds if the larger one
        rises strictly more.
        """
        rise, loss = values.unbind(1)
        value = rank_correlation(loss.numpy(), rise.numpy())
        facts = {
            "pair_share": pair_share(loss.numpy(), rise.numpy()),
            "mean_rise": rise.mean().item(),
            "correlation_correct": rank_correlation(loss[correct].numpy(), rise[correct].numpy()),
            "pair_share_correct": pair_share(loss[correct].numpy(), rise[correct].numpy()),
            "correct": int(correct.sum()),
        }
        flag = "clean losses, or their rises, are all the same: no correlation"
        return Reading(value, facts, (flag,) if math.isnan(value) else ())


def _where_defined(margins: Margins) -> Tensor:
    """Return the margins [N]; NaN where the gradient vanishes."""
    return margins.value.masked_fill(margins.zero_gradient, torch.nan)


def _reading(values: Tensor, counted: Tensor, expected: Tensor, trouble: str) -> Reading:
    """Summarise the margins [N] that count by mean and deviation.

    Args:
        values: NaN where there is none.
        counted: which of the others to average, [N].
        expected: where one without a value is missed, [N].
        trouble: what to say of these.
    """
    defined = ~values.isnan()
    mean, std = summarise(values, counted & defined)
    lost = int((expected & ~defined).sum())
    facts = {
        "std": std,
        "mean_all": summarise(values, defined)[0],
        "correct": int(counted.sum()),
        "zero_gradients": lost,
    }
    flag = f"{lost} of {int(expected.sum())} {trouble}: left out"
    return Reading(mean, facts, (flag,) if lost else ())
