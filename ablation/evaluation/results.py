"""Results of an evaluation: verdicts of attacks, numbers, probes and checks, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ablation.types import Norm

if TYPE_CHECKING:
    import pandas as pd

    from ablation.evaluation.attacks import Attack


Outcome = Literal["passed", "tripped", "not run"]


@dataclass(frozen=True)
class Check:
    """Outcome of one masking or collapse check.

    Attributes:
        name: the same in every evaluation.
        outcome: ``tripped`` iff the first of ``values`` exceeds ``threshold``.
        text: one line; for ``not run`` what would be needed.
        values: what was measured, by name; empty if not run.
        threshold: limit of the first value; ``None`` if not run.
    """

    name: str
    outcome: Outcome
    text: str
    values: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None


@dataclass(frozen=True)
class Probe:
    """Verdict of an attack that only a check asks for, beside one of the evaluation's.

    Both are on the same n images.

    Attributes:
        against: the metric of the evaluation's verdict.
        before: robust (or correct) by that verdict, [n] bool.
        after: robust to the probe, [n] bool.
        eps: perturbation radius of the probe, in pixels.
    """

    against: str
    before: Tensor
    after: Tensor
    eps: float


@dataclass(frozen=True)
class Verdict:
    """Which images an attack broke.

    Attributes:
        chosen: rows of the images that it was run on.
        robust: mask [all] of the images that are classified correctly and were not broken.
        parts: the attacks of an ensemble by name, in order, or the attack itself by its metric;
            empty where the radius is 0 and nothing was run.
        broken_by: [all], the position in ``parts`` of the one that broke the image; -1 for none.
        became: [all], the class that the broken image was taken for; -1 for none.
    """

    chosen: Tensor
    robust: Tensor
    parts: Mapping[str, Attack]
    broken_by: Tensor
    became: Tensor


@dataclass(frozen=True)
class Attacked:
    """An attack of the request and its verdict.

    Attributes:
        metric: its name, for example ``pgd20``.
        attack: what was run; its ``family`` decides which checks it takes part in.
        eps: perturbation radius in effect, in pixels.
        norm: in effect.
        params: what is recorded of it; see ``Entry``.
        verdict: on the evaluated images.
    """

    metric: str
    attack: Attack
    eps: float
    norm: Norm
    params: Mapping[str, Any]
    verdict: Verdict


@dataclass(frozen=True)
class Entry:
    """Value of one metric on one split.

    Attributes:
        metric: its name, for example ``pgd20``.
        split: ``test``, ``val`` or ``train``.
        value: for example robust accuracy in percent.
        unit: of ``value``.
        n: examples it is taken over.
        params: what the name leaves open; plain data.
    """

    metric: str
    split: str
    value: float
    unit: str = "percent"
    n: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The result of a request.

    Attributes:
        entries: one per metric, in the request's order.
        examples: one row per image. ``index`` in the split, ``label``, ``prediction``,
            ``clean_correct``; if diagnosed ``logit_gap`` (z_(1) - z_(2)) and, where attacks were
            run, ``zero_gradient`` (grad_x CE is exactly zero); per attack ``<metric>_robust``,
            missing where the attack's own ``n`` left it out; per ensemble ``<metric>_broken_by``,
            the part that broke it; per attack ``<metric>_class``, what the broken image was taken
            for; if diagnosed ``top_classes``, the ten classes with the largest clean logits, in
            order; ``first_broken_by``, the first metric that did. The last two
            are ``clean`` for misclassified images and missing for robust ones. Per measure
            ``<metric>``, its number, missing where there is none, and ``<metric>_<column>`` for
            each further one that it keeps.
        flags: warnings about the evaluation's trustworthiness, each once; to be shown.
        seconds: per metric; the forward pass of all images is ``clean``, ``checks`` what only the
            checks ran.
        checks: of gradient masking, passed, tripped or not run; empty if not diagnosed. The texts
            of the tripped ones are among ``flags``.
    """

    entries: tuple[Entry, ...]
    examples: pd.DataFrame
    flags: tuple[str, ...]
    seconds: Mapping[str, float]
    checks: tuple[Check, ...] = ()
