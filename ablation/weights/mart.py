"""MART's weight on the divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ablation.numerics.functional import Constants, true_value
from ablation.types import Views


@dataclass(frozen=True)
class OneMinusTrueProbability:
    """1 - p_y(view), shape [N] (MART, eq. 8): uncertain clean examples count more.

    Gradient flows through the weight, as in mart.py.

    Args:
        view: whose prediction.
        constants: ``official`` takes 1.0000001 - p_y as mart.py does.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its view must hold all of them."""

    view: str = "nat"
    constants: Constants = "exact"

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Weights [N]."""
        one = 1.0 if self.constants == "exact" else 1.0000001
        return one - true_value(F.softmax(views.logits(self.view), 1), views.y(self.view))
