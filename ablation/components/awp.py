"""Switch: adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ablation.ascents import AdversarialWeightPerturbation
from ablation.training.method import Component, Method


@dataclass(frozen=True)
class Awp(Component):
    """Add ``AdversarialWeightPerturbation`` to any method; refused beside another ascent.

    Args:
        gamma: relative size of the perturbation.
        start: first epoch (0-based) that perturbs.
        terms: names of the ascended loss terms; empty means all.
    """

    after: ClassVar[tuple[str, ...]] = (  # so that ``terms`` may name what they add
        *("boosted_cross_entropy", "closed_form_gradient", "ema_logits", "emr"),
        *("exponential_loss", "fab_margin", "igr", "margin_loss", "margin_maximization"),
        *("mma", "pmhr", "soft_boundary", "squeeze"),
    )

    gamma: float = 0.01
    start: int = 0
    terms: Sequence[str] = ()

    def apply(self, method: Method) -> Method:
        """Add the ascent to the method."""
        unknown = [name for name in self.terms if name not in method.terms]
        if unknown:
            raise ValueError(f"terms={unknown}: the method has {', '.join(method.terms)}")
        ascent = AdversarialWeightPerturbation(self.gamma, self.start, tuple(self.terms))
        return method.with_ascent(ascent)
