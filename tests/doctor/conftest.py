"""The doctor at its smallest: one case of each kind, and nothing learned or compiled anew."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ablation.commands.cli import searching
from ablation.doctor import (
    agreement,
    attacks,
    precision,
    ratios,
    reference,
    resume,
    setting,
    speed,
    verdicts,
    waits,
    ways,
)
from ablation.doctor.setting import Configs, Pupil, Setting
from tests.support.pretended_cuda import Log, pretending


@pytest.fixture(scope="package")
def pupil() -> Pupil:
    with pytest.MonkeyPatch.context() as patch, searching(None):
        patch.setattr(setting, "LESSONS", 60)
        return setting.learned(Configs())


@pytest.fixture(scope="module")
def configs() -> Iterator[Configs]:
    with searching(None):
        yield Configs()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, pupil: Pupil) -> None:
    """One case of each kind, whose attacks are short."""
    composed = Configs.__call__

    def short(self: Configs, *more: str) -> Any:
        search = ["component.fab_margin.steps=2"] if "method=dyart" in more else []
        return composed(self, *more, "attack.steps=2", "attack.step_size=eps/2", *search)

    monkeypatch.setattr(Configs, "__call__", short)
    monkeypatch.setattr(setting, "learned", lambda configs: pupil)
    monkeypatch.setattr(reference, "STEPS", 2)
    monkeypatch.setattr(reference, "STEP", reference.EPS / 2)
    monkeypatch.setattr(resume, "CASES", {"lma_at": resume.CASES["lma_at, a memory"]})
    monkeypatch.setattr(ratios, "OFFICIAL", {"at": ()})
    monkeypatch.setattr(ways, "no_compiler", lambda setting: "not compiled in tests")
    monkeypatch.setattr(speed, "NETS", ("mlp",))
    monkeypatch.setattr(attacks, "EMR", ("approximate",))
    parts, some = ("apgd_ce", "fast_apgd_ce"), ("clean", "pgd")
    monkeypatch.setattr(attacks, "PARTS", {name: attacks.PARTS[name] for name in parts})
    monkeypatch.setattr(verdicts, "ATTACKS", {name: verdicts.ATTACKS[name] for name in some})


@pytest.fixture
def on_cpu(configs: Configs, small: None) -> Setting:
    return Setting(torch.device("cpu"), True, configs)


@pytest.fixture
def on_gpu(
    configs: Configs, small: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Setting, Log]]:
    """A pretended GPU, and what it was asked for; the CPU's part is computed aside."""
    aside(monkeypatch, agreement, "walk", lambda config, setting, device: device)
    aside(monkeypatch, verdicts, "robust", lambda s, net, *_: next(net.parameters()).device)
    aside(monkeypatch, precision, "gradients", lambda s, batch, *_: batch.x.device)
    aside(monkeypatch, precision, "penalty", lambda s, batch: batch.x.device)
    for name, value in (("max_memory_allocated", 2**30), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    with pretending() as log:
        monkeypatch.setattr(waits, "waits", lambda step: noted(log, step))
        yield Setting(torch.device("cuda"), True, configs), log


def noted(log: Log, step: Callable[[], object]) -> list[str]:
    """The places of a step's waits on the pretended GPU."""
    log.clear()
    step()
    return [wait.place for wait in log.waits]


def aside(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, device_of: Callable[..., Any]
) -> None:
    """Run a function on the CPU in a thread of its own: the pretended GPU is of one thread."""
    real = getattr(module, name)

    def call(*arguments: Any) -> Any:
        if device_of(*arguments).type != "cpu":
            return real(*arguments)
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(context.run, real, *arguments).result()

    monkeypatch.setattr(module, name, call)
