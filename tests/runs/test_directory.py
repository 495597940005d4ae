"""Run directories: one process at a time, records that survive, results that are never lost."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ablation.errors import InputError, InterruptedRunError, NonFiniteError
from ablation.runs import status
from ablation.runs.checkpoint import Snapshot
from ablation.runs.directory import Run, find_runs, first_difference
from ablation.runs.files import atomic_write_text, finite, temporary_path
from ablation.runs.signals import stop_on_signals

TRAIN_ID = "0123456789"
CONFIG = "lr: 0.1\nmodel: {name: cnn}\ntracking: {mode: offline}\nruntime: {device: cpu}\n"
DEAD = 2**22 + 1
"""No process has this number: Linux counts to 2**22."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / f"digits-cnn-at-s0-{TRAIN_ID}", TRAIN_ID)


def fail_with(number: int):
    def fail(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def enter(run: Run, config: str = CONFIG, **options: Any) -> None:
    with run.open(config, **options):
        pass


def status_json(run: Run) -> Any:
    return json.loads((run.path / "status.json").read_text())


def state(run: Run) -> str | None:
    status = run.status()
    return None if status is None else status.state


@contextmanager
def elsewhere(run: Run) -> Iterator[int]:
    """Another process has the run open; it is killed at the end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with run.open(CONFIG):
                os.write(writer, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# The directory, its lock and its state


def test_a_new_run_records_config_state_and_versions(run):
    assert run.status() is None
    with run.open(CONFIG):
        assert run.config_path.read_text() == CONFIG
        assert state(run) == "running"
        run.set_status("running", device="cpu")
        run.set_status("done")
    status = run.status()
    assert status.state == "done"
    assert (status.pid, status.host) == (os.getpid(), socket.gethostname())
    assert status.started <= status.heartbeat <= status.finished
    assert status.finished.endswith("+00:00")
    assert status.facts["device"] == "cpu"
    assert status.facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert status.facts["versions"].keys() >= {"python", "ablation", "cuda", "pyautoattack"}
    assert set(status.facts["git"]) == {"commit", "dirty"}


def test_a_run_that_nobody_holds_was_interrupted(run):
    with run.open(CONFIG):
        pass
    assert status_json(run)["state"] == "running"
    assert state(run) == "interrupted"


@pytest.mark.parametrize(
    ("error", "expected", "message", "term"),
    [
        (InterruptedRunError("stopped and saved"), "interrupted", "stopped and saved", None),
        (InputError("no space left"), "interrupted", "no space left", None),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt", None),
        (NonFiniteError("kl", "step 3"), "failed", "kl is not finite (step 3)", "kl"),
        (RuntimeError("out of\nmemory"), "failed", "RuntimeError: out of memory", None),
    ],
)
def test_an_exception_is_recorded_and_passes(run, error, expected, message, term):
    with pytest.raises(type(error)), run.open(CONFIG):
        raise error
    status = run.status()
    assert (status.state, status.error, status.term) == (expected, message, term)


def test_what_the_caller_recorded_stays(run):

    def fail() -> None:
        run.set_status("failed", error="mine")
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), run.open(CONFIG):
        fail()
    assert run.status().error == "mine"
    with run.open(CONFIG):
        assert status_json(run)["error"] is None


def test_a_second_process_is_refused_and_a_killed_one_is_interrupted(run):
    with elsewhere(run) as pid:
        assert state(run) == "running"
        with pytest.raises(InputError) as caught, run.open(CONFIG):
            pass
        message = str(caught.value)
        assert f"by pid {pid} on host {socket.gethostname()} since 20" in message
        assert message.endswith("wait for it or stop it")
        with pytest.raises(InputError, match=f"pid {pid}"), run.reopen():
            pass
    assert state(run) == "interrupted"
    assert run.status().error == "the process was killed"
    with run.open(CONFIG):
        assert run.status().pid == os.getpid()


def test_the_same_process_cannot_open_a_run_twice(run):
    with run.open(CONFIG):
        with pytest.raises(InputError, match=f"by pid {os.getpid()}"), run.open(CONFIG):
            pass
        assert state(run) == "running"


def test_a_silent_machine_is_believed_for_two_minutes(run, monkeypatch):
    with run.open(CONFIG):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        run.set_status("running")
        monkeypatch.undo()
    assert state(run) == "running"
    monkeypatch.setattr(status, "STALE_SECONDS", -1.0)
    assert state(run) == "interrupted"


def test_reopening_keeps_state_and_config(run):
    with pytest.raises(InputError, match="is no run"), run.reopen():
        pass
    with run.open(CONFIG):
        run.set_status("done")
    before = status_json(run)
    with run.reopen():
        assert state(run) == "done"
    after = status_json(run)
    del before["owner"], after["owner"]
    assert before == after


def test_another_config_is_refused_and_kept(run):
    with run.open(CONFIG):
        run.set_status("done")
    other = CONFIG.replace("cnn", "mlp").replace("0.1", "0.2")
    with pytest.raises(InputError, match=r"lr is 0.1 there and 0.2 in this command; move"):
        enter(run, other)
    assert run.config_path.read_text() == CONFIG
    assert state(run) == "done"


def test_what_changes_nothing_trained_may_differ(run):
    with run.open(CONFIG):
        pass
    other = CONFIG.replace("offline", "disabled").replace("cpu", "cuda") + "evaluation: {n: 3}\n"
    with run.open(other):
        pass
    assert run.config_path.read_text() == CONFIG
    with pytest.raises(InputError, match=r"tracking.mode is 'offline' there"):
        enter(run, other, ignore=("evaluation", "runtime"))


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe"])
def test_an_unreadable_config_is_not_overwritten(run, content):
    run.path.mkdir(parents=True)
    run.config_path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as caught, run.open(CONFIG):
        pass
    assert "\n" not in str(caught.value)
    assert run.config_path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": "odd"}', b"\xff"])
def test_an_unreadable_status_is_none(run, content):
    run.path.mkdir(parents=True)
    (run.path / "status.json").write_bytes(content)
    assert run.status() is None
    with run.open(CONFIG):
        assert state(run) == "running"


def test_opening_sweeps_what_killed_processes_left(run):
    with run.open(CONFIG):
        pass
    left = [
        run.path / f"status.json.tmp-{DEAD}",
        run.evaluations / f"last-1.json.tmp-{DEAD}",
        run.checkpoints.folder / f"last.safetensors.tmp-{DEAD}",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with run.open(CONFIG):
        assert not any(path.exists() for path in left)


def test_a_run_shows_that_it_lives_whatever_the_main_thread_does(run, monkeypatch):
    monkeypatch.setattr(status, "HEARTBEAT_SECONDS", 0.01)
    stamp = ["2030-01-01T00:00:00+00:00"]
    monkeypatch.setattr(status, "utc_now", lambda: stamp[0])
    with run.open(CONFIG):
        run.set_status("running", device="cpu")
        with run.beating():
            for second in range(1, 4):
                stamp[0] = f"2030-01-01T00:00:{second:02d}+00:00"
                wait_until(lambda: run.status().heartbeat == stamp[0])
            with monkeypatch.context() as full:
                full.setattr(os, "write", fail_with(errno.ENOSPC))
                time.sleep(0.05)
        stamp[0] = "2040-01-01T00:00:00+00:00"
        time.sleep(0.05)
        found = run.status()
    assert found.heartbeat < "2031"
    assert (found.state, found.facts["device"]) == ("running", "cpu")


def test_a_heartbeat_loses_nothing_that_is_recorded_meanwhile(run, monkeypatch):
    monkeypatch.setattr(status, "HEARTBEAT_SECONDS", 0.0)
    with run.open(CONFIG), run.beating():
        for number in range(100):
            run.note(number=number)
            assert run.status().facts["number"] == number


def wait_until(condition: Callable[[], bool]) -> None:
    """Give another thread ten seconds."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened")


def test_other_data_are_refused(run):
    with run.open(CONFIG):
        run.check_data("abc")
        run.check_data("abc")
        run.set_status("done")
    with run.open(CONFIG):
        run.check_data("abc")
        with pytest.raises(InputError, match=r"trained on other data \(fingerprint abc, now def"):
            run.check_data("def")


# Disks that fail


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"no space left on .* set runs_dir="),
        (errno.EROFS, r"cannot be written .* set runs_dir="),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "open", "write", "replace"])
def test_a_failing_disk_is_one_line(run, monkeypatch, call, number, message):
    (run.path.parent).mkdir()
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(InputError, match=message) as caught, run.open(CONFIG):
        pass
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    with run.open(CONFIG):
        assert run.config_path.read_text() == CONFIG


def test_a_file_as_runs_dir_is_named(run):
    run.path.parent.write_text("")
    with pytest.raises(InputError, match=r"runs is a file where a folder is needed"):
        enter(run)
    with pytest.raises(InputError, match=r"runs_dir=.*cannot be listed"):
        list(find_runs(run.path.parent))


def test_a_full_disk_during_training_leaves_the_run_resumable(run, monkeypatch):
    run.log({"epoch": 0})

    def fill() -> None:
        monkeypatch.setattr(os, "write", fail_with(errno.ENOSPC))
        run.log({"epoch": 1})

    with pytest.raises(InputError, match="no space left"), run.open(CONFIG):
        fill()
    monkeypatch.undo()
    assert state(run) == "interrupted"
    assert run.read_metrics() == [{"epoch": 0}]


# Metrics


def test_metrics_are_lines_and_never_hold_a_nan(run):
    assert run.read_metrics() == []
    row = {"epoch": 0, "loss": math.nan, "grad": -math.inf, "lr": np.float32(0.5), "phase": "main"}
    run.log(row)
    text = run.metrics_path.read_text()
    assert text.count("\n") == 1
    assert json.loads(text, parse_constant=pytest.fail) == {
        "epoch": 0,
        "loss": None,
        "loss_reason": "nan",
        "grad": None,
        "grad_reason": "-inf",
        "lr": 0.5,
        "phase": "main",
    }


def test_a_resumed_run_has_one_line_per_epoch_like_an_uninterrupted_one(run):
    straight = Run(run.path.with_name("straight"), TRAIN_ID)
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, "loss": 1 / (epoch + 3), "phase": "main"} for epoch in range(5)
    ]
    for row in rows:
        straight.log(row)
    for row in rows[:4]:
        run.log(row)
    with run.metrics_path.open("ab") as file:
        file.write(b'{"epoch": 4, "lo')
    assert run.read_metrics() == rows[:4]
    run.rewind_metrics(2)
    assert run.read_metrics() == rows[:2]
    for row in rows[2:]:
        run.log(row)
    assert run.metrics_path.read_bytes() == straight.metrics_path.read_bytes()


def test_a_torn_line_goes_when_the_next_is_written(run):
    run.log({"epoch": 0})
    with run.metrics_path.open("ab") as file:
        file.write(b'{"epoch": 1}')
    assert run.read_metrics() == [{"epoch": 0}]
    run.log({"epoch": 1})
    assert run.metrics_path.read_bytes() == b'{"epoch": 0}\n{"epoch": 1}\n'


def test_truncating_nothing_writes_nothing(run, monkeypatch):
    run.rewind_metrics(0)
    run.log({"epoch": 0})
    monkeypatch.setattr(os, "replace", fail_with(errno.ENOSPC))
    run.rewind_metrics(1)
    with pytest.raises(InputError, match="no space left"):
        run.rewind_metrics(0)
    assert run.read_metrics() == [{"epoch": 0}]


def test_a_half_written_line_is_taken_back(run, monkeypatch):
    run.log({"epoch": 0})
    write = os.write

    def half(handle: int, content: bytes) -> int:
        if len(content) < 5:
            raise OSError(errno.ENOSPC, "full")
        return write(handle, content[: len(content) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(InputError, match=r"no space left on .* while writing metrics.jsonl"):
        run.log({"epoch": 1})
    monkeypatch.undo()
    assert run.metrics_path.read_bytes() == b'{"epoch": 0}\n'


def test_a_damaged_line_in_the_middle_is_named(run):
    run.path.mkdir(parents=True)
    run.metrics_path.write_bytes(b'{"epoch": 0}\n\0\0\0\n{"epoch": 2}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        run.read_metrics()
    run.metrics_path.write_bytes(b'{"epoch": 0}\n\0\0\0\n')
    assert run.read_metrics() == [{"epoch": 0}]


# Evaluations


def entry(**changes: object) -> dict:
    fields = {"checkpoint": "last", "weights": "raw", "metric": "pgd20", "split": "test"}
    numbers = {"value": 51.5, "unit": "percent", "n": 100, "params": {"eps": 8 / 255}}
    return {**fields, **numbers, **changes}


EXAMPLES = pd.DataFrame({"index": [3, 5], "pgd20_robust": [True, False]})


def test_evaluations_add_up_to_a_result(run):
    assert run.result() is None
    assert not run.has_evaluation("last", "aaaa")
    with run.open(CONFIG):
        meta = {"scale": "full", "deviations": ["fewer epochs"], "seconds": {"pgd20": 1.5}}
        run.add_evaluation("last", "bbbb", [entry()], EXAMPLES, ["weak attack"], meta)
        clean = entry(metric="clean", value=math.nan)
        run.add_evaluation("last", "aaaa", [clean], EXAMPLES, ["weak attack", "few images"], meta)
    assert run.has_evaluation("last", "aaaa")
    expected = {
        "run": run.path.name,
        "train_id": TRAIN_ID,
        "scale": "full",
        "flags": ["weak attack", "few images"],
        "deviations": ["fewer epochs"],
        "entries": [entry(metric="clean", value=None, value_reason="nan"), entry()],
    }
    assert run.result() == expected
    assert json.loads(run.result_path.read_text()) == expected
    found = pd.read_parquet(run.evaluations / "last-bbbb.parquet")
    pd.testing.assert_frame_equal(found, EXAMPLES)
    record = json.loads((run.evaluations / "last-bbbb.json").read_text())
    assert record["meta"]["seconds"] == {"pgd20": 1.5}


def test_an_evaluation_is_never_overwritten(run):
    run.add_evaluation("last", "aaaa", [entry()], EXAMPLES)
    run.add_evaluation("last", "aaaa", [entry(value=1.0)], EXAMPLES[:1])
    assert run.result()["entries"] == [entry()]
    assert len(pd.read_parquet(run.evaluations / "last-aaaa.parquet")) == 2


def test_one_smoke_evaluation_marks_the_result(run):
    run.add_evaluation("last", "aaaa", [entry()], EXAMPLES, meta={"scale": "full"})
    run.add_evaluation("last", "bbbb", [entry()], EXAMPLES, meta={"scale": "smoke"})
    assert run.result()["scale"] == "smoke"


def test_an_entry_without_its_unit_is_refused(run):
    incomplete = entry()
    del incomplete["unit"], incomplete["n"]
    with pytest.raises(ValueError, match="lacks n, unit"):
        run.add_evaluation("last", "aaaa", [incomplete], EXAMPLES)
    assert run.result() is None


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_while_evaluating_keeps_the_earlier_results(run, monkeypatch, fails_at):
    run.add_evaluation("last", "aaaa", [entry()], EXAMPLES)
    replace = os.replace
    calls: list[Any] = []

    def sometimes(*args: str) -> None:
        calls.append(args)
        if len(calls) >= fails_at:
            raise OSError(errno.ENOSPC, "full")
        replace(*args)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(InputError, match="no space left"):
        run.add_evaluation("last", "bbbb", [entry(metric="clean")], EXAMPLES)
    monkeypatch.undo()
    assert len(json.loads(run.result_path.read_text())["entries"]) == 1
    assert run.has_evaluation("last", "bbbb") is (fails_at == 3)
    run.add_evaluation("last", "bbbb", [entry(metric="clean")], EXAMPLES)
    assert len(json.loads(run.result_path.read_text())["entries"]) == 2


def test_opening_heals_a_result_that_a_kill_left_behind(run):
    with run.open(CONFIG):
        run.add_evaluation("last", "aaaa", [entry()], EXAMPLES)
    run.result_path.unlink()
    with run.reopen():
        assert run.result_path.is_file()


@pytest.mark.parametrize(("left", "said"), [("{", True), ("{}", False)])
def test_a_damaged_result_is_written_anew_and_said(run, capsys, left, said):
    with run.open(CONFIG):
        run.add_evaluation("last", "aaaa", [entry()], EXAMPLES)
    whole = run.result_path.read_bytes()
    run.result_path.write_text(left)  # {} is what a kill may leave: an older result
    with run.reopen():
        assert run.result_path.read_bytes() == whole
    assert ("result.json was damaged" in capsys.readouterr().err) == said


def test_a_result_can_be_of_some_evaluations(run):
    for eval_id in ("aaaa", "bbbb"):
        run.add_evaluation("last", eval_id, [{**entry(), "metric": eval_id}], EXAMPLES)
    found = run.result([("last", "bbbb"), ("last", "cccc")])
    assert [one["metric"] for one in found["entries"]] == ["bbbb"]
    assert run.result([]) is None


def test_a_damaged_evaluation_is_named(run):
    run.add_evaluation("last", "aaaa", [entry()], EXAMPLES)
    (run.evaluations / "last-aaaa.json").write_text("{")
    with pytest.raises(InputError, match=r"last-aaaa.json is damaged"):
        run.result()


def test_runs_are_found_by_name(tmp_path):
    assert list(find_runs(tmp_path / "none")) == []
    names = [f"digits-cnn-at-s{seed}-{seed:010x}" for seed in (1, 0)]
    for name in names:
        with Run(tmp_path / name, name[-10:]).open(CONFIG):
            pass
    (tmp_path / "digits-cnn-at-s0-aaaaaaaaaa").mkdir()
    (tmp_path / "notes.txt").write_text("")
    found = list(find_runs(tmp_path))
    assert [run.path.name for run in found] == sorted(names)
    assert [run.train_id for run in found] == [f"{seed:010x}" for seed in (0, 1)]


# Signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_sets_the_flag_and_handlers_come_back(name, capfd):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.name == name
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.startswith(f"{name}: stopping after this step")


def test_a_second_ctrl_c_does_not_wait():
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started this in the background
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_install_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_component_that_came_later_leaves_old_runs_theirs(tmp_path):
    run = Run(tmp_path / "run", "id")
    old = {"lr": 0.1, "component": {"awp": {"gamma": 1}, "gone": {"enabled": False}}}
    new = {"lr": 0.1, "component": {"awp": {"gamma": 1}, "later": {"enabled": False}}}
    with run.open(yaml.safe_dump(old)):
        pass
    with run.open(yaml.safe_dump(new)):
        pass
    new["component"] = {"awp": {"gamma": 1}, "later": {"coef": 1}}
    with pytest.raises(InputError, match=r"component\.later"), run.open(yaml.safe_dump(new)):
        pass


# Small parts


def test_the_first_difference_is_found_in_order():
    old = {"b": {"x": 1, "y": [1, 2]}, "a": 1, "n": math.nan}
    assert first_difference(old, {"a": 1.0, "b": {"y": [1, 2], "x": 1}, "n": math.nan}) is None
    assert first_difference(old, {**old, "b": {"x": 1}}) == ("b.y", [1, 2], "(absent)")
    assert first_difference({"a": 1}, {"a": True}) == ("a", 1, True)
    assert first_difference(old, {**old, "b": 0}, ignore=("b",)) is None


def test_finite_reaches_into_everything():
    value = {"a": [1.0, math.inf, {"b": np.float64("nan")}], "c": torch.tensor(2), 3: (True,)}
    assert finite(value) == {"a": [1.0, None, {"b": None, "b_reason": "nan"}], "c": 2, "3": [True]}


# What somebody else does to a directory


def test_a_removed_lock_file_lets_nobody_in(run):
    with elsewhere(run):
        (run.path / ".lock").unlink()
        assert state(run) == "running"
        with pytest.raises(InputError, match="is being trained or evaluated by pid"):
            enter(run)


@pytest.mark.parametrize("call", ["log", "note", "save"])
def test_a_directory_removed_at_work_is_not_made_again(run, call):
    calls = {
        "log": lambda: run.log({"epoch": 0}),
        "note": lambda: run.note(a=1),
        "save": lambda: run.save(Snapshot(1, 0, {"w": torch.zeros(1)}, None, {})),
    }
    with run.open(CONFIG):
        shutil.rmtree(run.path)
        with pytest.raises(InputError, match="was removed or replaced"):
            calls[call]()
    assert not run.path.exists()


def test_a_fresh_claim_of_another_host_is_refused_without_locks(run, monkeypatch):
    enter(run)
    run.note(state="running", host="other")
    with pytest.raises(InputError, match=r"on host .*if that host is dead, run the same .* in 1"):
        enter(run)
    monkeypatch.setattr(status, "STALE_SECONDS", -1.0)
    enter(run)


def test_a_heartbeat_in_the_future_blocks_nobody(run):
    enter(run)
    run.note(state="running", host="other", heartbeat="2999-01-01T00:00:00+00:00")
    assert state(run) == "interrupted"
    enter(run)


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"a: [", b"\xff\xfe", b"!!python/none x", b"3"]
)
def test_a_damaged_config_is_named(run, content):
    enter(run)
    run.config_path.write_bytes(content)
    for call in (run.config, lambda: enter(run)):
        with pytest.raises(InputError, match=r"config\.yaml cannot be read"):
            call()
    assert run.config_path.read_bytes() == content


def test_what_is_left_of_a_finished_evaluation_goes(run):
    with run.open(CONFIG):
        run.evaluations.mkdir()
        for name in ("last-0a.json", "last-0a.parquet", "last-0a.partial", "last-0b.partial"):
            (run.evaluations / name).write_text('{"meta": {}, "flags": [], "entries": []}')
    enter(run)
    assert sorted(path.name for path in run.evaluations.glob("*.partial")) == ["last-0b.partial"]


def test_a_resume_passes_over_damaged_lines_and_names_their_epochs(run, capsys):
    with run.open(CONFIG):
        for epoch in range(4):
            run.log({"epoch": epoch})
        lines = run.metrics_path.read_bytes().splitlines()
        lines[1:3] = [b'{"epoch": \xff', b"[2]"]
        run.metrics_path.write_bytes(b"\n".join(lines) + b"\n")
        run.rewind_metrics(4)
        assert [row["epoch"] for row in run.read_metrics()] == [0, 3]
    assert "epochs 1, 2 are damaged or missing" in capsys.readouterr().err


def test_a_temporary_link_leads_nowhere(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    temporary_path(path).symlink_to(victim)
    atomic_write_text(path, "new")
    assert (victim.read_text(), path.read_text()) == ("mine", "new")


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
