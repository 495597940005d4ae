"""Switch: margins by boundary search instead of Taylor's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ablation.components.margin_maximization import (
    POINTS,
    at_boundary_points,
    reading_points,
    taylor_margin,
)
from ablation.crafters import BoundarySearch, FabSearch
from ablation.numerics.boundary import SearchStart
from ablation.terms import MarginTerm, SearchedMargin, TaylorMargin
from ablation.training.method import Component, Method
from ablation.types import Norm


@dataclass(frozen=True)
class FabMargin(Component):
    """The margin is the distance of the boundary point that FAB finds (DOSE, section 3.2).

    The paper does not say how such a distance, in which the weights do not occur, is
    differentiated; see ``gradient``, ``terms.SearchedMargin`` and ``terms.BoundaryPointMargin``.

    Args:
        steps: of FAB.
        start: ``clean``, or ``random`` as in DyART's code. Twenty steps from a random point do not
            reach a boundary nearer than that: R stays above where phi tends to 0, and the slope
            R/phi of G2 has no bound.
        restarts: of FAB.
        gradient: ``rescaled`` (G2), ``straight_through`` (G1) or ``last_projection`` (G3).
        wrong: ``include`` pushes misclassified samples by their negative Taylor margin.
        shared_bias: all samples take the bias of the first, as DyART's code does.
        official_order: FAB tests and goes back before it linearises, as DyART's code does, at twice
            the forwards; the distances are as good.
    """

    requires: ClassVar[tuple[str, ...]] = ("margin_maximization",)
    after: ClassVar[tuple[str, ...]] = ("exponential_loss", "soft_boundary")

    steps: int = 20
    start: SearchStart = "clean"
    restarts: int = 1
    gradient: Literal["rescaled", "straight_through", "last_projection"] = "rescaled"
    wrong: Literal["include", "exclude"] = "exclude"
    shared_bias: bool = False
    official_order: bool = False

    def __post_init__(self) -> None:
        self._search()

    def apply(self, method: Method) -> Method:
        """Exchange the Taylor margin for a searched one, or for one at the last iterate (G3).

        Raises:
            ValueError: the Taylor margin has settings that no search has.
        """
        term = taylor_margin(method)
        if term.gradient != "detached":
            raise ValueError(
                f"component.margin_maximization.gradient={term.gradient}: a Taylor margin's; "
                f"leave it at detached, or set component/fab_margin=disabled"
            )
        norm, last = searchable(term.norm), self.gradient == "last_projection"
        crafter = BoundarySearch(
            self._search(),
            term.surface,
            norm=norm,
            subset=last,
            point="last_iterate" if last else "boundary",
        )
        return reading_points(method, self._searched(term, norm), crafter)

    def _searched(self, term: TaylorMargin, norm: Norm) -> MarginTerm:
        """The term that reads the points of the search."""
        if self.gradient != "last_projection":
            shared = term.penalty, term.surface, term.reduction
            return SearchedMargin(*shared, norm, self.gradient, self.wrong, term.bn, POINTS)
        if self.wrong == "include":
            raise ValueError(
                "wrong=include: a misclassified sample has no boundary point; set wrong=exclude"
            )
        return at_boundary_points(term)

    def _search(self) -> FabSearch:
        return FabSearch(
            self.steps,
            self.start,
            self.restarts,
            shared_bias=self.shared_bias,
            official_order=self.official_order,
        )


def searchable(norm: str) -> Norm:
    """Narrow the norm of a margin to those of a boundary search.

    Raises:
        ValueError: the search has no projection in it.
    """
    if norm == "linf" or norm == "l2":
        return "linf" if norm == "linf" else "l2"
    raise ValueError(
        f"component.margin_maximization.norm={norm}: the search has linf and l2; set one of them"
    )
