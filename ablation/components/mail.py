"""Switch: MAIL's per-example weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ablation.training.method import Component, Method, Phase, Slot
from ablation.types import Fraction
from ablation.weights import ProbabilisticMargin


@dataclass(frozen=True)
class Mail(Component):
    """Weight the term in the role ``robust`` by ``weights.ProbabilisticMargin``.

    That is CE under AT (MAIL-AT), KL under TRADES (MAIL-TRADES) and BCE under MART (MAIL-MART).

    Args:
        slope: how sharply weights fall with the margin.
        bias: the margin at which they fall most steeply.
        start: share of the epochs of all phases, in [0, 1), after which weights set in; all are 1
            before.
        normalize: ``constant``, times 3 as in the code; ``batch``, to mean 1.
    """

    slope: float = 10.0
    bias: float = -0.5
    start: Fraction = 76 / 120
    normalize: Literal["constant", "batch"] = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start={self.start:g}: a share of the epochs in [0, 1), as 76/120")

    def apply(self, method: Method) -> Method:
        """Add the weight to the method, from its first epoch; ``arrange`` sets the start."""
        if "robust" not in method.roles:
            raise ValueError(
                "the method has no adversarial term to weigh; set method=at, trades or mart, or "
                "component/mail=disabled"
            )
        weight = ProbabilisticMargin(self.slope, self.bias, normalize=self.normalize)
        return method.with_weight("robust", weight)

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Set the first weighted epoch of each phase."""
        first = math.floor(self.start * sum(phase.epochs for phase in phases) + 1e-9)
        arranged = []
        for phase in phases:
            terms = {name: _from(slot, max(0, first)) for name, slot in phase.method.terms.items()}
            arranged.append(replace(phase, method=replace(phase.method, terms=terms)))
            first -= phase.epochs
        return tuple(arranged)


def _from(slot: Slot, epoch: int) -> Slot:
    if not isinstance(slot.weight, ProbabilisticMargin):
        return slot
    return replace(slot, weight=replace(slot.weight, start=epoch))
