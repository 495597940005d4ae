"""Switch: effective margin regularisation, in three forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ablation import terms
from ablation.terms.effective_margin import EffectiveNorm, Scale
from ablation.training.method import CLEAN, Component, Method, Slot
from ablation.types import DecayingGate, Fraction, Gate

TERM = "emr"
"""Name of the loss term."""


@dataclass(frozen=True)
class Emr(Component):
    """Add ``terms.EffectiveWeightNorm`` to any method, exact: a backward pass per class (eq. 5).

    Args:
        coef: lambda, of the mean over the samples unless ``scale`` says otherwise.
        view: name of the view whose points are penalised; ``auto``: adversarial ones where the
            method has them, as in the released code, else the clean images.
        centred: penalise the logits less their mean, on which alone predictions depend.
        scale: ``sample`` (paper) or ``code``, whose lambda is N times as large.
        decay: ``lr``: lambda falls with the learning rate (section 5.1; Tables 3 and 4).
    """

    coef: Fraction = 1e-3
    view: str = "auto"
    centred: bool = False
    scale: Scale = "sample"
    decay: Literal["none", "lr"] = "none"

    def __post_init__(self) -> None:
        check_coef("emr", self.coef)

    @property
    def norm(self) -> EffectiveNorm:
        """Measure of the effective weights."""
        return terms.ExactNorm()

    def apply(self, method: Method) -> Method:
        """Add the term to the method."""
        view = points_of(method, self.view)
        term = terms.EffectiveWeightNorm(self.norm, view, self.centred, self.scale)
        gate = DecayingGate() if self.decay == "lr" else Gate()
        return method.with_term(TERM, Slot(term, self.coef, gate=gate))


@dataclass(frozen=True)
class EmrProbe(Emr):
    """``Emr`` by an unbiased estimate: a backward pass per draw (``terms.ProbedNorm``).

    Args:
        draws: number of backward passes that are averaged.
    """

    draws: int = 1

    @property
    def norm(self) -> EffectiveNorm:
        """Measure of the effective weights."""
        return terms.ProbedNorm(self.draws)


@dataclass(frozen=True)
class EmrApproximate(Emr):
    """``Emr`` as the paper approximates it: one backward pass (eq. 7, ``terms.ApproximateNorm``).

    Args:
        temperature: t; ``None`` is infinite.
    """

    coef: Fraction = 3 / 128
    temperature: float | None = 40.0

    @property
    def norm(self) -> EffectiveNorm:
        """Measure of the effective weights."""
        return terms.ApproximateNorm(self.temperature)


def check_coef(component: str, coef: float) -> None:
    """Check that the coefficient of a penalty is positive.

    Raises:
        ValueError: it is not.
    """
    if coef <= 0:
        raise ValueError(
            f"coef={coef:g} must be positive; without the term: component/{component}=disabled"
        )


def points_of(method: Method, view: str) -> str:
    """Choose the view whose points a penalty on input gradients is computed at.

    Args:
        method: the method, whose crafters make the views.
        view: a view, or ``auto``: the adversarial points if there are any, else the clean images.

    Raises:
        ValueError: the method has no such view.
    """
    if view == "auto":
        return "adv" if "adv" in method.crafters else CLEAN
    if view != CLEAN and view not in method.crafters:
        raise ValueError(f"view={view}: the method has {', '.join([CLEAN, *method.crafters])}")
    return view
