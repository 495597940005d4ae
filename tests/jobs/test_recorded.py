"""The radii of a run whose method records them: from training to ``result.json``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ablation.config import phases, validation
from ablation.config.validation import load
from ablation.errors import DONE, INTERRUPTED, InterruptedRunError
from ablation.jobs import evaluate as assess
from ablation.jobs import recorded, setup
from ablation.jobs import train as job
from ablation.numerics.summaries import SPREAD
from ablation.reports import text_tables
from ablation.reports.groups import compare_runs
from ablation.runs.directory import Run
from ablation.runs.evaluations import TRAINING
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, stop_after, weights
from tests.support.parts import Recording, Told

OPTIONS = ("eps=0.1", "schedule=constant", "attack.steps=1", "evaluation.n=20")


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """Every run has a budget that has its radii recorded, and a crafter that records a floor."""

    built = phases.built_phases

    def with_radii(*arguments: Any) -> Any:
        (phase,) = built(*arguments)
        method = replace(phase.method, budget=Told(0.09))
        method = method.with_crafter("floor", Recording(0.02, "radius_floor"))
        return (replace(phase, method=method),)

    monkeypatch.setattr(validation, "built_phases", with_radii)
    return built


def entries(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """Of the run's result, by checkpoint and metric."""
    result = json.loads(run.result_path.read_text())
    return {(entry["checkpoint"], entry["metric"]): entry for entry in result["entries"]}


def table(run: Run, name: str) -> pd.DataFrame:
    return pd.read_parquet(run.evaluations / f"{name}-training.parquet")


def test_radii_are_results_of_the_weights_that_were_kept(tmp_path, capsys):
    container = plain(tmp_path, *OPTIONS)
    assert job.train(container) == DONE
    run, shown = run_of(container), capsys.readouterr().out
    rows, found = run.read_metrics(), entries(run)
    for name in ("best_robust", "best_clean", "last"):
        entry, examples = found[name, "mean_radius"], table(run, name)
        epoch = entry["params"]["epoch"]
        assert rows[epoch]["radius_mean"] == pytest.approx(entry["value"], rel=1e-12)
        for key in SPREAD:
            assert rows[epoch][f"radius_{key}"] == pytest.approx(entry["params"][key], rel=1e-12)
        assert examples["radius"].mean() == pytest.approx(entry["value"], rel=1e-6)
        assert examples["index"].tolist() == list(range(400)) == list(range(entry["n"]))
        below = float((examples["radius"] < np.float32(0.1)).mean())
        assert entry["params"]["below_eps"] == pytest.approx(below)
        assert 0 < below < 1
        assert entry["params"]["images"] == "as used in training"
        assert (entry["weights"], entry["split"], entry["unit"]) == ("raw", "train", "radius")
        floor = found[name, "mean_radius_floor"]
        assert floor["value"] == pytest.approx(examples["radius_floor"].mean(), rel=1e-6)
    assert found["last", "mean_radius"]["params"]["epoch"] == len(rows) - 1
    best = max(range(3), key=lambda i: (rows[i]["val_robust"], rows[i]["val_clean"]))
    assert found["best_robust", "mean_radius"]["params"]["epoch"] == best
    (line,) = [line for line in shown.splitlines() if " mean_radius " in line]
    value = found["best_robust", "mean_radius"]["value"]
    assert line.split()[:5] == ["best_robust", "mean_radius", "train", f"{value:.4f}", "radius"]


def test_an_index_is_that_of_the_image_in_its_split(tmp_path):
    """The floor that was recorded is a function of the label."""
    container = plain(tmp_path, *OPTIONS, "epochs=1")
    assert job.train(container) == DONE
    run, config = run_of(container), load(container)
    images, _ = config.data.source.load(config.data_root)
    train = np.load(run.split_path)["train"]
    labels = images.labels.numpy()[train]
    np.testing.assert_allclose(table(run, "last")["radius_floor"], 0.02 * labels, rtol=1e-6)


def test_an_interrupted_run_has_the_same_radii_and_none_before_its_end(tmp_path, monkeypatch):
    whole, broken = (plain(tmp_path / name, *OPTIONS) for name in ("whole", "broken"))
    assert job.train(whole) == DONE
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        job.train(broken)
    assert run_of(broken).checkpoints.has("best_robust")
    assert not run_of(broken).result_path.exists()
    one, other = run_of(whole), finish_interrupted(monkeypatch, broken, 9)
    assert metrics(one) == metrics(other)
    assert weights(one) == weights(other)
    assert entries(one) == entries(other)
    for name in one.checkpoints.names():
        pd.testing.assert_frame_equal(table(one, name), table(other, name))


def test_a_longer_run_has_the_radii_of_one_trained_from_the_start(tmp_path):
    shorter = plain(tmp_path / "one", *OPTIONS, "epochs=2")
    assert job.train(shorter) == DONE
    longer = plain(tmp_path / "one", *OPTIONS, "epochs=3", f"extend={run_of(shorter).path}")
    whole = plain(tmp_path / "two", *OPTIONS, "epochs=3")
    assert job.train(longer) == job.train(whole) == DONE
    assert entries(run_of(longer)) == entries(run_of(whole))


def test_a_kill_between_two_files_costs_the_numbers_and_gives_no_wrong_ones(
    tmp_path, capsys, monkeypatch
):
    container = plain(tmp_path, *OPTIONS, "evaluation=none", "epochs=2")
    assert job.train(container) == DONE
    run, config = run_of(container), load(container)
    images = setup.load_images(config, torch.device("cpu"))
    for path in run.evaluations.iterdir():
        path.unlink()
    place = run.checkpoints.folder
    other = (place / "last-recorded.safetensors").read_bytes()
    (place / "best_clean-recorded.safetensors").write_bytes(other[:-3])
    run.checkpoints.save_weights("best_robust", {}, meta={"step": "99", "epoch": "9"})
    (place / "best_robust-recorded.safetensors").write_bytes(other)
    told: dict[str, float] = {}
    tracker = setup.start_tracking(config.tracking, config, run, "train")
    monkeypatch.setattr(tracker, "summary", told.update)
    with run.reopen():
        recorded.add_recorded(config, run, images, tracker)
    values = {metric: entry["value"] for (_, metric), entry in entries(run).items()}
    assert told == {f"last/{metric}": value for metric, value in values.items()}
    said = capsys.readouterr().err
    assert "no mean radius of best_robust: " in said
    assert "the weights are of step 99" in said
    assert "no mean radius of best_clean: " in said
    assert {path.stem for path in run.evaluations.iterdir()} == {"last-training"}


def test_a_killed_run_adds_its_radii_when_it_goes_on(tmp_path, monkeypatch):
    container = plain(tmp_path, *OPTIONS, "epochs=1")

    def killed(*_: object) -> None:
        raise InterruptedRunError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(job, "add_recorded", killed)
        assert job.train(container) == INTERRUPTED
    assert not run_of(container).evaluations.exists()
    assert job.train(container) == DONE
    assert ("best_robust", "mean_radius") in entries(run_of(container))


def test_reports_and_later_evaluations_meet_radii_of_averaging_runs(tmp_path, capsys):
    for seed in (0, 1):
        options = (*OPTIONS, "average=ema", "evaluation=none", f"seed={seed}")
        assert job.train(plain(tmp_path, *options)) == DONE
    paths = sorted(tmp_path.iterdir())
    found = compare_runs(paths, [])
    (row,) = found.rows
    cell = row.cells["mean_radius"]
    assert (cell.unit, len(cell.samples), cell.tags, cell.mismatch) == ("radius", 2, (), ())
    assert row.cells["mean_radius_floor"].unit == "radius"
    capsys.readouterr()
    request = plain(
        tmp_path,
        f"run={paths[0]}",
        "evaluation=quick",
        "evaluation.n=20",
        "device=cpu",
        config_name="evaluate",
    )
    assert assess.run(request) == DONE
    assert " mean_radius " in capsys.readouterr().out
    values = [sample.value for sample in cell.samples]
    assert f"{np.mean(values):.4f} ±" in text_tables.terminal(found)


def test_a_run_that_records_nothing_leaves_nothing(tmp_path, monkeypatch, told):
    monkeypatch.setattr(validation, "built_phases", told)
    container = plain(tmp_path, *OPTIONS, "epochs=1")
    assert job.train(container) == DONE
    run = run_of(container)
    assert not list(run.checkpoints.folder.glob("*recorded*"))
    assert not run.has_evaluation("last", TRAINING)
    assert not {metric for _, metric in entries(run)} & {"mean_radius", "mean_radius_floor"}
