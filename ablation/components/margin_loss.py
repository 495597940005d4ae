"""Switch: LMA's margin loss, in the attack, in training, or in both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ablation import crafters, terms
from ablation.components.emr import points_of
from ablation.numerics.functional import Reduction
from ablation.training.method import Component, Method, Slot

TERM = "margin_loss"
"""Name of the loss term, and of the summand of the attack's objective."""


@dataclass(frozen=True)
class MarginLoss(Component):
    """Add ``terms.MarginLoss`` (L') to a method, with coefficient 1 as in the paper.

    Args:
        where: ``inner``, the training attack ascends CE + L'; ``outer``, L' is a term of the loss;
            ``both``, as LMA-AT and the paper's "+Ours" (section 4.4, Table 1).
        delta: margin, in logits; the paper searches [0, 1].
        reduction: ``classes`` or ``sum``; see ``terms.MarginLoss``.
        top_k: only the so many largest false classes; ``None`` means all.
        base: what the attack ascends beside L': ``ce``, in place of what it ascended before (so
            TRADES + Ours attacks without its KL), or the method's ``own`` losses.
    """

    where: Literal["inner", "outer", "both"] = "both"
    delta: float = 0.9
    reduction: Reduction = "classes"
    top_k: int | None = None
    base: Literal["ce", "own"] = "ce"

    def __post_init__(self) -> None:
        if self.delta < 0:
            raise ValueError(f"delta={self.delta:g}: a margin of 0 or more; the paper has 0.9")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: at least 1; null takes all false classes")

    def apply(self, method: Method) -> Method:
        """Add L' to the attack, to the loss, or to both."""
        if self.where != "outer":
            method = self._attacking(method)
        if self.where == "inner":
            return method
        view = points_of(method, "auto")
        return method.with_term(
            TERM, Slot(terms.MarginLoss(self.delta, self.reduction, self.top_k, view))
        )

    def _attacking(self, method: Method) -> Method:
        loss = crafters.AttackMarginLoss(self.delta, self.reduction, self.top_k)
        summand = crafters.Ascended(loss)
        cross_entropy = {"ce": crafters.Ascended(crafters.AttackCrossEntropy())}
        changed = {
            name: replace(
                crafter,
                losses={
                    **(cross_entropy if self.base == "ce" else crafter.losses),
                    TERM: summand,
                },
            )
            for name, crafter in method.crafters.items()
            if isinstance(crafter, crafters.Pgd)
        }
        if not changed:
            raise ValueError(
                "the method trains on no attack; set method=at, trades or mart, "
                "component/margin_loss=outer, or component/margin_loss=disabled"
            )
        return replace(method, crafters={**method.crafters, **changed})
