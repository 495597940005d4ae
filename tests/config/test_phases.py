"""Phases: from a preset's YAML and from a component, trained, selected and resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ablation.config import validation
from ablation.config.phases import built_phases
from ablation.config.validation import load
from ablation.errors import DONE
from ablation.jobs import train as job
from ablation.training.method import parse_passes
from tests.support.configs import compose_config, compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, weights
from tests.support.parts import Prelude

BURN_IN = {
    "name": "burn_in",
    "epochs": 2,
    "selectable": False,
    "overrides": {"passes": ["nat", "step"], "terms": {"ce": {"term": {"view": "nat"}}}},
}


def two_phases(tmp_path, optim: str, *overrides: str) -> dict[str, Any]:
    container = plain(tmp_path, "epochs=2", "evaluation=none", *overrides)
    container["method"]["phases"] = [
        {**BURN_IN, "optim": "keep"},
        {"name": "main", "optim": optim},
    ]
    return container


@pytest.mark.parametrize("optim", ["keep", "fresh"])
def test_a_preset_phase_trains_first_adds_to_epochs_and_is_not_selected(tmp_path, optim):
    container = two_phases(tmp_path, optim)
    config = load(container)
    assert [(p.name, p.epochs) for p in config.phases] == [("burn_in", 2), ("main", 2)]
    assert job.train(container) == DONE
    rows = metrics(run_of(container))
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        (0, "burn_in"),
        (1, "burn_in"),
        (2, "main"),
        (3, "main"),
    ]
    assert "train_clean" in rows[0]
    assert "train_robust" in rows[2]
    # Fresh restarts the cosine for the phase; keep goes on along one cosine over all epochs.
    restarted = rows[2]["lr"] == pytest.approx(0.1)
    assert restarted == (optim == "fresh")
    from ablation.runs.state_dicts import load_weights_file

    folder = run_of(container).path / "checkpoints"
    _, meta = load_weights_file(folder / "best_robust.safetensors")
    assert int(meta["epoch"]) >= 2


@pytest.mark.parametrize("steps", [6, 8, 11])
def test_a_run_with_phases_resumes_bit_for_bit(tmp_path, monkeypatch, steps):
    whole = two_phases(tmp_path / "whole", "fresh", "average=ema")
    broken = two_phases(tmp_path / "broken", "fresh", "average=ema")
    assert job.train(whole) == DONE
    one, other = run_of(whole), finish_interrupted(monkeypatch, broken, steps)
    assert metrics(one) == metrics(other)
    assert weights(one) == weights(other)


def test_phases_are_part_of_a_runs_identity(tmp_path):
    assert (
        load(two_phases(tmp_path, "keep")).train_id != load(two_phases(tmp_path, "fresh")).train_id
    )


def test_a_component_arranges_phases():
    node = compose_plain("method=trades")["method"]
    config = replace(compose_config("method=trades"), component={"prelude": Prelude(epochs=3)})
    problems: list[str] = []
    built = built_phases(config, node, problems)
    assert problems == []
    assert [(p.name, p.epochs, p.selectable) for p in built] == [
        ("prelude", 3, False),
        ("main", 30, True),
    ]
    assert built[0].method.passes == parse_passes("nat", "step")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"name": "burn_in"}], "method.phases.burn_in.epochs=None: at least 1"),
        ([{**BURN_IN, "overrides": {"passes": ["nat"]}}], "phase burn_in.passes"),
        ([{**BURN_IN, "overrides": {"termz": {}}}], "did you mean terms?"),
        ([{"name": "main", "selectable": False}], "no phase is selectable"),
    ],
)
def test_a_wrong_phase_is_named(phases, message):
    container = compose_plain()
    container["method"]["phases"] = phases
    _, problems = validation.check(container)
    assert any(message in problem for problem in problems), problems
