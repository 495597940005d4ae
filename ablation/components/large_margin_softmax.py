"""Switch: large-margin softmax."""

from __future__ import annotations

from dataclasses import dataclass

from ablation import models
from ablation.components.hypersphere import with_head
from ablation.training.method import Component, Method


@dataclass(frozen=True)
class LargeMarginSoftmax(models.LargeMargin, Component):
    """Set the head of ``models.LargeMargin``, with its settings, on any method.

    Attacks, KL terms and evaluation see the plain logits. What the attack of AT + L-Softmax sees
    is not stated in EMR.
    """

    def apply(self, method: Method) -> Method:
        """Set the head of the method."""
        return with_head(method, self)
