"""Inner losses: functions of the logits that an attack ascends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.numerics.functional import Reduction, cross_entropy, cw_loss, kl_from, margin_loss
from ablation.types import Views


@dataclass(frozen=True)
class AttackCrossEntropy:
    """CE(z', y): inner loss of AT and MART."""

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Bind the labels of the batch; returns logits [N, K] -> loss [N]."""
        y = views.batch.y
        return lambda z: cross_entropy(z, y)


@dataclass(frozen=True)
class AttackKL:
    """KL(p || p') to the clean prediction: the inner loss of TRADES (its eq. 5).

    Its gradient is zero at the clean point, so it needs a random start; near it the gradient is
    of the size of rounding errors, so the expression is the official one to the letter. The clean
    prediction is constant during the search and computed once; the official code recomputes it
    each step, to the same numbers.
    """

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Bind the clean prediction, one forward; returns logits [N, K] -> loss [N]."""
        with torch.no_grad():
            clean = F.softmax(views.forward(views.batch.x), 1)
        return lambda z: kl_from(clean, z)


@dataclass(frozen=True)
class AttackMarginLoss:
    """L' of ``terms.MarginLoss``: LMA attacks on CE + L' (section 4.4)."""

    delta: float = 0.9
    reduction: Reduction = "classes"
    top_k: int | None = None

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Bind the labels of the batch; returns logits [N, K] -> loss [N]."""
        y = views.batch.y
        return lambda z: margin_loss(z, y, self.delta, self.top_k, self.reduction)


@dataclass(frozen=True)
class AttackCw:
    """-max(z_y - max_{j != y} z_j + confidence, 0): PGD on the CW margin (MAIL, GAIRAT code)."""

    confidence: float = 50.0

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Bind the labels of the batch; returns logits [N, K] -> loss [N]."""
        y = views.batch.y
        return lambda z: cw_loss(z, y, self.confidence)
