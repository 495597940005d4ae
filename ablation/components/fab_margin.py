"""Switch: margins by boundary search instead of Taylor's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ablation.components.margin_maximization import margin_term, reading_points
from ablation.crafters import BoundarySearch, FabSearch
from ablation.numerics.boundary import SearchStart
from ablation.training.method import Component, Method
from ablation.types import Norm

CARRIERS: dict[str, Literal["rescaled", "straight_through", "at_points"]] = {
    "rescaled": "rescaled",
    "straight_through": "straight_through",
    "last_projection": "at_points",
}


@dataclass(frozen=True)
class FabMargin(Component):
    """The margin is the distance of the boundary point that FAB finds (DOSE, section 3.2).

    The paper does not say how such a distance, in which the weights do not occur, is
    differentiated; see ``gradient`` and ``terms.MarginMaximization``.

    Args:
        steps: of FAB.
        start: ``clean``, or ``random`` as in DyART's code. Twenty steps from a random point do not
            reach a boundary nearer than that: R stays above where phi tends to 0, and the slope
            R/phi of G2 has no bound.
        restarts: of FAB.
        gradient: ``rescaled`` (G2), ``straight_through`` (G1) or ``last_projection`` (G3).
        wrong: ``include`` pushes misclassified samples by their negative Taylor margin.
        shared_bias: all samples take the bias of the first, as DyART's code does.
    """

    requires: ClassVar[tuple[str, ...]] = ("margin_maximization",)
    after: ClassVar[tuple[str, ...]] = ("exponential_loss", "soft_boundary")

    steps: int = 20
    start: SearchStart = "clean"
    restarts: int = 1
    gradient: Literal["rescaled", "straight_through", "last_projection"] = "rescaled"
    wrong: Literal["include", "exclude"] = "exclude"
    shared_bias: bool = False

    def __post_init__(self) -> None:
        self._search()

    def apply(self, method: Method) -> Method:
        """The method with the estimator exchanged."""
        term = margin_term(method)
        if term.gradient != "detached":
            raise ValueError(
                f"component.margin_maximization.gradient={term.gradient}: a Taylor margin's; "
                f"leave it at detached, or set component/fab_margin=disabled"
            )
        norm, last = searchable(term.norm), self.gradient == "last_projection"
        changed = replace(
            term, estimator="search", gradient=CARRIERS[self.gradient], wrong=self.wrong
        )
        crafter = BoundarySearch(
            self._search(),
            term.surface,
            norm=norm,
            subset=last,
            point="last_iterate" if last else "boundary",
        )
        return reading_points(method, changed, crafter)

    def _search(self) -> FabSearch:
        return FabSearch(self.steps, self.start, self.restarts, shared_bias=self.shared_bias)


def searchable(norm: str) -> Norm:
    """The norm of a search.

    Raises:
        ValueError: the search has no projection in it.
    """
    if norm == "linf" or norm == "l2":
        return "linf" if norm == "linf" else "l2"
    raise ValueError(
        f"component.margin_maximization.norm={norm}: the search has linf and l2; set one of them"
    )
