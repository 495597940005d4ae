"""W&B: what reaches it, and that nothing it does can reach training."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ablation.runs.tracking import (
    NoTracker,
    Panel,
    Tracker,
    TrackingConfig,
    WandbTracker,
    home,
    log_report,
    narrowed,
    offline_reason,
    project_name,
    redact,
    render,
    start,
    tabulated,
    unreachable,
)
from tests.support.wandb_reader import read_all

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


def test_without_a_network_online_becomes_offline_in_time(wandb, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = begin(tmp_path / "run", TrackingConfig(mode="online"))
    tracker.log({"loss": 1.0}, 0)
    tracker.finish(0)
    assert not list((tmp_path / "run" / "wandb").glob("run-*"))
    assert read_all(tmp_path / "run")[0].history[0]["loss"] == 1.0
    captured = capfd.readouterr().err
    assert "warning: tracking offline (" in captured
    assert captured.count("\n") == 1
    assert KEY not in captured


def test_a_server_that_refuses_leaves_no_empty_folder(wandb, tmp_path, monkeypatch, capfd):
    original = wandb.init

    def refused(**arguments):
        if arguments["mode"] == "online":
            original(**{**arguments, "mode": "offline"})
            (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
            folder.rename(folder.with_name(folder.name.removeprefix("offline-")))
            raise RuntimeError("401")
        return original(**arguments)

    earlier = tmp_path / "run" / "wandb" / "run-20200101_000000-digits-cnn-at-s0-0123456789"
    earlier.mkdir(parents=True)
    os.utime(earlier, (0, 0))
    monkeypatch.setattr("ablation.runs.tracking._connect", lambda options: None)
    monkeypatch.setattr(wandb, "init", refused)
    begin(tmp_path / "run", TrackingConfig(mode="online")).finish(0)
    assert list((tmp_path / "run" / "wandb").glob("run-*")) == [earlier]
    assert "tracking offline (RuntimeError: 401)" in capfd.readouterr().err


def test_who_does_not_answer_is_given_up(monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))  # takes calls, says nothing
    began = time.monotonic()
    why = unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
    assert why is not None
    assert "no answer in 0.3 s" in why or "timed out" in why
    assert time.monotonic() - began < 5
    silent.close()


def test_any_answer_will_do():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)  # knows no GET: 501
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert unreachable(f"http://127.0.0.1:{server.server_port}") is None
    server.shutdown()
    server.server_close()


def test_a_sweep_asks_once_whether_there_is_a_server(wandb, monkeypatch):
    assert offline_reason(TrackingConfig(mode="offline")) is None
    why = offline_reason(TrackingConfig(mode="online"))
    assert why is not None
    assert "no API key" in why
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    why = offline_reason(TrackingConfig(mode="online"))
    assert why is not None
    assert why.startswith("ConnectionError: http://127.0.0.1:9 cannot be reached")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline_reason(TrackingConfig(mode="online")) is None


def test_the_command_that_uploads_names_what_is_there(wandb, tmp_path, monkeypatch):
    (tmp_path / "else where").mkdir()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "else where"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = begin(tmp_path / "run", TrackingConfig(mode="online"))
    tracker.finish(0)
    command = tracker.upload()
    assert command is not None
    wandb_, sync, folder = shlex.split(command)
    assert (wandb_, sync) == ("wandb", "sync")
    assert Path(folder).parent.parent == tmp_path / "else where"
    assert list(Path(folder).glob("run-*.wandb"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert begin(tmp_path / "run").upload() is None


def test_group_and_name_are_the_users_if_set(wandb, tmp_path):
    config = TrackingConfig(group="my group", name="first try", tags=["x"])
    begin(tmp_path / "run", config, tags=["row:" + "a" * 80]).finish(0)
    (found,) = read_all(tmp_path / "run")
    assert (found.group, found.name) == ("my group", "first try")
    assert max(map(len, found.tags)) == 64


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
from ablation.runs.tracking import TrackingConfig, log_report, start
tracker = start(TrackingConfig(mode="disabled"), run_dir=Path("."), run_id="x", name="x",
                group="x", job_type="train", tags=[], settings={})
tracker.log({"loss": 1.0}, 0)
tracker.images("x", [])
tracker.summary({})
tracker.finish(0)
assert log_report(TrackingConfig(mode="disabled"), "x", [], {}, {}, [], Path(".")) is None
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
        ({"tags": ["ok", " "]}, r"tags=\[' '\]"),
        ({"tags": ["a" * 65]}, "1 to 64 characters"),
        ({"group": ""}, "group=''"),
        ({"name": "a" * 129}, "1 to 128 characters, or null"),
        ({"images": -1}, "images=-1"),
        ({"init_timeout": 0.0}, "init_timeout=0"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrackingConfig(**changes)


def test_the_settings_are_a_schema():
    from ablation.config.parser import Parser, plain

    parser = Parser()
    found = parser.parse(TrackingConfig, {"mode": "disabled", "tags": ["a"]}, "tracking")
    assert found == TrackingConfig(mode="disabled", tags=["a"])
    assert plain(found)["images"] == 8
    parser.parse(TrackingConfig, {"mode": "of", "imagse": 3}, "tracking")
    assert len(parser.problems) == 2


CELLS = [
    {"key": "st_wd_0.01", "column": "clean", "mean": 50.25, "ci95": None, "n": 500, "note": ""},
    {"key": "st_wd_0.01", "column": "aa", "mean": 12.5, "ci95": 1.5, "n": None, "note": "n=500"},
    {"key": "at", "column": "aa", "mean": None, "ci95": None, "n": None, "note": "not run"},
]


def cells() -> list[dict[str, Any]]:
    """As a report has them: pandas' types, pandas' missing values."""
    frame = pd.DataFrame(CELLS).astype(
        {"key": "string", "column": "string", "mean": float, "ci95": float, "n": "Int64"}
    )
    assert frame["n"].isna().any()
    return frame.to_dict("records")  # type: ignore[return-value]


def plot(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (255, 0, 0)).save(folder / "scatter.png")
    return folder / "scatter.png"


def logged(folder: Path, key: str, rows: list[dict[str, Any]]) -> list[Path]:
    """The files of a picture or table in what was logged."""
    (path,) = [row[f"{key}/path"] for row in rows if f"{key}/path" in row]
    return list(folder.glob(f"wandb/offline-run-*/files/{path}"))


def test_a_report_is_one_run_with_table_means_and_plots(wandb, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = TrackingConfig(project="margins", tags=["mine"])
    images = {"scatter": plot(tmp_path)}
    rows = [*cells(), {**cells()[0], "column": "cw", "mean": float("nan"), "note": f"by {KEY}"}]
    settings = {"table": "emr_table2", "overrides": [f"x={KEY}"]}
    place = log_report(config, "emr_table2", rows, images, settings, ["smoke"], tmp_path)
    (found,) = read_all(tmp_path)
    assert (found.run_id, found.name) == ("report-emr_table2", "report-emr_table2")
    assert (found.project, found.group, found.job_type) == ("margins", "reports", "report")
    assert sorted(found.tags) == ["mine", "smoke", "table:emr_table2"]
    assert found.config["table"] == "emr_table2"
    assert found.exit_code == 0
    assert place is not None
    assert list(tmp_path.glob("wandb/offline-run-*")) == [Path(place.removeprefix("wandb sync "))]
    keys = {row["key"] for row in rows}
    means = {key: value for key, value in found.summary.items() if key.split("/")[0] in keys}
    assert means == {"st_wd_0.01/clean": 50.25, "st_wd_0.01/aa": 12.5}
    (picture,) = logged(tmp_path, "plots/scatter", found.history)
    assert Image.open(picture).getpixel((0, 0)) == (255, 0, 0)
    (file,) = logged(tmp_path, "table", found.history)
    table = json.loads(file.read_text())
    assert table["columns"] == ["key", "column", "mean", "ci95", "n", "note"]
    assert table["data"] == [
        ["st_wd_0.01", "clean", 50.25, None, 500, ""],
        ["st_wd_0.01", "aa", 12.5, 1.5, None, "n=500"],
        ["at", "aa", None, None, None, "not run"],
        ["st_wd_0.01", "cw", None, None, 500, "by ***"],
    ]
    held = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in held if KEY.encode() in path.read_bytes()]
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_report_without_a_key_becomes_offline_in_one_line(wandb, tmp_path, capfd):
    place = log_report(TrackingConfig(mode="online"), "t", cells(), {}, {}, [], tmp_path)
    (found,) = read_all(tmp_path)
    assert found.summary["st_wd_0.01/aa"] == 12.5
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("warning: tracking offline (ConnectionError: no API key")
    assert place is not None
    assert error.endswith(f"later: {place}\n")


def test_a_report_that_cannot_be_sent_is_one_line_and_nowhere(wandb, tmp_path, capfd):
    images = {"scatter": tmp_path / "gone.png"}
    assert log_report(TrackingConfig(), "t", cells(), images, {}, [], tmp_path) is None
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("warning: tracking stopped: ")
    assert "gone.png" in error
    wandb.finish()


class Online:
    """A W&B run that a server knows."""

    dir = "run/wandb/run-1/files"
    url = "https://example.org/team/ablation/runs/report-t"

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}

    def log(self, row: dict[str, Any]) -> None:
        assert set(row) == {"table"}


def test_an_online_report_is_at_its_address():
    run = Online()
    assert WandbTracker(run, limit=8).report(cells(), {}) == run.url
    assert run.summary == {"st_wd_0.01/clean": 50.25, "st_wd_0.01/aa": 12.5}


def test_a_column_has_one_type_whichever_values_are_missing():
    rows: list[dict[str, Any]] = [
        {"text": "", "number": np.float32(0.5), "whole": 3, "truth": True, "none": None, "mix": 1},
        {"text": None, "number": float("nan"), "whole": None, "truth": None, "none": None},
        {"text": ("a",), "number": 2, "whole": pd.NA, "truth": np.True_, "none": None, "mix": "b"},
    ]
    names, data, types = tabulated(rows)
    assert names == ["text", "number", "whole", "truth", "none", "mix"]
    assert types == [str, float, float, bool, float, str]
    assert data == [
        ["", 0.5, 3, True, None, "1"],
        [None, None, None, None, None, None],
        ["('a',)", 2, None, True, None, "b"],
    ]
    assert tabulated([]) == ([], [], [])


def test_who_pushes_is_asked_for_nothing_and_told_what_to_do(wandb):
    with pytest.raises(ConnectionError, match="wandb login"):
        home(TrackingConfig(mode="online", entity="team"))


class Viewer(Answers):
    """A W&B server that knows the key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        viewer = {"id": "u", "username": "u", "entity": "theirs", "teams": {"edges": []}}
        content = json.dumps({"data": {"viewer": viewer}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_a_push_goes_to_the_account_even_with_a_run_left_open(wandb, tmp_path, monkeypatch):
    begin(tmp_path / "run")  # crashed: it never called finish
    server = ThreadingHTTPServer(("127.0.0.1", 0), Viewer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("ablation.runs.tracking.unreachable", lambda url: None)
    assert home(TrackingConfig(mode="online")) == ("theirs", "ablation")
    assert home(TrackingConfig(entity="mine", project="margins")) == ("mine", "margins")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert home(TrackingConfig(mode="online")) == ("team", "ablation")
    server.shutdown()
    server.server_close()
    assert read_all(tmp_path / "run")[0].exit_code == 0


@pytest.mark.parametrize(
    ("project", "environment", "expected"),
    [("mine", "theirs", "mine"), ("ablation", "theirs", "theirs"), ("ablation", "", "ablation")],
)
def test_the_environment_fills_in_a_project(monkeypatch, project, environment, expected):
    monkeypatch.setenv("WANDB_PROJECT", environment)
    assert project_name(TrackingConfig(project=project)) == expected
