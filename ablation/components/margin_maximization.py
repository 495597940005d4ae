"""Switch: margin maximisation, the term that the other switches of its family change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ablation import terms
from ablation.crafters import BoundarySearch
from ablation.numerics.boundary import AnyNorm
from ablation.training.method import Component, Method, Pass, Slot
from ablation.types import Fraction

TERM, POINTS = "margin", "boundary"
"""Names of the loss term, and of the crafter whose points it may read."""


@dataclass(frozen=True)
class MarginMaximization(Component):
    """Adds ``terms.MarginMaximization`` to any method: Elsayed et al.'s margin as DOSE has it.

    Args:
        coef: lambda, the term's coefficient.
        gamma: margins beyond it cost nothing, in pixels.
        norm: of the margin.
        view: whose margins.
        wrong: are misclassified samples pushed too?
        reduction: mean over the ``batch``, or over its ``correct`` samples.
        gradient: ``detached`` denominator, or ``exact`` by double backward.
        bn: take the margin of the ``train`` pass or of one of ``eval`` mode.
        classes: the ``top`` other class; ``max`` or ``sum`` over the classes' penalties.
        top_k: of max and sum: the most likely other classes; ``None`` means all.
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
        """The method with the term in it."""
        if self.view != "nat" and self.view not in method.crafters:
            known = ", ".join(["nat", *method.crafters])
            raise ValueError(f"view={self.view}: the method has {known}")
        term = terms.MarginMaximization(
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


def margin_term(method: Method) -> terms.MarginMaximization:
    """The term that the method's switches change."""
    term = method.terms[TERM].term
    assert isinstance(term, terms.MarginMaximization)  # noqa: S101  ``requires`` sees to it
    return term


def reading_points(
    method: Method, term: terms.MarginMaximization, crafter: BoundarySearch
) -> Method:
    """The method with a search, and a term that reads its points.

    A subset of points has a pass of its own, before the clean one as in DyART's code. A view that
    only the term's former version needed is dropped.
    """
    if POINTS in method.crafters:
        method = replace(method, crafters={**method.crafters, POINTS: crafter})
    else:
        method = method.with_crafter(POINTS, crafter)
    slots = [slot for name, slot in method.terms.items() if name != TERM]
    needed = {view for slot in slots for part in (slot.term, slot.weight) if part
              for view in part.needs} | set(term.needs)  # fmt: skip
    idle = (set(margin_term(method).needs) & method.added) - needed
    passes = [entry for entry in method.passes if entry.kind != "view" or entry.view not in idle]
    if crafter.subset and Pass("view", POINTS) not in passes:
        passes.insert(passes.index(Pass("craft", POINTS)) + 1, Pass("view", POINTS))
    return replace(method, passes=tuple(passes)).with_changed_term(TERM, term)
