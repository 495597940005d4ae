"""LMA's margin loss: every false logit is to stay a margin below the true one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ablation.numerics.functional import Reduction, margin_loss
from ablation.types import Views


@dataclass(frozen=True)
class MarginLoss:
    """L' = sum_{j != y} max(0, z_j - z_y + delta)^2 of a view, shape [N] (LMA, eq. 12).

    Which one the paper means is open. Eq. 12 prints the sum. Its section 4.2 speaks in the words of
    torch's ``MultiMarginLoss`` with p = 2, which divides by K, and keeps delta at 0.9 from 10 to
    200 classes, where the sum begins at 7.3, 80 and 161, and the mean at 0.73, 0.80 and 0.81.

    Args:
        delta: margin, in logits.
        reduction: ``classes``, the sum divided by K as in torch; ``sum``, as printed.
        top_k: only the so many largest false classes (section 4.2's relaxed risk); ``None``: all.
        view: name of the view whose plain logits are read.
    """

    delta: float = 0.9
    reduction: Reduction = "classes"
    top_k: int | None = None
    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        z, y = views.logits(self.view), views.y(self.view)
        loss = margin_loss(z, y, self.delta, self.top_k, self.reduction)
        return views.scatter(self.view, loss)
