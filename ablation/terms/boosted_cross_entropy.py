"""MART's boosted cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ablation.numerics.functional import Constants, boosted_cross_entropy
from ablation.types import Views


@dataclass(frozen=True)
class BoostedCrossEntropy:
    """-log p_y - log(1 - max_{k != y} p_k) of a view, shape [N] (MART, eq. 7; mart.py).

    Args:
        view: name of the view whose logits are read.
        constants: ``exact``, finite at p_k = 1; ``official`` has mart.py's 1.0001 and 1e-12.
    """

    view: str = "adv"
    constants: Constants = "exact"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        z, y = views.loss_logits(self.view), views.y(self.view)
        return views.scatter(self.view, boosted_cross_entropy(z, y, self.constants))
