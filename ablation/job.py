"""One run from config to result: data, network, training, evaluation, records.

The entry points are thin; this is what they call. A run is resumable at every step, and everything
it learns is on disk before it is printed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ablation import config as configuration
from ablation.checkpoint import Snapshot, load_into
from ablation.config import CheckpointName, Config, EvaluationConfig, digest, load
from ablation.data import DeviceLoader, ImageSet, Split, check_labels, load_split, save_split
from ablation.data import stratified_split
from ablation.engine import Engine, Recipe, precision_context
from ablation.errors import DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.errors import InterruptedRunError, NonFiniteError
from ablation.evaluation import Pgd, Request, evaluate
from ablation.models import Net, build_model
from ablation.progress import Progress, summary_table
from ablation.runs import Run, stop_on_signals
from ablation.schema import plain, show_fraction
from ablation.tracking import Tracker, start

STREAM_SUBSET = "selection"


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed config, its data folder and device; nothing is read or started."""
    config, problems = configuration.check(container)
    if config is not None:
        problems += config.data.source.check(Path(config.data_dir))
        problems += device_problems(config.runtime.device)
    return problems


def device_problems(name: str) -> list[str]:
    """Is the device there?"""
    if name in ("auto", "cpu"):
        return []
    if not name.startswith("cuda"):
        return [f"runtime.device={name}: choose auto, cpu, cuda or cuda:<index>"]
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        return [f"runtime.device={name}: {count} CUDA devices are visible; set runtime.device=auto"]
    return []


def pick_device(name: str) -> torch.device:
    """The device a name stands for; ``auto`` prefers a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def numerics(runtime: configuration.RuntimeConfig) -> Iterator[None]:
    """Global switches of a run, put back afterwards."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    allow = runtime.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    torch.backends.cudnn.benchmark = not runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = benchmark
        if runtime.deterministic:
            torch.use_deterministic_algorithms(False)


def eval_id(evaluation: EvaluationConfig, eps: float, norm: str) -> str:
    """Hash of one evaluation; which checkpoint it is run on is not part of it."""
    node = plain(evaluation)
    del node["checkpoints"]
    return digest({**node, "eps": eps, "norm": norm})
