"""Kullback-Leibler divergence between the predictions at two views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ablation.numerics.functional import Constants, kl_divergence, kl_divergence_official
from ablation.types import Views


@dataclass(frozen=True)
class KL:
    """KL(p(target) || p(view)), shape [N]: TRADES' second term (eq. 5) and MART's (eq. 8).

    Gradient flows through both arguments: neither official code detaches the clean prediction.

    Args:
        target: the view whose prediction is the target, the clean one.
        view: the view that is pulled towards it.
        constants: ``official`` adds mart.py's 1e-12 inside log p(view); TRADES has none.
    """

    whole: ClassVar[bool] = True
    """Compares two views sample by sample: both must hold the whole batch."""

    target: str = "nat"
    view: str = "adv"
    constants: Constants = "exact"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.target, self.view)

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        divergence = kl_divergence if self.constants == "exact" else kl_divergence_official
        return divergence(views.logits(self.target), views.logits(self.view))
