"""Claims: who starts a job, and what is said of the jobs of others."""

from __future__ import annotations

import socket

import pytest

from ablation.runs.directory import Run
from ablation.sweeps.claims import Claim, claim_path, claimed


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "digits-mlp-at-s0-0123456789", "0123456789")


def test_one_of_two_sweeps_has_a_job(run):
    first, second = (Claim(run, lambda: "new") for _ in range(2))
    assert first.take() is None
    assert claimed(run)
    assert second.take() == "running elsewhere (another sweep has it)"
    assert second.lost == "running"
    first.release()
    assert not claimed(run)
    assert second.take() is None
    second.release()


def test_a_look_at_a_claim_does_not_take_it_away(run):
    assert not claimed(run)
    assert not claim_path(run).exists()


def test_who_works_on_a_run_is_named(run):
    with run.open("seed: 0\n"):
        claim = Claim(run, lambda: "running")
        said = claim.take()
    assert said is not None
    assert said.startswith("running elsewhere (pid ")
    assert said.endswith(f" on host {socket.gethostname()})")
    claim.release()


def test_what_our_own_process_wrote_is_not_others_work(run):
    claim = Claim(run, lambda: "failed")
    with run.open("seed: 0\n"):
        run.set_status("failed", error="no good")
    status = run.status()
    assert status is not None
    assert claim.elsewhere(status.pid) is None
    assert claim.elsewhere(status.pid + 1) == "failed elsewhere"


def test_where_there_are_no_locks_the_jobs_start(run, monkeypatch):
    def no_locks(*args, **kwargs):
        raise OSError(37, "No locks available")

    claim = Claim(run, lambda: "new")
    monkeypatch.setattr(claim._lock, "acquire", no_locks)
    assert claim.take() is None
