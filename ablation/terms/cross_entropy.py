"""Cross-entropy of a view."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ablation.numerics.functional import cross_entropy
from ablation.types import Views


@dataclass(frozen=True)
class CrossEntropy:
    """-log p_y(view), shape [N]: standard training on ``nat``, PGD-AT (Madry et al.) on ``adv``."""

    view: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        loss = cross_entropy(views.loss_logits(self.view), views.y(self.view))
        return views.scatter(self.view, loss)
