"""Switch: margin maximisation, the term that the other switches of its family exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ablation import terms
from ablation.crafters import BoundarySearch
from ablation.numerics.boundary import AnyNorm
from ablation.training.method import ASCENT, CLEAN, Component, Method, Pass, Slot
from ablation.types import Fraction

TERM, POINTS = "margin", "boundary"
"""Names of the loss term, and of the crafter whose points it may read."""


@dataclass(frozen=True)
class MarginMaximization(Component):
    """Adds ``terms.TaylorMargin`` to any method: Elsayed et al.'s margin as DOSE has it.

    Args:
        coef: lambda, the term's coefficient; above 0.
        gamma: margins beyond it cost nothing, in pixels.
        norm: of the margin.
        view: whose margins; ``nat`` or a crafter's points.
        wrong: ``include`` pushes misclassified samples by their negative margin.
        reduction: mean over the ``batch``, or over its ``correct`` samples.
        gradient: ``detached`` denominator, or ``exact`` by double backward.
        bn: the forward that the margin is taken of: the ``train`` pass, or one of ``eval`` mode.
        classes: the ``top`` other class; ``max`` or ``sum`` over the classes' penalties.
        top_k: of max and sum: how many of the most likely other classes; ``None`` means all.
        layers: of the network's body, whose margins are added; "" is the input.
    """

    coef: float = 25.0
    gamma: Fraction = 16 / 255
    norm: AnyNorm = "linf"
    view: str = "nat"
    wrong: Literal["include", "exclude"] = "include"
    reduction: Literal["batch", "correct"] = "batch"
    gradient: Literal["detached", "exact"] = "detached"
    bn: Literal["train", "eval"] = "train"
    classes: terms.Classes = "top"
    top_k: int | None = None
    layers: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        if self.coef <= 0:
            raise ValueError(
                f"coef={self.coef:g} must be positive; without the term: "
                "component/margin_maximization=disabled"
            )

    def apply(self, method: Method) -> Method:
        """Add the term.

        Raises:
            ValueError: the method has no such view, or the settings contradict one another.
        """
        if self.view != CLEAN and self.view not in method.crafters:
            known = ", ".join([CLEAN, *method.crafters])
            raise ValueError(f"view={self.view}: the method has {known}")
        term = terms.TaylorMargin(
            terms.Hinge(self.gamma),
            norm=self.norm,
            view=self.view,
            wrong=self.wrong,
            reduction=self.reduction,
            gradient=self.gradient,
            bn=self.bn,
            classes=self.classes,
            top_k=self.top_k,
            layers=tuple(self.layers),
        )
        return method.with_term(TERM, Slot(term, self.coef))


def margin_term(method: Method) -> terms.MarginTerm:
    """The term that the method's switches exchange."""
    term = method.terms[TERM].term
    assert isinstance(term, terms.MarginTerm)  # noqa: S101  ``requires`` sees to it
    return term


def taylor_margin(method: Method) -> terms.TaylorMargin:
    """The Taylor margin that a switch changes, before others exchange it for a searched one.

    Raises:
        ValueError: it has been exchanged already; configs have the order of ``after``.
    """
    term = margin_term(method)
    if not isinstance(term, terms.TaylorMargin):
        raise ValueError("is applied before fab_margin and closed_form_gradient")
    return term


def at_boundary_points(
    term: terms.TaylorMargin | terms.SearchedMargin, masked: bool = False
) -> terms.BoundaryPointMargin:
    """Exchange a margin for one whose gradient is taken at the points of the crafter.

    Raises:
        ValueError: its forward is one of evaluation mode.
    """
    if term.bn == "eval":
        raise ValueError("bn=eval: the gradient is that of the points' training pass; set bn=train")
    return terms.BoundaryPointMargin(term.penalty, term.surface, term.reduction, POINTS, masked)


def reading_points(method: Method, term: terms.MarginTerm, crafter: BoundarySearch) -> Method:
    """The method with a search, and a term that reads its points.

    A subset of points has a pass of its own, before the clean one as in DyART's code. A view that
    only the term's former version needed is dropped.

    Raises:
        ValueError: the former version is a Taylor margin that no search has: of several classes or
            layers, or of crafted points.
    """
    former = margin_term(method)
    if isinstance(former, terms.TaylorMargin):
        former.refuse_several()
        if former.view != CLEAN:
            raise ValueError(
                f"view={former.view}: the search is around the clean images; set view=nat"
            )
    if POINTS in method.crafters:
        method = replace(method, crafters={**method.crafters, POINTS: crafter})
    else:
        method = method.with_crafter(POINTS, crafter)
    slots = [slot for name, slot in method.terms.items() if name != TERM]
    needed = {view for slot in slots for part in (slot.term, slot.weight) if part
              for view in part.needs} | set(term.needs)  # fmt: skip
    idle = (set(former.needs) & method.added) - needed
    passes = [entry for entry in method.passes if entry.kind != "view" or entry.view not in idle]
    if crafter.subset and Pass("view", POINTS) not in passes:
        after = ASCENT if ASCENT in passes else Pass("craft", POINTS)
        passes.insert(passes.index(after) + 1, Pass("view", POINTS))
    return replace(method, passes=tuple(passes)).with_changed_term(TERM, term)
