"""Set a network's mode, parameter gradients and BatchNorm buffers, and restore them exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ablation.types import AttackMode

BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Set train or evaluation mode, then restore each module's own flag."""
    flags = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def frozen_parameters(net: nn.Module) -> Iterator[None]:
    """Freeze the parameters, so that a backward pass reaches the input only."""
    wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def crafting(net: nn.Module, bn: AttackMode) -> Iterator[None]:
    """Set the mode of an attack: parameters frozen, BatchNorm as ``bn`` says.

    ``eval`` uses running statistics; ``train`` batch statistics, which enter the running ones (as
    in Rice et al.); ``train_frozen`` batch statistics that leave no trace (as in ST-AT).
    """
    saved = buffers(net) if bn == "train_frozen" else None
    with mode(net, bn != "eval"), frozen_parameters(net):
        try:
            yield
        finally:
            if saved is not None:
                restore_buffers(net, saved)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Set evaluation mode with frozen parameters, for attacks on a trained model."""
    with crafting(net, "eval"):
        yield


def buffers(net: nn.Module) -> list[Tensor]:
    """Copy all buffers, in the order of ``net.buffers()``."""
    return [buffer.clone() for buffer in net.buffers()]


@torch.no_grad()
def restore_buffers(net: nn.Module, saved: list[Tensor]) -> None:
    """Restore the buffers that ``buffers(net)`` copied."""
    for buffer, value in zip(net.buffers(), saved, strict=True):
        buffer.data.copy_(value)  # .data: earlier train-mode passes may still be differentiated


class Replaced(TorchFunctionMode):
    """Calls another function in place of ``F.batch_norm`` in training mode."""

    def __init__(self, batch_norm: Callable[..., Tensor]) -> None:
        super().__init__()
        self._batch_norm = batch_norm

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the other function, or ``func`` itself."""
        del types
        given = kwargs or {}
        if func is F.batch_norm and given["training"]:  # torch hands on all but tensors by name
            return self._batch_norm(*args, **given)
        return func(*args, **given)


class MaskedBatchNorm(Replaced):
    """Let BatchNorm in training mode take its statistics of some samples of the batch alone.

    All samples are normalised by them. The numbers of those that count are, up to rounding, what a
    batch of them alone would give, and so are the running statistics; without any that count these
    stay. The host need not know how many count: a batch of them alone has a size that it must wait
    for on a GPU.

    Args:
        counted: which samples count, [N], bool.
    """

    def __init__(self, counted: Tensor) -> None:
        super().__init__(partial(_masked_batch_norm, counted))


def _masked_batch_norm(
    counted: Tensor,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """``F.batch_norm`` in training mode of ``x`` [N, C, ...], see ``MaskedBatchNorm``."""
    del training
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pixels, channels = (0, *range(2, x.dim())), (1, -1) + (1,) * (x.dim() - 2)
    share = counted.to(wide.dtype).view(-1, *(1,) * (x.dim() - 1))
    number = counted.sum() * (x.numel() // (x.shape[0] * x.shape[1]))
    count = number.to(wide.dtype).clamp_min(1)
    mean = (wide * share).sum(pixels) / count
    centred = wide - mean.view(channels)
    var = (centred.square() * share).sum(pixels) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            moved = momentum * (number > 0).to(wide.dtype)
            unbiased = var * (count / (count - 1).clamp_min(1))
            # .data: earlier passes of the step may still be differentiated
            running_mean.data.lerp_(mean.to(running_mean.dtype), moved.to(running_mean.dtype))
            running_var.data.lerp_(unbiased.to(running_var.dtype), moved.to(running_var.dtype))
    out = centred * torch.rsqrt(var + eps).view(channels)
    if weight is not None:
        out = out * weight.view(channels)
    if bias is not None:
        out = out + bias.view(channels)
    return out.to(x.dtype)


class BatchNormReplay:
    """Apply a past pass's batch statistics to the running ones again, without a forward.

    A train-mode pass takes the running statistics r0 to r1 = (1 - m) r0 + m s. Applying s again to
    r2 gives (1 - m) r2 + m s = r1 + (1 - m)(r2 - r0): no batch statistic needs to be recorded.

    Args:
        net: the network, before the pass that is to be replayed.

    Raises:
        ValueError: a BatchNorm layer keeps a cumulative average (momentum None).
    """

    def __init__(self, net: nn.Module) -> None:
        self._layers = [
            m for m in net.modules() if isinstance(m, BatchNorm) and m.track_running_stats
        ]
        if any(layer.momentum is None for layer in self._layers):
            raise ValueError("bn:<view> needs BatchNorm with a momentum, not a cumulative average")
        self._before = self._statistics(clone=True)
        self._after: list[Tensor] = []

    def _statistics(self, clone: bool) -> list[Tensor]:
        # .data: a backward pass uses batch statistics, yet would object to a change of these
        statistics = [
            s.data for m in self._layers for s in (m.running_mean, m.running_var) if s is not None
        ]
        return [s.clone() for s in statistics] if clone else statistics

    def mark(self) -> None:
        """Record the running statistics right after the pass."""
        self._after = self._statistics(clone=True)

    @torch.no_grad()
    def replay(self) -> None:
        """Apply the pass's batch statistics once more."""
        if not self._layers:  # a network without BatchNorm has nothing to replay
            return
        keep = [1.0 - float(m.momentum or 0.0) for m in self._layers for _ in range(2)]
        now = self._statistics(clone=False)
        change = torch._foreach_sub(now, self._before)
        torch._foreach_mul_(change, keep)
        torch._foreach_copy_(now, torch._foreach_add(self._after, change))
        counters = [layer.num_batches_tracked for layer in self._layers]
        if known := [counter for counter in counters if counter is not None]:
            torch._foreach_add_(known, 1)
