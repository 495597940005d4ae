"""Stochastic weight averaging."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ablation.types import Average, Clock


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
        """Start from the present weights."""
        return SwaAverage(self, net)


class SwaAverage:
    """The running mean; see ``Swa``."""

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
        """Take in the weights after a step."""
        self.count = self.count + 1 if clock.epoch >= self._spec.start else 0
        share = 1.0 / max(1, self.count)
        torch._foreach_lerp_(list(self._model.parameters()), list(net.parameters()), share)

    def prepare(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Estimate BatchNorm's statistics of the averaged weights."""
        update_bn(batches(), self._model)
