"""What a config needs outside itself: data folder, device, the run to start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ablation.config import validation
from ablation.config.experiment import Config
from ablation.config.folders import has_file
from ablation.data import Extent, check_batch_size, check_sizes
from ablation.errors import InputError


def init_problems(config: Config) -> list[str]:
    """Check that the run to start from is finished."""
    if config.init_from is None:
        return []
    weights = Path(config.init_from).expanduser() / "checkpoints" / "last.safetensors"
    if has_file(weights):
        return []
    return [f"init_from={config.init_from}: no finished run there ({weights} is missing)"]


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed config, its data folder and device; nothing is read or started."""
    config, problems = validation.check(container)
    if config is None:
        return problems
    extent = config.data.source.extent(config.data_root)
    return [*problems, *outside_problems(config), *size_problems(config, extent)]


def outside_problems(config: Config) -> list[str]:
    """Problems outside the config: the run to start from, the data folder, the device."""
    return [
        *init_problems(config),
        *config.data.source.check(config.data_root),
        *device_problems(config.runtime.device),
    ]


def size_problems(config: Config, extent: Extent | None) -> list[str]:
    """Check split and batch against the training set, if its size is known before it is read."""
    if extent is None:
        return []
    node, problems = config.data, list[str]()
    val_size, train_size = node.val_size, node.train_size

    def fits(check: Callable[..., None], *sizes: int | None) -> bool:
        try:
            check(*sizes)
        except InputError as error:
            problems.append(str(error))
            return False
        return True

    # What does not fit is left out of what the others are held against.
    if not fits(check_sizes, extent.train, node.classes, val_size, None):
        val_size = 0
    if train_size is not None and not fits(
        check_sizes, extent.train, node.classes, val_size, train_size
    ):
        train_size = None
    fits(check_batch_size, config.batch_size, train_size or extent.train - val_size)
    return problems


def device_problems(name: str) -> list[str]:
    """Check that the device exists."""
    if name in ("auto", "cpu"):
        return []
    if not name.startswith("cuda"):
        return [f"runtime.device={name}: choose auto, cpu, cuda or cuda:<index>"]
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        return [f"runtime.device={name}: {count} CUDA devices are visible; set runtime.device=auto"]
    return []
