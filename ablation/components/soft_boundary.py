"""Switch: the soft decision boundary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ablation.components.margin_maximization import TERM, taylor_margin
from ablation.numerics.boundary import Soft
from ablation.training.method import Component, Method


@dataclass(frozen=True)
class SoftBoundary(Component):
    """Margins to z_y = (1/beta) log sum_{j != y} exp(beta z_j), which lies within the true region.

    DyART; DOSE, eq. 8. Samples between the two boundaries count as wrong.

    Args:
        beta: temperature; large values approach the hard boundary.
    """

    requires: ClassVar[tuple[str, ...]] = ("margin_maximization",)

    beta: float = 5.0

    def apply(self, method: Method) -> Method:
        """Exchange the surface."""
        term = replace(taylor_margin(method), surface=Soft(self.beta))
        return method.with_changed_term(TERM, term)
