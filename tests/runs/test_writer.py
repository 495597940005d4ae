"""The writing thread: order, bounds, and errors that stop what rests on them."""

from __future__ import annotations

import threading

import pytest
import torch

from ablation.errors import InputError
from ablation.runs.checkpoint import Snapshot
from ablation.runs.directory import Run
from ablation.runs.writer import Writer


def test_work_is_done_in_order_beside_the_caller():
    writer, gate = Writer(depth=3), threading.Event()
    done: list[str] = []

    def first() -> None:
        assert gate.wait(10)
        done.append(threading.current_thread().name)

    writer.submit(first)
    writer.submit(lambda: done.append("second"))
    assert done == []
    gate.set()
    writer.settle()
    assert done == ["writer_0", "second"]


def test_no_more_than_depth_is_held():
    writer, gate, third = Writer(depth=2), threading.Event(), threading.Event()

    def wait() -> None:
        assert gate.wait(10)

    def submit() -> None:
        writer.submit(lambda: None)
        third.set()

    for _ in range(2):
        writer.submit(wait)
    caller = threading.Thread(target=submit)
    caller.start()
    assert not third.wait(0.1)
    gate.set()
    assert third.wait(10)
    caller.join()
    writer.settle()


def test_after_an_error_nothing_more_is_done_until_it_was_told():
    writer = Writer()
    done: list[str] = []

    def fail() -> None:
        raise InputError("the disk is full")

    writer.submit(fail)
    writer.submit(lambda: done.append("rests on it"))
    for _ in range(2):  # a caller that goes on hears it again
        with pytest.raises(InputError, match="disk is full"):
            writer.submit(lambda: done.append("later"))
    with pytest.raises(InputError, match="disk is full"):
        writer.settle()
    assert done == []
    writer.submit(lambda: done.append("a new start"))
    writer.settle()
    assert done == ["a new start"]


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A run whose disk waits for the event."""
    run, gate = Run(tmp_path / "digits-mlp-at-s0-0123456789", "0123456789"), threading.Event()
    for name in ("save", "save_weights"):
        write = getattr(run.checkpoints, name)

        def wait(*given, write=write, **named):
            assert gate.wait(10)
            return write(*given, **named)

        monkeypatch.setattr(run.checkpoints, name, wait)
    run.path.mkdir()
    return run, gate


def test_what_is_saved_is_the_moment_of_the_call(held):
    run, gate = held
    net = torch.nn.Linear(2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    memory = torch.zeros(3)
    run.keep_weights("last", net, None, 0, 7, {"radius": memory})
    run.save(Snapshot(7, 0, net.state_dict(), net.state_dict(), {"memory": [memory]}))
    with torch.no_grad():
        for value in (*net.parameters(), memory):
            value.add_(1)
    gate.set()
    found = run.load()
    assert found is not None
    assert found.average is not None
    assert found.train["memory"][0].tolist() == [0, 0, 0]
    recorded = run.checkpoints.load_recorded("last")
    assert recorded is not None
    assert recorded[0]["radius"].tolist() == [0, 0, 0]
    for kept in (found.weights, found.average, run.checkpoints.load_weights("last", False)):
        assert all(torch.equal(kept[name], value) for name, value in before.items())


def test_a_state_is_not_written_after_best_weights_that_failed(tmp_path, monkeypatch):
    run = Run(tmp_path / "digits-mlp-at-s0-0123456789", "0123456789")
    run.path.mkdir()

    def full(*_: object, **__: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(run.checkpoints, "save_weights", full)
    net = torch.nn.Linear(2, 2)
    run.keep_weights("best_robust", net, None, 0, 7, {})
    run.save(Snapshot(7, 0, net.state_dict(), None, {"position": {"best": {"best_robust": [1]}}}))
    with pytest.raises(InputError, match="disk is full"):
        run.settle()
    assert not run.checkpoints.resumable()
