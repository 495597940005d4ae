"""Judged batches are kept, shared between processes, and halved where memory runs out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ablation.errors import InterruptedRunError
from ablation.evaluation import (
    ApgdCe,
    Attack,
    AutoAttack,
    Evaluation,
    Fgsm,
    Measure,
    Pgd,
    Request,
    Spsa,
    evaluate,
)
from ablation.evaluation.attacks import AttackBase, Family, Predict
from ablation.evaluation.resume import Judged, Kept
from ablation.types import Norm

ATTACKS = {
    "clean": None,
    "pgd": Pgd(4, 0.25, "uniform"),
    "apgd_ce": ApgdCe(3),
    "aa": AutoAttack("custom", n_iter=3, targets=2, queries=20),
    "spsa": Spsa(4, 2),
}
REQUEST = Request(ATTACKS, eps=0.08, batch_size=7)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


def images(n: int = 30) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, 2, 2, generator=rng)
    return x, network()(x).argmax(1)


def run(folder: Path | None = None, **more: Any) -> Evaluation:
    return evaluate(network(), *images(), REQUEST, partial=folder, **more)


def equal(one: Evaluation, other: Evaluation) -> bool:
    same = one.examples.equals(other.examples)
    return same and (one.entries, one.flags, one.checks) == (
        other.entries,
        other.flags,
        other.checks,
    )


@pytest.mark.parametrize("batches", [0, 1, 5, 12, 20])
def test_an_interruption_loses_one_batch_and_no_verdict(tmp_path, batches):
    whole, judged = run(), list[str]()

    def stop_after(count: float) -> Callable[[], bool]:
        judged.clear()
        return lambda: len([title for title in judged if title != "clean"]) >= count

    def progress(title: str, done: int, total: int) -> None:
        judged.append(title)

    with pytest.raises(InterruptedRunError):
        run(tmp_path / "p", progress=progress, should_stop=stop_after(batches))
    before = [title for title in judged if title != "clean"]
    again = run(tmp_path / "p", progress=progress, should_stop=stop_after(10**9))
    assert equal(again, whole)
    total: list[str] = []
    run(progress=lambda title, done, all_: total.append(title))
    after = [title for title in judged if title != "clean"]
    assert len(before) + len(after) == len([title for title in total if title != "clean"])


def share(folder: Path, done: Any) -> None:
    found = run(folder, shared=True)
    done.put((found.entries, found.flags, found.checks, found.examples))


def test_processes_share_the_batches_and_all_have_the_whole_result(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=share, args=(tmp_path / "p", queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    whole = run()
    for entries, flags, checks, examples in found:
        assert (entries, flags, checks) == (whole.entries, whole.flags, whole.checks)
        assert examples.equals(whole.examples)


def test_no_batch_is_judged_twice_while_its_judge_lives(tmp_path):
    one, other = (Kept(tmp_path / "p", "key", shared=True) for _ in range(2))
    with one.claimed("aa", 0) as mine:
        assert mine
        with other.claimed("aa", 0) as theirs:
            assert not theirs
        with other.claimed("aa", 1) as theirs:
            assert theirs
        one.put("aa", 0, Judged(torch.tensor([True]), torch.tensor([3]), ["odd"]))
    with other.claimed("aa", 0) as theirs:
        assert theirs, "a claim ends with its context, and with its process"
    found = other.get("aa", 0)
    assert found is not None
    assert (found.broken.tolist(), found.became.tolist(), list(found.messages)) == (
        [1],
        [3],
        ["odd"],
    )


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_damaged_verdicts_and_those_of_another_request_are_made_anew(tmp_path, damage):
    whole = run(tmp_path / "p")
    files = sorted((tmp_path / "p").glob("*/*.npz"))
    assert files
    for file in files[::2]:
        file.unlink() if damage is None else file.write_bytes(damage)
    assert equal(run(tmp_path / "p"), whole)
    other = Request(ATTACKS, eps=0.01, batch_size=7)
    changed = evaluate(network(), *images(), other, partial=tmp_path / "p")
    assert changed.entries[1].value > whole.entries[1].value
    assert not any(file.is_file() for file in files), "they belong to no evaluation any more"


def test_a_file_of_an_earlier_version_is_no_obstacle(tmp_path):
    (tmp_path / "p").write_bytes(b"PK")
    assert equal(run(tmp_path / "p"), run())


@dataclass(frozen=True, kw_only=True)
class Greedy(AttackBase):
    """FGSM that takes all memory on more than so many images."""

    kind: ClassVar[str] = "greedy"
    family: ClassVar[Family] = "fixed steps"
    most: int = 3
    error: type[Exception] = torch.OutOfMemoryError

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        if len(x) > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return Fgsm()(predict, x, y, eps, norm, rng)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_where_memory_runs_out_batches_are_halved_and_it_is_said(error):
    attacks: dict[str, Attack | Measure | None] = {"greedy": Greedy(error=error), "fgsm": Fgsm()}
    found = evaluate(network(), *images(), Request(attacks, eps=0.08, batch_size=7, diagnose=False))
    robust, plain = (found.examples[f"{name}_robust"] for name in attacks)
    assert robust.equals(plain)
    (flag,) = found.flags
    assert "memory ran out on batches of 7 images" in flag
    assert "set evaluation.batch_size=4" in flag


def test_an_image_that_does_not_fit_alone_ends_the_evaluation():
    with pytest.raises(MemoryError):
        evaluate(network(), *images(), Request({"g": Greedy(most=0, error=MemoryError)}, eps=0.1))
