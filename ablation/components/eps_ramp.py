"""Switch: a curriculum of radii."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ablation.budgets import Fixed, MarginWeighted, Ramped
from ablation.crafters import Pgd, Squeeze
from ablation.training.method import Component, Method, Phase
from ablation.types import Fraction


@dataclass(frozen=True)
class EpsRamp(Component):
    """Let the training radius rise linearly over the first epochs, with ``budgets.Ramped``.

    A curriculum as in certified training (Gowal et al., 2018, section 4). Step sizes are fractions
    of eps, so they rise with it. Validation and evaluation always use the full radius.

    Args:
        over: share of the epochs of all phases in which an attack has less than its full radius.
        begin: share of the radius at which the line starts, before the first epoch.
    """

    after: ClassVar[tuple[str, ...]] = ("burn_in", "margin_weighted_epsilon", "mma")

    over: Fraction = 0.5
    begin: Fraction = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.over <= 1 or not 0 <= self.begin <= 1:
            raise ValueError(
                f"over={self.over:g}: a share of the epochs in (0, 1]; "
                f"begin={self.begin:g}: a share of the radius in [0, 1]"
            )

    def apply(self, method: Method) -> Method:
        """Check that there is a radius to ramp; ``arrange`` sets it.

        Raises:
            ValueError: there is none.
        """
        attacks = any(isinstance(each, (Pgd, Squeeze)) for each in method.crafters.values())
        if not attacks or not isinstance(method.budget, (Fixed, MarginWeighted)):
            raise ValueError(
                "the method has no radius of its own to ramp; set method=at, trades or mart, or "
                "component/eps_ramp=disabled"
            )
        return method

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Ramp the radii of each phase that attacks, over all phases together."""
        over = self.over * sum(phase.epochs for phase in phases)
        arranged, before = [], 0
        for phase in phases:
            method = phase.method
            if method.crafters:
                budget = Ramped(method.budget, over, before - phase.counts_from, self.begin)
                method = replace(method, budget=budget)
            arranged.append(replace(phase, method=method))
            before += phase.epochs
        return tuple(arranged)
