"""BatchNorm in training mode where several ranks share a batch.

torch's ``SyncBatchNorm`` needs CUDA and cannot be differentiated twice. ``synchronised`` is made of
operations that can, so that gradients with respect to the input, as of a Taylor margin, are those
of one process, too: they go through the statistics to the samples of the other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.numerics.modes import Replaced
from ablation.ranks import Ranks, present
from ablation.types import Statistics


@contextmanager
def batch_statistics(kind: Statistics) -> Iterator[None]:
    """Let BatchNorm in training mode take these statistics; with one rank both are its own.

    Each rank must make the same passes in the same order; its part of a pass may be empty.
    """
    ranks = present()
    if ranks.alone:
        yield
        return
    with Replaced(partial(synchronised if kind == "synchronised" else of_replica, ranks)):
        yield


def synchronised(
    ranks: Ranks,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` of ``x`` [N, C, ...] with mean and variance over the samples of all ranks.

    Running statistics are those of one process that has them all.
    """
    del training
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = [0, *range(2, x.dim())]
    own = values.new_full((1,), x.numel() / x.shape[1])
    sums = ranks.sum(torch.cat([values.sum(dims), own]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - _per_channel(mean, x)
    # The squares of centred values, in a second message: a difference of large sums is not exact.
    variance = ranks.sum(centred.square().sum(dims)) / count
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1).clamp_min(1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    out = centred * _per_channel(scale, x)
    if bias is not None:
        out = out + _per_channel(bias, x)
    return out.to(x.dtype)


def of_replica(
    ranks: Ranks,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """``F.batch_norm`` of each rank's own samples, as DataParallel has it in the papers' code.

    The running statistics of all ranks are those of the first, as of DataParallel's first replica.
    An empty part leaves them as they are.
    """
    moved = (running_mean, running_var) if len(x) else (None, None)
    out = F.batch_norm(x, *moved, *args, **kwargs)
    ranks.copy_first([s for s in (running_mean, running_var) if s is not None])
    return out


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape [C] so that it broadcasts over ``x`` [N, C, ...]."""
    return values.view(1, -1, *(1,) * (x.dim() - 2))
