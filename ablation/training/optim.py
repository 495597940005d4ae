"""The optimiser: SGD, its settings, and the learning rate of every step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ablation.models.net import Net
from ablation.training.method import Phase
from ablation.types import Schedule


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


def peak(phase: Phase, lr: float) -> float:
    """A phase's peak learning rate, where the run's is ``lr``."""
    return lr if phase.lr is None else phase.lr


def rates(
    phases: Sequence[Phase], at: int, epoch: float, schedule: Schedule, lr: float, momentum: float
) -> tuple[float, float]:
    """Compute learning rate and momentum of a step.

    Args:
        phases: of the run.
        at: number of the present phase, from 0.
        epoch: finished epochs of the phase, with the fraction of the present one.
        schedule: the run's; it spans the phases that share an optimiser.
        lr: the run's peak learning rate.
        momentum: the optimiser's.
    """
    phase = phases[at]
    first = max((i for i in range(at + 1) if phases[i].optim == "fresh"), default=0)
    last = next((i for i in range(at + 1, len(phases)) if phases[i].optim == "fresh"), len(phases))
    before = sum(each.epochs for each in phases[first:at])
    epochs = sum(each.epochs for each in phases[first:last])
    own, done = phase.schedule or schedule, before + epoch
    return own.lr(peak(phase, lr), done, epochs), own.momentum(momentum, done, epochs)
