"""Switch: DyART's closed-form gradient of the margin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ablation.components.fab_margin import searchable
from ablation.components.margin_maximization import POINTS, margin_term, reading_points
from ablation.crafters import BoundarySearch, LinearSearch
from ablation.training.method import Component, Method


@dataclass(frozen=True)
class ClosedFormGradient(Component):
    """grad R = grad phi(p) / ||grad_x phi(p)||_q at the boundary point p (DyART; DOSE, eq. 9).

    The points are FAB's if ``fab_margin`` is enabled, else those of one linear step, at the cost
    of a Taylor margin. They have a train-mode pass of their own before the clean one, as in
    DyART's code; misclassified samples and points not found take no part.

    Args:
        filter: ``kkt`` keeps the points that satisfy the quality conditions of DyART's code,
            which are those of linf; ``none`` keeps all.
    """

    requires: ClassVar[tuple[str, ...]] = ("margin_maximization",)
    after: ClassVar[tuple[str, ...]] = ("exponential_loss", "fab_margin", "soft_boundary")

    filter: Literal["kkt", "none"] = "none"

    def apply(self, method: Method) -> Method:
        """The method with the gradient exchanged."""
        term = margin_term(method)
        norm = searchable(term.norm)
        if self.filter == "kkt" and norm != "linf":
            raise ValueError(f"filter=kkt: its conditions are those of linf, not {norm}")
        if term.gradient == "exact":
            raise ValueError(
                "component.margin_maximization.gradient=exact: one gradient at a time; leave it at "
                "detached, or set component/closed_form_gradient=disabled"
            )
        if term.estimator == "search" and (term.gradient, term.wrong) != ("rescaled", "exclude"):
            raise ValueError(
                "replaces the gradient of the searched distance, and takes correct samples alone; "
                "leave component.fab_margin.gradient at rescaled and .wrong at exclude"
            )
        crafter = method.crafters.get(POINTS)
        if not isinstance(crafter, BoundarySearch):
            if self.filter == "kkt":
                raise ValueError(
                    "filter=kkt: is for searched points, and those of one linear step are not "
                    "beyond the boundary; set component.closed_form_gradient.filter=none or "
                    "component/fab_margin=enabled"
                )
            crafter = BoundarySearch(LinearSearch(), term.surface, norm=norm)
        crafter = replace(crafter, subset=True, point="boundary", filtered=self.filter == "kkt")
        changed = replace(term, gradient="at_points", wrong="exclude")
        return reading_points(method, changed, crafter)
