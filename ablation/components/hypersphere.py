"""Switch: hypersphere embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ablation import models
from ablation.training.method import Component, Method
from ablation.types import HeadFactory


@dataclass(frozen=True)
class Hypersphere(models.Hypersphere, Component):
    """Set the head of ``models.Hypersphere``, with its settings, on any method.

    Attacks, KL terms and evaluation see s cos, without the margin (AT+HE and TRADES+HE).
    """

    def apply(self, method: Method) -> Method:
        """Set the head of the method."""
        if self.weights == "projected" and method.ascent is not None:
            raise ValueError(
                "weights=projected: overwrites the weights that component/awp has moved; set "
                "component.hypersphere.weights=normalized or component/awp=disabled"
            )
        return with_head(method, self)


def with_head(method: Method, head: HeadFactory) -> Method:
    """Set the head of a method.

    Raises:
        ValueError: another component has set one.
    """
    if method.head is not None:
        raise ValueError(
            "a network has one head; set component/hypersphere=disabled or "
            "component/large_margin_softmax=disabled"
        )
    return replace(method, head=head)
