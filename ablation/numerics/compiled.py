"""One compiled program for the passes that fill a step; every other pass runs as it is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compile_passes(module: nn.Module, rows: int, *, training: bool) -> None:
    """Compile a module's differentiated passes of whole batches in one mode, in place.

    torch.compile makes another program for each size, mode and gradient state that it meets, and
    a slower one of unknown sizes. So a last batch, a subset, a validation and what takes no
    gradient stay eager: two epochs compile once.

    Args:
        module: takes one tensor [N, ...].
        rows: N of a whole batch.
        training: in training mode, else in evaluation mode.
    """
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # a Taylor margin goes back through a pass twice
    # The compiler asks a point that is searched for its gradient, to guard on there being none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    eager: Callable[[torch.Tensor], Any] = module._call_impl
    compiled = torch.compile(eager, dynamic=False)

    def call(x: torch.Tensor) -> Any:
        if len(x) != rows or module.training != training or not torch.is_grad_enabled():
            return eager(x)
        if x.dim() == 4 and x.shape[1] == 1:  # whose stride means nothing, and would be told apart
            x = x.flatten(1).view(x.shape)
        return compiled(x)

    module._compiled_call_impl = call
