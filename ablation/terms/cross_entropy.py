"""Cross-entropy of a view, with labels as they are or smoothed."""

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


@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """(1 - s) (-log p_y) + s / K sum_j (-log p_j) of a view, shape [N].

    Szegedy et al. (2016), section 7.

    Args:
        view: whose logits.
        smoothing: s, the share of the label that is spread over all K classes, in [0, 1).
    """

    view: str
    smoothing: float

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        z = views.loss_logits(self.view)
        hard = cross_entropy(z, views.y(self.view))
        uniform = z.logsumexp(1) - z.mean(1)
        loss = (1 - self.smoothing) * hard + self.smoothing * uniform
        return views.scatter(self.view, loss)
