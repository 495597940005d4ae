"""The optimiser: SGD, and its settings."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from ablation.models.net import Net


@dataclass(frozen=True)
class Sgd:
    """SGD over all parameters; weight decay is torch's (its gradient is ``weight_decay * theta``).

    Args:
        momentum: in [0, 1).
        nesterov: Nesterov's form; needs momentum.
        weight_decay: at least 0; BatchNorm and biases included, as in the papers' code.
        clip: largest norm of the gradient; ``null`` means no clipping.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError("momentum must lie in [0, 1) and weight_decay must not be negative")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum above 0")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip={self.clip:g} must be positive; null means no clipping")

    def build(self, net: Net, lr: float) -> torch.optim.SGD:
        """The optimiser of a phase."""
        return LightSgd(
            net.parameters(),
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


class LightSgd(torch.optim.SGD):
    """torch's SGD, taken from under the decorators that hide it from torch.compile.

    They import ``torch._dynamo``, which takes longer than importing torch, once per job.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
