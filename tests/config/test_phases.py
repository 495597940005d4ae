"""Phases that components add: trained, selected and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ablation.config import validation
from ablation.config.phases import built_phases
from ablation.config.validation import load
from ablation.errors import DONE
from ablation.jobs import train as job
from ablation.training.method import Phase, parse_passes
from tests.support.configs import compose_config, compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, weights
from tests.support.parts import Prelude


def two_phases(tmp_path, optim: str, *overrides: str) -> dict[str, Any]:
    burn_in = ("component/burn_in=enabled", "component.burn_in.epochs=2")
    chosen = f"component.burn_in.optimizer={optim}"
    return plain(tmp_path, "epochs=2", "evaluation=none", *burn_in, chosen, *overrides)


@pytest.mark.parametrize("optim", ["keep", "fresh"])
def test_a_phase_in_front_trains_first_adds_to_epochs_and_is_not_selected(tmp_path, optim):
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
    config = replace(compose_config("method=trades"), component={"prelude": Prelude(epochs=3)})
    problems: list[str] = []
    built = built_phases(config, problems)
    assert problems == []
    assert [(p.name, p.epochs, p.selectable) for p in built] == [
        ("prelude", 3, False),
        ("main", 30, True),
    ]
    assert built[0].method.passes == parse_passes("nat", "step")


@dataclass(frozen=True)
class Changes(Prelude):
    """A component that changes every phase."""

    changes: Mapping[str, Any] = field(default_factory=dict)

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        return tuple(replace(phase, **self.changes) for phase in super().arrange(phases))


def test_a_wrong_phase_is_named():
    problems: list[str] = []
    config = replace(compose_config(), component={"it": Changes(changes={"selectable": False})})
    built = built_phases(config, problems)
    assert problems == ["selection.metric=robust: no phase is selectable"]
    lost = {"method": replace(built[0].method, terms={})}
    built_phases(replace(config, component={"it": Changes(changes=lost)}), problems)
    assert "phase prelude.terms is empty: there is nothing to minimise" in problems


def test_phases_of_a_saved_config_are_read_if_empty_and_else_refused():
    saved = load(compose_plain()).container()
    assert saved["method"]["phases"] == []
    assert load(saved).identity()["method"]["phases"] == []
    container = compose_plain()
    container["method"]["phases"] = [{"name": "burn_in", "epochs": 2}]
    config, problems = validation.check(container)
    assert config is None
    (problem,) = problems
    assert problem.startswith("method")
    assert "component/burn_in=enabled" in problem
