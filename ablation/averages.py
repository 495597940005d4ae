"""Weight averages over training, for evaluation: EMA and SWA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

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
        for floating in (True, False):  # a list of one type is one launch
            averaged, current = (
                [each for each in module.buffers() if each.is_floating_point() == floating]
                for module in (self._model, net)
            )
            if averaged and floating and spec.buffers == "average":
                torch._foreach_lerp_(averaged, current, 1 - decay)
            elif averaged:
                torch._foreach_copy_(averaged, current)
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
        estimate_statistics(self._model, batches())


@torch.no_grad()
def estimate_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate BatchNorm's running statistics anew: means over batches [N, C, H, W].

    The numbers are those of torch's ``update_bn``, which reads how many batches there were from
    the device, in every layer and batch.
    """
    layers = [each for each in net.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    training, momenta = net.training, [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
    net.train()
    try:
        for number, images in enumerate(batches, 1):
            for layer in layers:
                layer.momentum = 1 / number
            net(images)
    finally:
        net.train(training)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
