"""Burn-in: cross-entropy first, the same bits for every arm, then the method; on the digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ablation.config.experiment import Config
from ablation.config.validation import load
from ablation.errors import DONE
from ablation.jobs import train as job
from ablation.runs.state_dicts import load_weights_file
from ablation.schedules import Constant
from ablation.training.engine import Engine
from ablation.training.method import CLEAN, parse_passes
from tests.support.configs import compose_config
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, weights

BURN_IN = ("component/burn_in=enabled", "component.burn_in.epochs=2")
KEEP = (*BURN_IN, "component.burn_in.optimizer=keep")
TINY = (
    *("data.train_size=128", "batch_size=64", "evaluation=none", "monitor.enabled=false"),
    *("attack.steps=1", "selection.attack.steps=1", "selection.n=16", "epochs=2"),
)
"""Two steps per epoch."""
STEPS = 4
"""Of a burn-in."""


@cache
def config(*overrides: str) -> Config:
    return compose_config(*overrides)


@cache
def composed(*overrides: str) -> dict[str, Any]:
    return plain(Path("nowhere"), *TINY, *overrides)


def tiny(folder: Path, *overrides: str) -> dict[str, Any]:
    return {**composed(*overrides), "runs_dir": str(folder)}


def state_of(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.net.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(bool((one[n] == other[n]).all()) for n in one)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of the latest run: weights at its start and after each phase; what the optimiser kept."""
    found: dict[str, Any] = {}
    fit, next_phase = Engine.fit, Engine._next_phase

    def starting(self: Engine) -> None:
        found.clear()
        found["start"] = state_of(self)
        fit(self)

    def switching(self: Engine) -> None:
        found[self._phase.name] = state_of(self)
        next_phase(self)
        found.setdefault("momenta", len(self._optimizer.state))

    monkeypatch.setattr(Engine, "fit", starting)
    monkeypatch.setattr(Engine, "_next_phase", switching)
    return found


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of an epoch must agree between a burn-in and standard training."""
    return [{k: v for k, v in row.items() if k not in ("phase", "epoch")} for row in rows]


# What it is


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=standard",),
        ("method=at", "component/awp=enabled"),
        ("method=mart",),
        ("method=elsayed", "component/fab_margin=enabled"),
        ("method=dyart",),
    ],
    ids=" ".join,
)
def test_the_burn_in_of_a_method_is_standard_training(overrides):
    """No crafter, ascent or margin is left that could act."""
    burn_in, main = config(*overrides, "component/burn_in=enabled").phases
    assert burn_in.method == config("method=standard").phases[0].method
    assert (burn_in.epochs, burn_in.selectable, burn_in.schedule) == (25, False, Constant())
    assert (main.name, main.epochs, main.optim, main.selectable) == ("main", 30, "fresh", True)
    assert main.schedule is None


def test_a_kept_optimiser_has_one_schedule_over_both():
    burn_in, main = load(composed("method=elsayed", *KEEP)).phases
    assert (burn_in.optim, main.optim) == ("keep", "keep")
    assert (burn_in.schedule, burn_in.lr) == (None, None)


# Its bits


def test_all_arms_of_a_seed_go_through_the_bits_of_standard_training(tmp_path, seen):
    standard = tiny(tmp_path, "method=standard", "schedule=constant")
    assert job.train(standard) == DONE
    burned, rows = dict(seen["main"]), metrics(run_of(standard))
    assert not equal(burned, seen["start"])
    arms = [
        ("method=elsayed",),
        ("method=dyart", "component.fab_margin.steps=1"),
        ("method=at", "component/awp=enabled"),
    ]
    for overrides in arms:
        arm = tiny(tmp_path, *overrides, *BURN_IN, "epochs=1")
        assert job.train(arm) == DONE
        assert equal(seen["burn_in"], burned), overrides
        assert not equal(seen["main"], burned), overrides
        found = metrics(run_of(arm))
        assert without_clock(found[:2]) == without_clock(rows)
        assert [row["phase"] for row in found] == ["burn_in", "burn_in", "main"]
        assert "loss_margin" not in found[0]
        assert "boundary_found" not in found[0]
    other = tiny(tmp_path, "method=elsayed", *BURN_IN, "epochs=1", "seed=1")
    assert job.train(other) == DONE
    assert not equal(seen["burn_in"], burned)


def test_a_run_of_its_own_burns_in_for_others(tmp_path, seen):
    alone = tiny(tmp_path, "method=standard", "schedule=constant")
    assert job.train(alone) == DONE
    assert job.train(tiny(tmp_path, "method=elsayed", *BURN_IN, "epochs=1")) == DONE
    burned = dict(seen["burn_in"])
    warm = tiny(tmp_path, "method=elsayed", f"init_from={run_of(alone).path}", "epochs=1")
    assert job.train(warm) == DONE
    assert equal(seen["start"], burned)


def test_standard_training_after_a_kept_burn_in_is_longer_standard_training(tmp_path, seen):
    """The switch itself changes nothing: neither order, draws, momentum nor schedule."""
    assert job.train(tiny(tmp_path, "method=standard", "epochs=3")) == DONE
    longer = dict(seen["main"])
    assert job.train(tiny(tmp_path, "method=standard", *KEEP, "epochs=1")) == DONE
    assert equal(seen["main"], longer)
    assert not equal(seen["burn_in"], longer)


# Its learning rate and its optimiser


def test_a_fresh_burn_in_has_a_constant_rate_of_its_own_and_no_successor_of_its_momentum(
    tmp_path, seen
):
    rates = ("component.burn_in.lr=0.02", "lr=0.1", "schedule.floor=0.001")
    arm = tiny(tmp_path, "method=elsayed", *BURN_IN, *rates)
    assert job.train(arm) == DONE
    rows = metrics(run_of(arm))
    assert [row["lr"] for row in rows] == pytest.approx([0.02, 0.02, 0.1, 0.0505])
    assert seen["momenta"] == 0


def test_a_kept_optimiser_goes_on_with_its_momentum_along_one_cosine(tmp_path, seen):
    arm = tiny(tmp_path, "method=elsayed", *KEEP, "lr=0.1", "schedule.floor=0.0")
    assert job.train(arm) == DONE
    rows = metrics(run_of(arm))
    cosine = [0.1, 0.0853553, 0.05, 0.0146447]
    assert [row["lr"] for row in rows] == pytest.approx(cosine, abs=1e-6)
    assert seen["momenta"] > 0


# Its place in a run


def test_its_epochs_come_on_top_and_are_never_selected(tmp_path, monkeypatch):
    select = Engine._select

    def preferring_early(self: Engine, row: dict[str, Any]) -> None:
        score = 90.0 - row["epoch"]
        select(self, {**row, "val_clean": score, "val_robust": score})

    monkeypatch.setattr(Engine, "_select", preferring_early)
    arm = tiny(tmp_path, "method=elsayed", *BURN_IN)
    assert [(p.name, p.epochs) for p in load(arm).phases] == [("burn_in", 2), ("main", 2)]
    assert job.train(arm) == DONE
    rows = metrics(run_of(arm))
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        (0, "burn_in"),
        (1, "burn_in"),
        (2, "main"),
        (3, "main"),
    ]
    assert rows[-1]["step"] == 2 * STEPS
    for name in ("best_clean", "best_robust"):
        path = run_of(arm).path / "checkpoints" / f"{name}.safetensors"
        assert int(load_weights_file(path)[1]["epoch"]) == 2


SEARCH = ("component/fab_margin=enabled", "component.fab_margin.steps=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs that nobody interrupted, each once."""

    @cache
    def trained(*overrides: str) -> dict[str, Any]:
        container = tiny(tmp_path_factory.mktemp("whole"), *overrides)
        assert job.train(container) == DONE
        return container

    return trained


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [("fresh", 3), ("fresh", STEPS), ("fresh", STEPS + 1), ("keep", STEPS)],
    ids=["amid", "at its end", "right after", "at the end of a kept one"],
)
def test_interrupted_and_resumed_is_the_same_bit_for_bit(
    tmp_path, monkeypatch, whole, optimizer, steps
):
    more = ("method=elsayed", *SEARCH, *(BURN_IN if optimizer == "fresh" else KEEP), "epochs=1")
    one, broken = whole(*more), tiny(tmp_path, *more)
    other = finish_interrupted(monkeypatch, broken, steps)
    assert metrics(other) == metrics(run_of(one))
    assert weights(other) == weights(run_of(one))


def test_a_burn_in_is_part_of_a_runs_identity(tmp_path):
    runs = [
        load(tiny(tmp_path, "method=elsayed", *more)).train_id
        for more in ((), BURN_IN, KEEP, (*BURN_IN, "component.burn_in.lr=0.05"))
    ]
    assert len(set(runs)) == 4


def test_nothing_but_the_clean_pass_runs_before_dyart():
    before = config("method=dyart").phases[0].method
    assert before.passes == parse_passes(CLEAN, "step")
    assert before.observed() == {}


def test_a_burn_in_is_not_clipped_unless_it_says_so():
    """The method's clipping is its own; the burn-in is every arm's."""
    plain_one, clipped = (
        compose_config("method=elsayed", *BURN_IN, "optim=sgd_clipped", *more).phases
        for more in ([], ["component.burn_in.clip=0.3"])
    )
    assert [phase.clip for phase in plain_one] == [math.inf, None]
    assert [phase.clip for phase in clipped] == [0.3, None]
