"""Switch: GAIRAT's per-example weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ablation.components.attacks import ADVERSARIAL, pgd_of
from ablation.components.shares import check_share, weighing_from
from ablation.training.method import Component, Method, Phase
from ablation.types import Fraction
from ablation.weights import Geometry


@dataclass(frozen=True)
class Gairat(Component):
    """Weight the term in the role ``robust`` by ``weights.Geometry``; the attack counts its steps.

    Args:
        shift: lambda; GAIRAT has -1, 50 weighs all alike in every precision.
        start: share of the epochs of all phases, in [0, 1), after which weights set in; all are 1
            before.
    """

    after: ClassVar[tuple[str, ...]] = ("margin_weighted_epsilon",)  # it may split a phase

    shift: float = -1.0
    start: Fraction = 59 / 120

    def __post_init__(self) -> None:
        check_share(self.start)

    def apply(self, method: Method) -> Method:
        """Let the attack count, and add the weight; ``arrange`` sets its start."""
        counting = replace(pgd_of(method, "gairat"), counts=True)
        method = method.with_weight("robust", Geometry(self.shift, view=ADVERSARIAL))
        return replace(method, crafters={**method.crafters, ADVERSARIAL: counting})

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Set the first weighted epoch of each phase."""
        return weighing_from(self.start, phases, Geometry)
