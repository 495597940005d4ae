"""TensorBoard: what its event files hold, and that a resumed run has every step once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.commands import report
from ablation.config.surroundings import check
from ablation.errors import DONE
from ablation.jobs import evaluate
from ablation.runs.tensorboard import FOLDER, TensorBoardTracker, missing_extra, start
from ablation.runs.tracking import NoTracker, Panel, TrackingConfig, offline_reason
from tests.support.configs import compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of

SETTINGS = {"lr": 0.1, "tracking": {"backend": "tensorboard"}}
BOARD = ("tracking.backend=tensorboard", "tracking.mode=offline", "tracking.images=1")


def events(folder: Path) -> Any:
    """The event files of a folder as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), accumulator.STORE_EVERYTHING_SIZE_GUIDANCE)
    return found.Reload()


def points(folder: Path, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def text(folder: Path, tag: str) -> str:
    tensors = events(folder).Tensors(f"{tag}/text_summary")
    return str(tensors[-1].tensor_proto.string_val[0].decode())


@pytest.mark.extra
def test_curves_config_histograms_images_and_results_are_shown(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = start(TrackingConfig(backend="tensorboard"), tmp_path, 0, SETTINGS)
    for epoch in range(3):
        tracker.log({"loss": 1 / (epoch + 1), "epoch": epoch}, epoch)
        tracker.histogram("margins", [0.0, 1.0, math.inf], epoch)
    images = torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.1)
    tracker.images("adversarial", [Panel(*images, "3 -> 5")])
    tracker.summary({"last/clean": 91.5, "flags_text": "none"})
    tracker.finish(DONE)
    tracker.log({"loss": 7.0}, 9)  # the end was the end
    folder = tmp_path / FOLDER
    assert points(folder, "loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert points(folder, "results/last/clean") == [(2, 91.5)]
    assert "lr: 0.1" in text(folder, "config")
    assert "3 -> 5" in text(folder, "adversarial/0")
    assert text(folder, "results/flags_text") == "none"
    found = events(folder)
    assert [event.step for event in found.Images("adversarial/0")] == [2]
    assert [event.histogram_value.num for event in found.Histograms("margins")] == [2, 2, 2]


@pytest.mark.extra
def test_what_is_trained_again_replaces_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    for first, value in ((0, 1.0), (1, 2.0)):  # killed after epoch 2, resumed from epoch 1
        tracker = TensorBoardTracker(tmp_path, 0, 0, SETTINGS)
        for epoch in range(first, 3):
            tracker.log({"loss": value}, epoch)
    assert points(tmp_path, "loss") == [(0, 1.0), (1, 2.0), (2, 2.0)]


@pytest.mark.extra
def test_a_resumed_run_has_every_epoch_once(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run = finish_interrupted(monkeypatch, plain(tmp_path, "epochs=3", *BOARD), 5)
    rows = metrics(run)
    folder = run.path / FOLDER
    assert len(rows) == 3
    assert points(folder, "loss") == [(r["epoch"], pytest.approx(r["loss"])) for r in rows]
    assert [step for step, _ in points(folder, "val_robust")] == [0, 1, 2]
    results = run.result()
    assert results is not None
    (clean,) = [entry["value"] for entry in results["entries"] if entry["metric"] == "clean"]
    assert points(folder, f"results/{run_name(run)}/clean") == [(2, pytest.approx(clean))]
    assert "arm_id" in text(folder, "config")
    assert len(list(folder.glob("events.*"))) == 2


def run_name(run: Any) -> str:
    """The checkpoint that the run stands for."""
    return str(run.result()["entries"][0]["checkpoint"])


def test_wandb_is_the_default_and_disabled_writes_nothing(tmp_path):
    assert TrackingConfig().backend == "wandb"
    config = TrackingConfig(mode="disabled", backend="tensorboard")
    assert isinstance(start(config, tmp_path, 0, SETTINGS), NoTracker)
    assert list(tmp_path.iterdir()) == []


def test_the_backend_is_no_part_of_a_runs_identity(tmp_path):
    assert run_of(plain(tmp_path, *BOARD)).path == run_of(plain(tmp_path)).path


def test_no_server_is_asked_for_event_files():
    assert offline_reason(TrackingConfig("online", "tensorboard")) is None


def test_a_missing_extra_is_told_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("ablation.runs.tensorboard.find_spec", lambda name: None)
    (problem,) = check(plain(tmp_path, *BOARD))
    assert "tracking.backend=tensorboard is not installed" in problem
    assert "pip install 'ablation[tensorboard]'" in problem
    assert check(plain(tmp_path, *BOARD, "tracking.mode=disabled")) == []
    assert missing_extra(TrackingConfig()) == []


def test_a_failure_stops_tracking_and_not_the_run(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    tracker = TensorBoardTracker(tmp_path / "file", 0, 0, SETTINGS)
    tracker.log({"loss": 1.0}, 0)
    tracker.log({"loss": 1.0}, 1)
    assert capsys.readouterr().err.count("tracking stopped") == 1


def test_a_report_goes_to_wandb_alone():
    container = compose_plain("++tracking.backend=tensorboard", config_name="report")
    assert any("a report goes to W&B alone" in problem for problem in report.check(container))


def test_an_evaluation_asks_for_the_extra_too(tmp_path, monkeypatch):
    monkeypatch.setattr("ablation.runs.tensorboard.find_spec", lambda name: None)
    overrides = ("tracking.backend=tensorboard", "tracking.mode=offline", "run=nowhere")
    container = plain(tmp_path, *overrides, config_name="evaluate")
    assert any("tensorboard is not installed" in text for text in evaluate.check(container, ()))
