"""Inner losses: functions of the logits that an attack ascends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.numerics.functional import (
    Reduction,
    cross_entropy,
    cw_loss,
    kl_from,
    margin_loss,
    probability_margin,
    soft_margin_loss,
)
from ablation.types import AttackLoss, Views


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


@dataclass(frozen=True)
class AttackSoftMargin:
    """log sum_{j != y} exp(z_j) - z_y: what MMA ascends; its zero is p_y = 1/2."""

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Bind the labels of the batch; returns logits [N, K] -> loss [N]."""
        y = views.batch.y
        return lambda z: soft_margin_loss(z, y)


@dataclass(frozen=True)
class AttackWeighted:
    """exp(-a m') loss, m' = p'_y - max_{j != y} p'_j: WAT's weight inside the attack.

    Args:
        loss: what is weighted.
        a: of the weight.
        detach: the weight is constant; WAT's code ascends it too.
    """

    loss: AttackLoss
    a: float = 0.5
    detach: bool = False

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Bind the loss; returns logits [N, K] -> loss [N]."""
        loss, y = self.loss.bind(views), views.batch.y

        def weighted(z: Tensor) -> Tensor:
            weight = torch.exp(-self.a * probability_margin(z, y))
            return (weight.detach() if self.detach else weight) * loss(z)

        return weighted
