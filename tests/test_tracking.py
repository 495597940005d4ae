"""W&B: what reaches it, and that nothing it does can reach training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ablation.tracking import (
    NoTracker,
    Panel,
    Tracker,
    TrackingConfig,
    WandbTracker,
    narrowed,
    redact,
    render,
    start,
)
from tests.wandb_reader import read_all

SETTINGS = {"lr": 0.1, "component": {"awp": {"enabled": False}}, "milestones": [1, 2], "none": None}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def wandb(tmp_path, monkeypatch) -> Iterator[Any]:
    """A wandb that knows nothing of this machine's user, and forgets at the end."""
    import wandb

    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    yield wandb
    wandb.teardown()


def begin(folder: Path, config: TrackingConfig | None = None, **changes: Any) -> Tracker:
    folder.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {
        "run_dir": folder,
        "run_id": "digits-cnn-at-s0-0123456789",
        "name": "at-s0",
        "group": "arm0",
        "job_type": "train",
        "tags": ["table:dose_table1", "row:full"],
        "settings": SETTINGS,
    }
    return start(config or TrackingConfig(), **{**arguments, **changes})


def panel(channels: int = 3, level: float = 0.5) -> Panel:
    clean = torch.full((channels, 8, 8), level)
    adversarial = clean.clone()
    adversarial[:, 0, 0] += 0.03125
    adversarial[:, 7, 7] -= 0.03125
    return Panel(clean, adversarial, "7 -> 3")


def test_an_offline_run_holds_everything_that_was_logged(wandb, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = TrackingConfig(project="margins", tags=["mine"], images=2)
    tracker = begin(tmp_path / "run", config, settings={**SETTINGS, "leak": f"key {KEY}"})
    for epoch in range(3):
        tracker.log({"epoch": epoch, "loss": 1 / (epoch + 1), "val_robust": 30.0}, epoch)
        tracker.images("adversarial", [panel(level=x / 10) for x in (epoch, 5 + epoch, 9)])
    tracker.summary({"best_robust/pgd20": 51.5})
    tracker.finish(75)
    tracker.finish(0)
    tracker.log({"loss": 0.0}, 9)
    (found,) = read_all(tmp_path / "run")
    assert found.run_id == "digits-cnn-at-s0-0123456789"
    assert (found.name, found.project, found.group) == ("at-s0", "margins", "arm0")
    assert (found.job_type, found.exit_code) == ("train", 75)
    assert sorted(found.tags) == ["mine", "row:full", "table:dose_table1"]
    assert {**found.config, **SETTINGS, "leak": "key ***"} == found.config
    assert found.step_metrics["*"] == "epoch"
    curves = [row for row in found.history if "loss" in row]
    assert [(row["epoch"], row["loss"]) for row in curves] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    pictures = [row for row in found.history if "adversarial/count" in row]
    assert [row["epoch"] for row in pictures] == [0, 1, 2]
    assert pictures[0]["adversarial/count"] == 2
    assert pictures[0]["adversarial/captions"][0].startswith("7 -> 3 | clean, adversarial")
    assert found.summary["best_robust/pgd20"] == 51.5
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert sum(path.suffix == ".png" for path in files) == 6
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_jobs_of_one_process_get_runs_of_their_own_and_one_resumes(wandb, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    begin(first, run_id="first").log({"loss": 1.0}, 0)  # crashed: it never called finish
    tracker = begin(second, run_id="second")
    tracker.log({"loss": 2.0}, 0)
    tracker.finish(0)
    time.sleep(1)  # wandb names its folder by the second
    again = begin(first, run_id="first", settings={"lr": 0.2})
    again.log({"loss": 0.5}, 1)
    again.finish(0)
    a, b = read_all(first)
    (c,) = read_all(second)
    assert [run.run_id for run in (a, b, c)] == ["first", "first", "second"]
    rows = [[(row["epoch"], row["loss"]) for row in run.history] for run in (a, b, c)]
    assert rows == [[(0, 1.0)], [(1, 0.5)], [(0, 2.0)]]


def test_without_a_key_online_becomes_offline_in_one_line(wandb, tmp_path, capfd):
    tracker = begin(tmp_path / "run", TrackingConfig(mode="online"))
    tracker.log({"loss": 1.0}, 0)
    tracker.finish(0)
    (found,) = read_all(tmp_path / "run")
    assert found.history[0]["loss"] == 1.0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: tracking offline (ConnectionError: no API key")
    place = Path(captured.err.split("wandb sync ")[1].strip())
    assert place.name.startswith("offline-run-")
    assert place.parent.parent == tmp_path / "run"


@pytest.mark.slow
def test_without_a_network_online_becomes_offline_in_time(wandb, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    began = time.monotonic()
    tracker = begin(tmp_path / "run", TrackingConfig(mode="online", init_timeout=2))
    assert time.monotonic() - began < 20
    tracker.log({"loss": 1.0}, 0)
    tracker.finish(0)
    assert read_all(tmp_path / "run")[0].history[0]["loss"] == 1.0
    captured = capfd.readouterr().err
    assert "warning: tracking offline (" in captured
    assert captured.count("\n") == 1
    assert KEY not in captured


class Answers(BaseHTTPRequestHandler):
    """As much of a W&B server as the start of a run asks for."""

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers["content-length"])).decode()
        entity = {"id": "e", "name": "e"}
        project = {"id": "p", "name": "p", "entity": entity}
        bucket = {"id": "x", "name": "x", "displayName": "x", "config": "{}", "project": project}
        data: dict[str, Any] = {"model": {**project, "bucket": None}}
        if "UpsertBucket" in query:
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        content = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.slow
def test_a_network_that_dies_cannot_hold_up_the_end(wandb, tmp_path, monkeypatch, capfd):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = begin(tmp_path / "run", TrackingConfig(mode="online"))
    server.shutdown()
    server.server_close()
    began = time.monotonic()
    for epoch in range(50):
        tracker.log({"loss": 1.0}, epoch)
    assert time.monotonic() - began < 5
    tracker.finish(0)
    assert 9 < time.monotonic() - began < 20
    assert "the upload did not end in time; later: wandb sync" in capfd.readouterr().err


def test_disabled_never_imports_wandb(tmp_path):
    code = """
import sys
from pathlib import Path
from ablation.tracking import TrackingConfig, start
tracker = start(TrackingConfig(mode="disabled"), run_dir=Path("."), run_id="x", name="x",
                group="x", job_type="train", tags=[], settings={})
tracker.log({"loss": 1.0}, 0)
tracker.images("x", [])
tracker.summary({})
tracker.finish(0)
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("online", {}, "online"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("offline", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("online", {"WANDB_MODE": "shared"}, "online"),
    ],
)
def test_the_environment_may_only_take_away(mode, environment, expected):
    assert narrowed(mode, environment) == expected


def test_the_environment_says_where_and_under_which_project(wandb, tmp_path, monkeypatch):
    calls: list[dict[str, Any]] = []

    class Metrics:
        def __init__(self, **options: Any) -> None:
            calls.append(options)

        def define_metric(self, *args: Any, **options: Any) -> None:
            pass

    monkeypatch.setattr(wandb, "init", Metrics)
    monkeypatch.setattr(wandb, "setup", lambda **options: None)
    begin(tmp_path / "run")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "60")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "false")
    begin(tmp_path / "run")
    begin(tmp_path / "run", TrackingConfig(project="mine"))
    ours, theirs, mine = calls
    assert ours["project"] == "ablation"
    assert ours["dir"] == str(tmp_path / "run")
    assert ours["settings"].finish_timeout == 10
    assert ours["settings"].x_disable_stats is not torch.cuda.is_available()
    assert (ours["resume"], ours["reinit"]) == ("allow", "finish_previous")
    assert "project" not in theirs
    assert "dir" not in theirs
    assert {"finish_timeout", "x_disable_stats"} & theirs["settings"].model_fields_set == set()
    assert mine["project"] == "mine"


def test_a_start_that_fails_altogether_is_one_line(wandb, tmp_path, monkeypatch, capsys):
    def fail(**options: Any) -> None:
        raise RuntimeError(f"broken\nwith {KEY}")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb, "init", fail)
    for mode in ("online", "offline"):
        tracker = begin(tmp_path / "run", TrackingConfig(mode=mode))
        assert isinstance(tracker, NoTracker)
        error = capsys.readouterr().err
        assert error == "warning: no tracking: RuntimeError: broken with ***\n"


class Broken:
    """A W&B run whose service died."""

    dir = "run/wandb/run-1/files"

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        raise BrokenPipeError("service is gone")


def test_a_failure_is_told_once_and_training_goes_on(capsys):
    run = Broken()
    tracker: Tracker = WandbTracker(run, limit=8)
    for epoch in range(3):
        tracker.log({"loss": 1.0}, epoch)
        tracker.images("x", [panel()], epoch)
    tracker.summary({"a": 1})
    tracker.finish(0)
    assert run.calls == 1
    assert capsys.readouterr().err == (
        "warning: tracking stopped: BrokenPipeError: service is gone; "
        "the local files have everything\n"
    )


def test_no_images_means_none():
    run = Broken()
    WandbTracker(run, limit=0).images("x", [panel()])
    assert run.calls == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_panel_shows_clean_adversarial_and_the_difference(channels):
    image, caption = render(panel(channels))
    assert image.mode == "RGB"
    assert image.size == (3 * 96, 96)
    assert caption == "7 -> 3 | clean, adversarial, difference x16"
    small = image.resize((24, 8), Image.Resampling.NEAREST)
    assert small.getpixel((0, 0)) == (128, 128, 128)
    assert small.getpixel((8, 0)) == (135, 135, 135)
    assert small.getpixel((16, 0)) == (255, 255, 255)
    assert small.getpixel((23, 7)) == (0, 0, 0)
    assert small.getpixel((20, 4)) == (128, 128, 128)


def test_a_panel_without_a_difference_is_grey():
    clean = torch.rand(3, 200, 100)
    image, _ = render(Panel(clean, clean, ""))
    assert image.size == (300, 200)
    assert image.getpixel((299, 0)) == (128, 128, 128)


def test_the_key_is_blotted_out_everywhere(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    value = {"a": [f"x{KEY}y", 1], "b": {"c": KEY}, "d": None}
    assert redact(value) == {"a": ["x***y", 1], "b": {"c": "***"}, "d": None}
    monkeypatch.delenv("WANDB_API_KEY")
    assert redact(value) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"project": "a/b"}, "project='a/b'"),
        ({"project": ""}, "project=''"),
        ({"images": -1}, "images=-1"),
        ({"init_timeout": 0.0}, "init_timeout=0"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrackingConfig(**changes)


def test_the_settings_are_a_schema():
    from ablation.schema import Parser, plain

    parser = Parser()
    found = parser.parse(TrackingConfig, {"mode": "disabled", "tags": ["a"]}, "tracking")
    assert found == TrackingConfig(mode="disabled", tags=["a"])
    assert plain(found)["images"] == 8
    parser.parse(TrackingConfig, {"mode": "of", "imagse": 3}, "tracking")
    assert len(parser.problems) == 2
