"""A machine's GPUs that torch cannot use are not passed over in silence."""

from __future__ import annotations

import pytest
import torch

from ablation.jobs.setup import pick_device
from ablation.numerics import devices
from ablation.sweeps.pool import visible_gpus


@pytest.fixture(autouse=True)
def two_idle_gpus(tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.warn_of_idle_gpus.cache_clear()
    yield
    devices.warn_of_idle_gpus.cache_clear()


@pytest.mark.parametrize("built", ["13.2", None])
def test_auto_says_so_once_with_the_remedy(built, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", built)
    assert pick_device("auto").type == "cpu"
    assert pick_device("auto").type == "cpu"
    said = capsys.readouterr().err
    assert said.count("this machine has GPUs (2) that torch cannot use") == 1
    assert ("built for CUDA 13.2" if built else "without CUDA") in said
    assert "set runtime.device=cpu" in said


def test_so_does_a_pool_that_would_start_jobs_on_the_cpu(capsys):
    assert visible_gpus() == []
    assert "that torch cannot use" in capsys.readouterr().err


def test_nothing_is_said_where_nobody_wants_them(monkeypatch, capsys, tmp_path):
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pick_device("auto")
    devices.warn_of_idle_gpus.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for path in tmp_path.glob("nvidia?"):
        path.unlink()
    pick_device("auto")
    assert capsys.readouterr().err == ""
