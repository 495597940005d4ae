"""Switch: MWPB's radius for each example, by its margin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ablation.budgets import Fixed, MarginWeighted
from ablation.components.shares import check_share, first_epochs
from ablation.crafters import Ascended, AttackCrossEntropy, Pgd, Squeeze
from ablation.terms import CrossEntropy
from ablation.training.method import Component, Method, Phase, Slot, parse_passes
from ablation.types import Fraction

FIRST = "small_radius"
"""Name of a first phase of its own."""


@dataclass(frozen=True)
class MarginWeightedEpsilon(Component):
    """Put ``budgets.MarginWeighted`` in the place of the fixed radius of any attack (MWPB).

    Step sizes are fractions of eps, so each example's step is the same share of its radius:
    ``attack.step_size=eps/4`` is the paper's eps_i / 4. alpha 0 is the same method with the radius
    ``first`` and then ``eps`` for all: the control that separates the schedule from the weights.

    Args:
        alpha: how much radii differ.
        first: radius before ``start``, as a share of the method's.
        start: share of the epochs of all phases, in [0, 1), after which radii are weighted.
        margin: of ``probability`` or ``logit``; see the budget.
        eps: radius at margin 0, in pixel units; ``None`` means the method's.
        before: what trains before ``start``: the method's ``own`` loss and attack, or ``at``, plain
            adversarial training, as section 5.1 may be read.
    """

    alpha: float = 0.58
    first: Fraction = 0.5
    start: Fraction = 80 / 110
    margin: Literal["probability", "logit"] = "probability"
    eps: Fraction | None = None
    before: Literal["own", "at"] = "own"

    def __post_init__(self) -> None:
        check_share(self.start)
        if self.first < 0 or (self.eps is not None and self.eps < 0):
            raise ValueError(f"first={self.first:g} and eps={self.eps} must not be negative")

    def apply(self, method: Method) -> Method:
        """Set the budget, from the first epoch; ``arrange`` sets the start."""
        if not any(isinstance(crafter, (Pgd, Squeeze)) for crafter in method.crafters.values()):
            raise ValueError(
                "the method trains on no attack within a radius; set method=at, trades or mart, or "
                "component/margin_weighted_epsilon=disabled"
            )
        fixed = method.budget
        if not isinstance(fixed, Fixed):
            raise ValueError("method.budget: not the fixed radius that it could weigh")
        radius = fixed.eps * fixed.scale
        eps = radius if self.eps is None else self.eps
        budget = MarginWeighted(eps, self.alpha, self.first * radius, margin=self.margin)
        return replace(method, budget=budget)

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Set the first weighted epoch of each phase, or begin with a phase of plain training."""
        arranged: list[Phase] = []
        for phase, first in zip(phases, first_epochs(self.start, phases), strict=True):
            budget = phase.method.budget
            if not isinstance(budget, MarginWeighted) or not phase.method.crafters:  # a burn-in
                arranged.append(phase)
            elif self.before == "own" or first == 0:
                arranged.append(_with_budget(phase, replace(budget, start=first)))
            else:
                early, late = min(first, phase.epochs), max(0, phase.epochs - first)
                plain = _plain(phase.method, budget.first)
                arranged.append(replace(phase, name=FIRST, epochs=early, method=plain))
                if late:
                    weighted = replace(_with_budget(phase, budget), epochs=late, optim="keep")
                    arranged.append(replace(weighted, counts_from=first))
        return tuple(arranged)


def _with_budget(phase: Phase, budget: MarginWeighted) -> Phase:
    return replace(phase, method=replace(phase.method, budget=budget))


def _plain(method: Method, radius: float) -> Method:
    """Plain adversarial training with the settings of a method's attack."""
    attacks = [crafter for crafter in method.crafters.values() if isinstance(crafter, Pgd)]
    if not attacks:
        raise ValueError("before=at: the method has no PGD attack to train on; set before=own")
    losses = {"ce": Ascended(AttackCrossEntropy())}
    return Method(
        crafters={"adv": replace(attacks[0], losses=losses, counts=False)},
        budget=Fixed(radius),
        passes=parse_passes("craft:adv", "adv", "step"),
        terms={"ce": Slot(CrossEntropy("adv"))},
        roles={"robust": "ce", "classify": "ce"},
        head=method.head,
    )
