"""Switch: large-margin softmax."""

from __future__ import annotations

from dataclasses import dataclass

from ablation import models
from ablation.components.hypersphere import with_head
from ablation.training.method import Component, Method


@dataclass(frozen=True)
class LargeMarginSoftmax(models.LargeMargin, Component):
    """The head of ``models.LargeMargin`` on any method; it has the settings.

    Attacks, KL terms and evaluation see the plain logits. What the attack of AT + L-Softmax sees
    is not stated in EMR.
    """

    def apply(self, method: Method) -> Method:
        """The method with the head in it."""
        return with_head(method, self)
