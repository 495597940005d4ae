"""Switch: DyART's closed-form gradient of the margin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ablation.components.fab_margin import searchable
from ablation.components.margin_maximization import (
    POINTS,
    at_boundary_points,
    margin_term,
    reading_points,
)
from ablation.crafters import BoundarySearch, LinearSearch
from ablation.terms import SearchedMargin, TaylorMargin
from ablation.training.method import Component, Method
from ablation.types import Norm

REPLACED = ("rescaled", "exclude")
"""``fab_margin``'s own gradient and wrong, which this switch replaces."""


@dataclass(frozen=True)
class ClosedFormGradient(Component):
    """grad R = grad phi(p) / ||grad_x phi(p)||_q at the boundary point p (DyART; DOSE, eq. 9).

    The points are FAB's if ``fab_margin`` is enabled, else those of one linear step, at the cost
    of a Taylor margin. They have a train-mode pass of their own before the clean one, as in
    DyART's code; misclassified samples and points not found take no part.

    Args:
        filter: ``kkt`` keeps the points that satisfy the quality conditions of DyART's code,
            which are those of linf; ``none`` keeps all.
        masked: points stay in place in the batch and BatchNorm counts those that were found, so
            that no step waits for a GPU; the same numbers up to rounding. Otherwise they are
            gathered, as in DyART's code.
    """

    requires: ClassVar[tuple[str, ...]] = ("margin_maximization",)
    after: ClassVar[tuple[str, ...]] = ("exponential_loss", "fab_margin", "soft_boundary")

    filter: Literal["kkt", "none"] = "none"
    masked: bool = False

    def apply(self, method: Method) -> Method:
        """Exchange the margin for one whose gradient is taken at boundary points.

        Raises:
            ValueError: another gradient was asked for, or the filter does not fit the points.
        """
        term = margin_term(method)
        if isinstance(term, TaylorMargin):
            crafter = self._linear_search(term)
        else:
            crafter = self._fab_search(method)
            if not isinstance(term, SearchedMargin) or (term.gradient, term.wrong) != REPLACED:
                raise ValueError(
                    "replaces the gradient of the searched distance, and takes correct samples "
                    "alone; leave component.fab_margin.gradient at rescaled and .wrong at exclude"
                )
        crafter = replace(
            crafter,
            subset=True,
            point="boundary",
            filtered=self.filter == "kkt",
            masked=self.masked,
        )
        return reading_points(method, at_boundary_points(term, self.masked), crafter)

    def _linear_search(self, term: TaylorMargin) -> BoundarySearch:
        """A search of one linear step."""
        norm = searchable(term.norm)
        self._check_filter(norm)
        if term.gradient == "exact":
            raise ValueError(
                "component.margin_maximization.gradient=exact: one gradient at a time; leave it at "
                "detached, or set component/closed_form_gradient=disabled"
            )
        if self.filter == "kkt":
            raise ValueError(
                "filter=kkt: is for searched points, and those of one linear step are not "
                "beyond the boundary; set component.closed_form_gradient.filter=none or "
                "component/fab_margin=enabled"
            )
        return BoundarySearch(LinearSearch(), term.surface, norm=norm)

    def _fab_search(self, method: Method) -> BoundarySearch:
        """The search of ``fab_margin``."""
        crafter = method.crafters[POINTS]
        assert isinstance(crafter, BoundarySearch)  # noqa: S101  the term reads its points
        self._check_filter(crafter.norm)
        return crafter

    def _check_filter(self, norm: Norm) -> None:
        if self.filter == "kkt" and norm != "linf":
            raise ValueError(f"filter=kkt: its conditions are those of linf, not {norm}")
