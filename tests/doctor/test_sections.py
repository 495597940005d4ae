"""Each section notices a fault that is planted for it, and finds none without."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.crafters import Pgd as TrainingPgd
from ablation.doctor import (
    agreement,
    lines,
    precision,
    ratios,
    resume,
    speed,
    verdicts,
    waits,
    ways,
)
from ablation.doctor.flops import Flops
from ablation.doctor.lines import Line
from ablation.doctor.setting import CPU, Setting, Trainee
from ablation.doctor.stores import Shelf
from ablation.evaluation import Pgd
from ablation.random import draw, generator, noting, repeating
from ablation.terms import KL, CrossEntropy

Case = ways.Case


def verdicts_of(found: Iterator[Line]) -> dict[str, str]:
    return {line.name: line.verdict for line in found}


@pytest.fixture
def few_methods(monkeypatch) -> None:
    only(["standard", "at", "trades", "dyart"], monkeypatch)


@pytest.fixture
def two_methods(monkeypatch) -> None:
    only(["at", "trades"], monkeypatch)


def only(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.doctor.setting.Configs.methods", lambda self: names)


def on_a_gpu(plant: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A result that is changed where it lies on a GPU."""
    return lambda value: plant(value) if value.device.type == "cuda" else value


@pytest.mark.slow
def test_every_method_makes_the_cpus_step_on_a_pretended_gpu(on_gpu):
    setting, log = on_gpu
    found = verdicts_of(agreement.examine(setting))
    assert set(found) == set(setting.configs.methods()) > {"at", "trades", "dyart", "st_at"}
    assert set(found.values()) == {"ok"}
    assert log.refused == []


def test_a_method_whose_step_differs_is_noticed(on_gpu, two_methods, monkeypatch):
    real, changed = KL.__call__, on_a_gpu(lambda loss: loss * (1 + 1e-6))
    monkeypatch.setattr(KL, "__call__", lambda self, views: changed(real(self, views)))
    found = verdicts_of(agreement.examine(on_gpu[0]))
    assert found.pop("trades") == "FAILED"
    assert set(found.values()) == {"ok"}


def test_another_number_of_draws_is_noticed(on_gpu, few_methods, monkeypatch):
    real = TrainingPgd.__call__

    def twice(self: Any, views: Any, eps: Any, rng: Any) -> Any:
        if eps.device.type == "cuda":
            real(self, views, eps, rng)
        return real(self, views, eps, rng)

    monkeypatch.setattr(TrainingPgd, "__call__", twice)
    found = {line.name: line for line in agreement.examine(on_gpu[0])}
    assert found["at"].verdict == "FAILED"
    assert "not drawn before" in found["at"].text
    assert found["standard"].verdict == "ok"


def test_an_attack_that_fails_on_a_gpu_is_noticed(on_gpu, monkeypatch):
    assert set(verdicts_of(verdicts.examine(on_gpu[0])).values()) == {"ok"}
    real = Pgd.__call__

    def weak(self: Any, predict: Any, x: Any, *rest: Any, **more: Any) -> Any:
        return x if x.device.type == "cuda" else real(self, predict, x, *rest, **more)

    monkeypatch.setattr(Pgd, "__call__", weak)
    assert verdicts_of(verdicts.examine(on_gpu[0])) == {"clean": "ok", "pgd": "FAILED"}


@pytest.mark.slow
def test_waits_are_found_and_those_that_are_documented_pass(on_gpu, few_methods, monkeypatch):
    found = {line.name: line for line in waits.examine(on_gpu[0])}
    assert {line.verdict for line in found.values()} == {"ok"}
    assert found["dyart"].text.startswith("one, as documented: found boundary points")
    assert found["at"].text.startswith("none")

    def waiting(loss: Any) -> Any:
        float(loss.sum())
        return loss

    real = KL.__call__
    monkeypatch.setattr(KL, "__call__", lambda self, views: waiting(real(self, views)))
    assert verdicts_of(waits.examine(on_gpu[0]))["trades"] == "FAILED"


def test_two_waits_where_one_is_documented_are_too_many():
    known = "crafters/boundary.py:1"
    assert waits.judge("dyart", [known], [known]).verdict == "ok"
    assert waits.judge("dyart", [known, known]).verdict == "FAILED"
    assert waits.judge("dyart", [known, "terms/kl.py:2"]).verdict == "FAILED"


def test_what_torch_says_of_a_wait_is_read(monkeypatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(waits, "PACKAGE", Path(__file__).parent)
    text = "called a synchronizing CUDA operation"

    def step() -> None:
        if modes[-1] == "error":
            raise RuntimeError(text)
        warnings.warn(text, stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    (place,) = waits.waits(step)
    assert place.startswith("test_sections.py:")
    assert modes == ["error", "default"]
    monkeypatch.setattr(waits, "KNOWN", {"test_sections.py": "documented"})
    assert len(waits.waits(step)) == 1
    assert modes[2:] == ["error", "warn", "default", "default"]
    assert waits.waits(lambda: None) == []
    with pytest.raises(RuntimeError, match="another"):
        waits.waits(lambda: (_ for _ in ()).throw(RuntimeError("another")))


@pytest.mark.slow
def test_rounding_is_noticed(on_gpu, monkeypatch):
    found = verdicts_of(precision.examine(on_gpu[0]))
    assert found.pop("tf32") == "measured"
    assert set(found.values()) == {"ok"}
    real = precision.on

    def rounded(batch: Any, device: Any) -> Any:
        there = real(batch, device)
        return replace(there, x=there.x.bfloat16().float())

    monkeypatch.setattr(precision, "on", rounded)
    found = verdicts_of(precision.examine(on_gpu[0]))
    assert found["fp32"] == found["EMR in tf32"] == "FAILED"


def test_evaluation_that_rounds_is_noticed(on_cpu, monkeypatch):
    assert precision.evaluation(on_cpu).verdict == "ok"
    monkeypatch.setattr(
        precision, "exact_arithmetic", lambda device: torch.autocast("cpu", torch.bfloat16)
    )
    assert precision.evaluation(on_cpu).verdict == "FAILED"


def test_a_resume_that_differs_is_noticed(on_cpu, monkeypatch):
    def load(self: Shelf) -> Any:
        if self.saved is not None:
            for value in self.saved.weights.values():
                value.add_(1e-6) if value.is_floating_point() else None
        return self.saved

    monkeypatch.setattr(Shelf, "load", load)
    (line,) = resume.examine(on_cpu)
    assert line.verdict == "FAILED"
    assert line.figures["repeated"] == 0
    assert line.text.startswith("repeated: the same bits, resumed: other bits in ")


def test_a_run_that_does_not_repeat_is_noticed(on_cpu, monkeypatch):
    real, calls = CrossEntropy.__call__, iter(range(10**6))

    def drifting(self: Any, views: Any) -> Any:
        return real(self, views) * (1 + 1e-6 * next(calls))

    monkeypatch.setattr(CrossEntropy, "__call__", drifting)
    monkeypatch.setattr(resume, "CASES", {"at": ("method=at",)})
    (line,) = resume.examine(on_cpu)
    assert line.verdict == "FAILED"
    assert line.figures["repeated"]


@pytest.mark.slow
def test_bits_are_compared_on_a_pretended_gpu(on_gpu):
    assert verdicts_of(resume.examine(on_gpu[0])) == {"lma_at": "ok", resume.LOOSE: "measured"}


@pytest.mark.slow
def test_captured_searches_agree_on_a_pretended_gpu(on_gpu, few_methods):
    found = {line.name: line for line in ways.examine(on_gpu[0])}
    assert found.pop("standard, captured").text == "it has no search to capture"
    assert found.pop("compiled").verdict == "skipped"
    assert len(found) == 5
    assert {line.verdict for line in found.values()} == {"ok"}


class Stale:
    """Replays what the first replay found."""

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return cache(run)


class Refused:
    """Captures nothing."""

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("a planted refusal")


class Other:
    """Captures something else."""

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: replace(run(), x=run().x + 0.1)


@pytest.mark.parametrize(
    ("capture", "text"),
    [(Stale, "above"), (Refused, "a planted refusal"), (Other, "finds other points")],
)
def test_a_capture_that_is_wrong_is_noticed(capture, text, on_cpu, monkeypatch):
    monkeypatch.setattr(ways, "Graphs", capture)
    line = ways.captured(on_cpu, Case("trades", "captured"))
    assert line.verdict == "FAILED"
    assert text in line.text


def test_methods_without_a_captured_search_say_why(on_cpu, monkeypatch):
    line = ways.captured(on_cpu, Case("st_at", "captured"))
    assert (line.verdict, line.text) == ("skipped", "batch statistics couple its samples")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_way_that_differs_is_noticed(norm, kind, on_cpu, monkeypatch):
    case = Case("at", "compiled", norm, kind)
    assert ways.beside_eager(on_cpu, case).verdict == "ok"
    assert ways.beside_eager(on_cpu, case, lr=0.3).verdict == "FAILED"


def test_another_reference_step_is_noticed(on_cpu, monkeypatch):
    assert ratios.same(on_cpu, "at", "at").verdict == "ok"
    monkeypatch.setattr("ablation.doctor.reference.STEPS", 1)
    assert ratios.same(on_cpu, "at", "at").verdict == "FAILED"


def test_steps_are_timed_on_a_pretended_gpu(on_gpu, monkeypatch):
    monkeypatch.setattr(speed, "METHODS", ("at",))
    setting = on_gpu[0]
    every = speed.cases(setting)
    assert [each.way for each in every] == ["", "fast=off", "compile=true"]
    monkeypatch.setattr(speed, "cases", lambda setting: every[:2])
    found = list(speed.examine(setting))
    assert [each.name for each in found] == ["tiny mlp, at", "tiny mlp, at, fast=off"]
    assert {each.verdict for each in found} == {"measured"}
    assert all(each.figures["peak_gib"] == 1 for each in found)


def test_operations_of_a_step_are_counted(on_cpu):
    """Two attack steps, each forward and backward to the image; then a training pass."""
    config = on_cpu.full("mlp", "method=at")
    net = Trainee(config, on_cpu.pupil.batch(1, CPU), folded=False).net
    shapes = [(p.shape[0], p.shape[1]) for p in net.parameters() if p.dim() == 2]
    forward = 2 * speed.COUNTED * sum(a * b for a, b in shapes)
    first = 2 * speed.COUNTED * shapes[0][0] * shapes[0][1]
    wanted = 2 * 2 * forward + 3 * forward - first  # the image needs no gradient in the last
    assert speed.operations(on_cpu, config) == wanted


def test_double_backward_is_counted():
    x = torch.rand(3, 4, requires_grad=True)
    w = torch.rand(4, 5, requires_grad=True)
    with Flops() as counter:
        (grad,) = torch.autograd.grad((x @ w).square().sum(), x, create_graph=True)
        assert counter.total == 2 * 2 * 3 * 4 * 5
        grad.square().sum().backward()
    assert counter.total > 4 * 2 * 3 * 4 * 5


def test_without_time_lines_are_skipped_and_memory_is_no_fault(on_cpu, monkeypatch):
    left = iter([1.0, 1.0, 1.0, 0.0, 40.0])
    monkeypatch.setattr(Setting, "left", lambda self: next(left))

    def line(name: str) -> Line:
        if name == "memory":
            raise MemoryError
        if name == "fault":
            raise KeyError("planted")
        return lines.measured(name, "")

    found = list(on_cpu.lines(["fine", "memory", "fault", "late"], line))
    assert [each.verdict for each in found] == ["measured", "skipped", "FAILED", "skipped"]
    assert found[2].text == "KeyError: 'planted'"
    (late,) = on_cpu.lines(["compiled"], line, least=45)
    assert late.verdict == "skipped"


def test_a_section_ends_where_its_time_does(on_cpu):
    on_cpu.until = 0.0
    assert set(verdicts_of(resume.examine(on_cpu)).values()) == {"skipped"}


def test_draws_are_repeated_in_their_order_and_no_others():
    rng, like = generator(0, "test"), torch.zeros(3, dtype=torch.float64)
    with noting() as draws:
        noise, signs = draw(torch.randn, (3,), rng, like), draw(torch.rand, (3, 2), rng, like)
    with repeating(draws):
        assert torch.equal(draw(torch.randn, (3,), rng, like), noise)
        again = draw(torch.rand, (3, 2), generator(1, "another"), like.float())
        assert torch.equal(again, signs.float())
        with pytest.raises(RuntimeError, match="not drawn before"):
            draw(torch.rand, (3,), rng, like)
    for make, shape in ((torch.rand, (3,)), (torch.randn, (4,))):
        with repeating(draws), pytest.raises(RuntimeError, match="not drawn before"):
            draw(make, shape, rng, like)
    assert not torch.equal(draw(torch.randn, (3,), rng, like), noise)


def test_lessons_take_no_time_of_a_section(on_cpu, pupil, monkeypatch):
    def slow(configs: Any) -> Any:
        monkeypatch.setattr("ablation.doctor.setting.time.perf_counter", lambda: 1000.0)
        return pupil

    monkeypatch.setattr("ablation.doctor.setting.time.perf_counter", lambda: 10.0)
    monkeypatch.setattr("ablation.doctor.setting.learned", slow)
    on_cpu.until = 25.0
    assert on_cpu.left() == 15
    assert on_cpu.pupil is pupil
    assert on_cpu.left() == 15
