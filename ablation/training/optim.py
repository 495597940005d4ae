"""The optimisers, their settings, and the learning rate of every step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from ablation.models.net import Net
from ablation.training.method import Phase
from ablation.types import Schedule


@dataclass(frozen=True)
class Sgd:
    """SGD over all parameters; weight decay is torch's (its gradient is ``weight_decay * theta``).

    Args:
        lr: the peak learning rate usually used with it; the run's ``lr`` defaults to it.
        momentum: in [0, 1).
        nesterov: Nesterov's form; needs momentum.
        weight_decay: at least 0; BatchNorm and biases included, as in the papers' code.
        clip: largest norm of the gradient; ``null`` means no clipping.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError("momentum must lie in [0, 1) and weight_decay must not be negative")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum above 0")
        _check_clip(self.clip)

    @property
    def moments(self) -> int:
        """Numbers that it keeps of each weight."""
        return 1 if self.momentum else 0

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

    def set_rates(self, optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
        """Set what a schedule says of a step."""
        for group in optimizer.param_groups:
            group["lr"], group["momentum"] = lr, momentum


@dataclass(frozen=True)
class AdamW:
    """torch's AdamW over all parameters (Loshchilov and Hutter, 2019): its decay meets no moment.

    A step takes ``lr * weight_decay * theta`` off the weights, BatchNorm's and biases' too.

    Args:
        lr: as of ``Sgd``.
        betas: decay of the first and the second moment of the gradient, in [0, 1). A schedule that
            cycles the momentum cycles the first, as torch does.
        eps: added to the root of the second moment; above 0.
        weight_decay: at least 0.
        clip: largest norm of the gradient; ``null`` means no clipping.
    """

    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    clip: float | None = None

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)}: two in [0, 1), such as [0.9,0.999]")
        if self.eps <= 0 or self.weight_decay < 0:
            raise ValueError("eps must be positive and weight_decay must not be negative")
        _check_clip(self.clip)

    @property
    def momentum(self) -> float:
        """What takes the place of SGD's momentum."""
        return self.betas[0]

    @property
    def moments(self) -> int:
        """Numbers that it keeps of each weight."""
        return 2

    def build(self, net: Net, lr: float) -> torch.optim.AdamW:
        """The optimiser of a phase."""
        return LightAdamW(
            net.parameters(),
            lr=lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def set_rates(self, optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
        """Set what a schedule says of a step."""
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = lr, (momentum, self.betas[1])


Optim = Annotated[Sgd | AdamW, "named"]
"""``_target_`` says which; without one it is the first. ``config/parser.py`` parses it."""


def _check_clip(clip: float | None) -> None:
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip:g} must be positive; null means no clipping")


class _Light(torch.optim.Optimizer):
    """torch's optimiser, taken from under the decorators that hide it from torch.compile.

    They import ``torch._dynamo``, which takes longer than importing torch, once per job.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class LightSgd(_Light, torch.optim.SGD):
    """torch's SGD without its decorators."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class LightAdamW(_Light, torch.optim.AdamW):
    """torch's AdamW without its decorators."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


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
