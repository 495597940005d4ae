"""What a user switches."""

from __future__ import annotations

from dataclasses import dataclass

from ablation.training.method import Component, Method, Slot
from ablation.types import Fraction
from ablation_example import terms


@dataclass(frozen=True)
class LogitNorm(Component):
    """Adds ``terms.LogitNorm`` of the clean images to any method."""

    coef: Fraction = 0.01

    def apply(self, method: Method) -> Method:
        """The method with the term in it."""
        return method.with_term("logit_norm", Slot(terms.LogitNorm("nat"), self.coef))
