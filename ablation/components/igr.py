"""Switch: input gradient regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ablation import terms
from ablation.components.emr import check_coef, points_of
from ablation.training.method import Component, Method, Slot
from ablation.types import Fraction

TERM = "igr"
"""Name of the loss term."""


@dataclass(frozen=True)
class Igr(Component):
    """Add ``terms.InputGradient`` to any method (Ross and Doshi-Velez, 2018).

    Args:
        coef: lambda, of the mean over the samples unless ``scale`` says otherwise.
        view: name of the view whose points are penalised; ``auto``: adversarial ones where the
            method has them, else the clean images.
        scale: ``sample`` or the original ``code``, whose lambda is 2 N times as large.
    """

    coef: Fraction = 2.0
    view: str = "auto"
    scale: Literal["sample", "code"] = "sample"

    def __post_init__(self) -> None:
        check_coef("igr", self.coef)

    def apply(self, method: Method) -> Method:
        """Add the term to the method."""
        term = terms.InputGradient(points_of(method, self.view), self.scale)
        return method.with_term(TERM, Slot(term, self.coef))
