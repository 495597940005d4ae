"""Tests run on one thread each: they share a machine, and small tensors gain nothing from more."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the processes that tests start
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch
from hypothesis import settings

from ablation.jobs.heap import keep_freed_memory
from tests.support.configs import composer

torch.set_num_threads(1)
keep_freed_memory()  # as a command that computes does

settings.register_profile("untimed", deadline=None)  # tests are never timed
settings.load_profile("untimed")


@pytest.fixture
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planners know what was composed for others, unless a folder of one's own is searched."""
    for place in ("planning", "search"):
        monkeypatch.setattr(f"ablation.sweeps.{place}.Composer", composer)
