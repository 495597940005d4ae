"""Switch: MAIL's per-example weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ablation.components.shares import check_share, weighing_from
from ablation.training.method import Component, Method, Phase
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

    after: ClassVar[tuple[str, ...]] = (  # one may split a phase, one may bring the term
        *("margin_weighted_epsilon", "squeeze"),
    )

    slope: float = 10.0
    bias: float = -0.5
    start: Fraction = 76 / 120
    normalize: Literal["constant", "batch"] = "constant"

    def __post_init__(self) -> None:
        check_share(self.start)

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
        return weighing_from(self.start, phases, ProbabilisticMargin)
