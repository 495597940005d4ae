"""BatchNorm in training mode with the statistics of the whole batch, on all ranks.

torch's ``SyncBatchNorm`` needs CUDA and cannot be differentiated twice. This one is made of
operations that can, so that gradients with respect to the input, as of a Taylor margin, are those
of one process, too: they go through the statistics to the samples of the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ablation.ranks import Ranks, present


@contextmanager
def synchronised() -> Iterator[None]:
    """Let BatchNorm in training mode take the statistics of all present ranks; also a decorator."""
    ranks = present()
    with nullcontext() if ranks.alone else Synchronised(ranks):
        yield


class Synchronised(TorchFunctionMode):
    """Within it, ``F.batch_norm`` takes the statistics of the batches of all ranks.

    Each rank must make the same passes in the same order; its batch may be empty.

    Args:
        ranks: more than one.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``batch_norm`` for torch's, else ``func`` itself."""
        del types
        if func is F.batch_norm:
            return batch_norm(self._ranks, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(
    ranks: Ranks,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` of ``x`` [N, C, ...]; in training mode with the statistics of all ranks."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
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


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape [C] so that it broadcasts over ``x`` [N, C, ...]."""
    return values.view(1, -1, *(1,) * (x.dim() - 2))
