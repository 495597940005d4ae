"""Switch: smoothed labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ablation import terms
from ablation.training.method import Component, Method, Phase
from ablation.types import Fraction


@dataclass(frozen=True)
class LabelSmoothing(Component):
    """Put ``terms.SmoothedCrossEntropy`` in the place of every cross-entropy of any method.

    The attack ascends its own loss on the hard labels, as before (Pang et al., 2021, section 3.4,
    compare smoothing in adversarial training).

    Args:
        smoothing: share of the label that is spread over all classes, in [0, 1).
    """

    after: ClassVar[tuple[str, ...]] = ("boosted_cross_entropy", "burn_in", "mma")

    smoothing: Fraction = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing:g} must lie in [0, 1)")

    def apply(self, method: Method) -> Method:
        """Exchange the terms.

        Raises:
            ValueError: the method has no cross-entropy.
        """
        smoothed = self._smoothed(method)
        if smoothed.terms == method.terms:
            raise ValueError(
                "the method has no cross-entropy to smooth; set component/label_smoothing=disabled"
            )
        return smoothed

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Smooth the phases that other components have added, too."""
        return tuple(replace(phase, method=self._smoothed(phase.method)) for phase in phases)

    def _smoothed(self, method: Method) -> Method:
        exchanged = {
            name: replace(slot, term=terms.SmoothedCrossEntropy(slot.term.view, self.smoothing))
            if isinstance(slot.term, terms.CrossEntropy)
            else slot
            for name, slot in method.terms.items()
        }
        return replace(method, terms=exchanged)
