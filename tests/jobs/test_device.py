"""Whole runs on a pretended GPU: they wait between steps alone, and have the numbers of a CPU."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ablation.averages import EmaAverage, SwaAverage
from ablation.errors import DONE
from ablation.jobs import setup
from ablation.jobs import train as job
from ablation.jobs.monitor import Monitor
from ablation.training.engine import Engine
from ablation.training.searches import Searches
from tests.support.jobs import finish_interrupted, plain, run_of, weights
from tests.support.pretended_cuda import NAME, Log, pretending

LIMITS = {
    "fit": 0,
    "_first": 1,  # of each captured search, which is compared with its own first run
    "prepare_average": 0,  # steps, and SWA's pass over the training images
    "_check_weights": 1,
    "_save": 1,
    "_keep": 1,
    "monitor": 1,
    "_end_of_epoch": 7,  # the epoch's sums
}
"""Waits of each call of a stage of training, without the stages within it."""


@contextmanager
def staged(monkeypatch: pytest.MonkeyPatch, log: Log) -> Iterator[Counter[str]]:
    """Name the stages of training in the log; yields how often each ran."""
    calls: Counter[str] = Counter()
    names = ("fit", "_resume", "_end_of_epoch", "_interrupt", "_save", "_keep", "_check_weights")
    stages: list[tuple[Any, str]] = [(Engine, name) for name in names]
    stages += [(Searches, "_first"), (SwaAverage, "prepare"), (EmaAverage, "prepare")]
    stages += [(Monitor, "__call__"), (setup, "evaluate")]
    titles = {"prepare": "prepare_average", "__call__": "monitor"}

    def wrapped(function: Any, stage: str) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            calls[stage] += 1
            with log.during(stage):
                return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in stages:
            patch.setattr(owner, name, wrapped(getattr(owner, name), titles.get(name, name)))
        yield calls


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_a_run_waits_between_its_steps_alone(average, tmp_path, monkeypatch):
    container = plain(
        tmp_path,
        *("scale=smoke", "method=trades", "component/margin_weighted_epsilon=enabled"),
        "component.margin_weighted_epsilon.start=0",
        *(f"average={average}", "augment=crop_flip", "monitor.effective_margin=true"),
        *("monitor.curves=[val]", "runtime.device=cuda", "evaluation=none"),
    )
    with pretending() as log, staged(monkeypatch, log) as calls:
        run = finish_interrupted(monkeypatch, container, 2)
    assert not log.refused
    status = run.status()
    assert status is not None
    assert (status.facts["device"], status.facts["gpu"]) == ("cuda", NAME)
    assert calls["_end_of_epoch"] == 2
    assert calls["_save"] > 2
    waits = Counter(wait.stage for wait in log.waits)
    over = [stage for stage, limit in LIMITS.items() if waits[stage] > limit * calls[stage]]
    assert [wait for wait in log.waits if wait.stage in over] == []
    on_cpu = container | {"runs_dir": str(tmp_path / "cpu")}
    on_cpu["runtime"] = container["runtime"] | {"device": "cpu"}
    assert job.train(on_cpu) == DONE
    assert weights(run) == weights(run_of(on_cpu))


def test_every_attack_runs_on_a_gpu(tmp_path):
    container = plain(
        tmp_path,
        *("scale=smoke", "method=standard", "runtime.device=cuda", "evaluation=autoattack"),
        *("+evaluation.attacks.fgsm={_target_: ablation.evaluation.Fgsm}", "epochs=1"),
    )
    with pretending() as log:
        assert job.train(container) == DONE
    assert not log.refused
