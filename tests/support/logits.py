"""Logits and labels of the numeric cases."""

from __future__ import annotations

import torch
from torch import Tensor

from ablation.training.memory import Memories
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Crafted, Output
from tests.support.parts import small_net

LATE = Clock(10**6, 0)
"""A step after every warm-up."""
Z_ADV = torch.tensor([[2.0, 1, 0], [0.5, 1.5, 1.0]], dtype=torch.float64)
Z = torch.tensor([[3.0, 1, 0], [0, 1, 2]], dtype=torch.float64)
Y = torch.tensor([0, 2])
"""Fixture F1: C = 3, B = 2."""


def given(
    z: Tensor, z_adv: Tensor, y: Tensor, clock: Clock = LATE, memories: Memories | None = None
) -> StepViews:
    """The logits of a clean and an adversarial pass, without a forward of the network."""
    x = torch.zeros(len(y), 2, 5, 5, dtype=torch.float64)
    batch = Batch(x, y, torch.arange(len(y)))
    views = StepViews(small_net(), batch, clock, torch.enable_grad, memories=memories)
    views.add("adv", Crafted(x))
    views._outputs = {"nat": Output(z, z), "adv": Output(z_adv, z_adv)}
    return views
