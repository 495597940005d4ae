"""GPUs that are there and cannot be used: said loudly, where the CPU would be taken in silence."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from ablation.output import warn

DEVICES = Path("/dev")
"""Where the driver shows its GPUs, as ``nvidia0``."""


@cache
def warn_of_idle_gpus() -> None:
    """Say once per process that this machine has GPUs that torch cannot use, and why.

    Nothing is said where ``CUDA_VISIBLE_DEVICES`` hides them on purpose.
    """
    there = [path for path in DEVICES.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not there or hidden or torch.cuda.is_available():
        return
    built = torch.version.cuda
    built_for = "is built without CUDA"
    if built:
        built_for = f"is built for CUDA {built}, which the driver may be too old for"
    warn(
        f"warning: this machine has GPUs ({len(there)}) that torch cannot use: the CPU computes; "
        f"torch {torch.__version__} {built_for}: run nvidia-smi and install the torch for its CUDA "
        f"version, or set runtime.device=cpu"
    )
