"""Heads: from features to logits, and to the logits that classification terms see."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ablation.method import HeadFactory


class Head(Protocol):
    """The layer on top of the features; an ``nn.Module``.

    Attacks, KL terms and evaluation use ``forward``. A head with a margin for the true class
    (L-Softmax, HE) puts it into ``loss_logits``, which classification terms use.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Plain logits [N, K] of ``features`` [N, D]."""

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Logits [N, K] for classification terms.

        Args:
            features: [N, D], in fp32 or better also under autocast.
            logits: what ``forward`` gave, [N, K], in fp32 or better.
            y: labels [N].
        """


class LinearHead(nn.Module):
    """z = W f + b.

    Args:
        features: D.
        classes: K.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [N, K] of ``features`` [N, D]."""
        logits: Tensor = self.linear(features)
        return logits

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The plain logits."""
        return logits


HEADS: dict[str, HeadFactory] = {"linear": LinearHead}
"""What ``model.head`` may be."""
