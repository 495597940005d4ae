"""A job with several devices: its processes end together, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ablation.config.validation import load
from ablation.errors import DONE, INTERRUPTED, JOB_FAILED
from ablation.jobs import ranks
from ablation.jobs import train as job
from ablation.jobs.ranks import Launched, called, dismissing, watch
from ablation.ranks import Ranks
from ablation.training.engine import Engine
from tests.support.jobs import metrics, plain, run_of, weights

TWO = ("runtime.devices=2", "epochs=2", "data.train_size=300", "monitor.enabled=false")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    container = plain(tmp_path_factory.mktemp("whole"), *TWO)
    assert job.train(container) == DONE
    return container


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that a job starts."""
    found, start = [], ranks._start

    def started(*args: Any) -> subprocess.Popen[bytes]:
        found.append(start(*args))
        return found[-1]

    monkeypatch.setattr(ranks, "_start", started)
    return found


def signalling(
    monkeypatch: pytest.MonkeyPatch, others: list[subprocess.Popen[bytes]], number: int
) -> None:
    """Send the other rank a signal after the third step."""
    original = Engine._after_step

    def after(self: Engine, *args: Any) -> None:
        if self.position.step == 2:
            os.kill(others[-1].pid, number)
            time.sleep(1)
        original(self, *args)

    monkeypatch.setattr(Engine, "_after_step", after)


def test_the_run_is_that_of_one_device(whole: dict[str, Any]) -> None:
    alone = {**whole, "runtime": {**whole["runtime"], "devices": 1}}
    assert run_of(alone).path == run_of(whole).path
    rows = metrics(run_of(whole))
    assert [row["epoch"] for row in rows] == [0, 1]
    assert {"val_clean", "val_robust", "loss_ce", "train_robust"} <= rows[0].keys()


def test_replicas_are_other_weights_for_each_number_of_devices(whole: dict[str, Any]) -> None:
    ids = {
        load(
            {**whole, "runtime": {**whole["runtime"], "batch_norm": kind, "devices": devices}}
        ).train_id
        for kind in ("synchronised", "replica")
        for devices in (2, 4)
    }
    assert len(ids) == 3


@pytest.mark.slow
def test_a_signal_to_another_rank_stops_and_saves_and_it_resumes_to_the_same_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], others: Any
) -> None:
    container = plain(tmp_path, *TWO)
    with monkeypatch.context() as patch:
        signalling(patch, others, signal.SIGTERM)
        assert job.train(container) == INTERRUPTED
    assert others[-1].wait() == INTERRUPTED
    run = run_of(container)
    assert run.status().state == "interrupted"  # type: ignore[union-attr]
    assert "and saved" in run.status().error  # type: ignore[union-attr, operator]
    assert job.train(container) == DONE
    assert weights(run) == weights(run_of(whole))
    assert metrics(run) == metrics(run_of(whole))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_as_interrupted(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, others: Any, capsys: Any
) -> None:
    container = plain(tmp_path, *TWO)
    signalling(monkeypatch, others, signal.SIGKILL)
    assert job.train(container) == INTERRUPTED
    status = run_of(container).status()
    assert status is not None
    assert status.state == "interrupted"
    assert "last checkpoint" in str(status.error)
    assert "2 main epochs on 2 x cpu" in capsys.readouterr().out


def test_a_rank_that_cannot_start_fails_the_run(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = plain(tmp_path, *TWO)
    monkeypatch.setattr(ranks, "FOLLOWER", "ablation.no_such_module")
    assert job.train(container) == JOB_FAILED
    status = run_of(container).status()
    assert status is not None
    assert status.state == "failed"


def test_a_lost_rank_that_nobody_notices_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        over.set()

    over, reasons = threading.Event(), list[str]()
    monkeypatch.setattr(os, "_exit", end)
    gone = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    watch([gone], over, reasons.append, grace=0.1)
    assert ended == [INTERRUPTED]
    assert "ended with 3" in reasons[0]


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that torchrun gives rank 0 of two, without a server of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    ranks._meeting.cache_clear()
    return place


def test_ranks_that_have_nothing_to_train_are_sent_away(torchrun: dict[str, str]) -> None:
    assert Launched.here().ranks == Ranks(0, 2)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(called, Launched(Ranks(1, 2), 1))
        with dismissing(Launched.here()):
            pass
        assert other.result(60) is None


@pytest.mark.slow
def test_under_torchrun_the_ranks_that_are_there_train(
    tmp_path: Any, torchrun: dict[str, str], whole: dict[str, Any]
) -> None:
    container = plain(tmp_path, *TWO)
    other = subprocess.Popen(
        [sys.executable, "-c", FOLLOW.format(container)], env={**os.environ, "RANK": "1"}
    )
    assert job.train(container) == DONE
    assert other.wait() == DONE
    assert weights(run_of(container)) == weights(run_of(whole))


FOLLOW = """
from ablation.jobs import train
import torch
torch.set_num_threads(1)
raise SystemExit(train.train({}))
"""
