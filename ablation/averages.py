"""Weight averages over training, for evaluation: EMA and SWA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ablation.types import Average, Clock


@dataclass(frozen=True)
class Ema:
    """theta_avg <- d * theta_avg + (1 - d) * theta after every step.

    Args:
        decay: d, in [0, 1).
        warmup: use d_k = min(decay, (1 + k) / (10 + k)) at update k, so that the start is forgotten
            (the DyART and Rade code).
        buffers: BatchNorm statistics are a ``copy`` of the network's (as in that code) or an
            ``average`` like the weights.
    """

    decay: float = 0.995
    warmup: bool = True
    buffers: Literal["copy", "average"] = "copy"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay:g} must lie in [0, 1)")

    def attach(self, net: nn.Module) -> Average:
        """Start the average from the network's present weights."""
        return EmaAverage(self, net)


class EmaAverage:
    """Exponential moving average of a network's weights, with the settings of ``Ema``."""

    def __init__(self, spec: Ema, net: nn.Module) -> None:
        self._spec = spec
        self._model = copy.deepcopy(net).requires_grad_(False).eval()
        self.count = 0

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        return self._model

    @torch.no_grad()
    def update(self, net: nn.Module, clock: Clock) -> None:
        """Update the average with the weights after a step."""
        del clock
        spec, k = self._spec, self.count
        decay = min(spec.decay, (1 + k) / (10 + k)) if spec.warmup else spec.decay
        torch._foreach_lerp_(list(self._model.parameters()), list(net.parameters()), 1 - decay)
        for averaged, current in zip(self._model.buffers(), net.buffers(), strict=True):
            if spec.buffers == "average" and averaged.is_floating_point():
                averaged.lerp_(current, 1 - decay)
            else:
                averaged.copy_(current)
        self.count += 1

    def prepare(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Leave the BatchNorm statistics: they follow the network's."""


@dataclass(frozen=True)
class Swa:
    """Plain mean of the weights after every step from epoch ``start`` on (Izmailov et al., 2018).

    BatchNorm statistics are estimated anew on training images before every evaluation.

    Args:
        start: first epoch (0-based) whose weights count. Epochs count within a phase: before
            ``start`` the average follows the network, and a new phase begins a new mean.
    """

    start: int = 0

    def attach(self, net: nn.Module) -> Average:
        """Start the average from the network's present weights."""
        return SwaAverage(self, net)


class SwaAverage:
    """Plain mean of a network's weights, with the settings of ``Swa``."""

    def __init__(self, spec: Swa, net: nn.Module) -> None:
        self._spec = spec
        self._model = copy.deepcopy(net).requires_grad_(False).eval()
        self.count = 0

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        return self._model

    @torch.no_grad()
    def update(self, net: nn.Module, clock: Clock) -> None:
        """Update the average with the weights after a step."""
        self.count = self.count + 1 if clock.epoch >= self._spec.start else 0
        share = 1.0 / max(1, self.count)
        torch._foreach_lerp_(list(self._model.parameters()), list(net.parameters()), share)

    def prepare(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Estimate the BatchNorm statistics of the averaged weights on training images."""
        update_bn(batches(), self._model)
