"""A sweep from its command line to its exit code, with launchers that behave and that do not."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir

from ablation.config import compose, folders, validation
from ablation.config.overrides import parsed, quoted
from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED, ConfigError
from ablation.jobs import train as job
from ablation.reports.epilogue import after_sweep
from ablation.runs import launches
from ablation.runs.directory import Run
from ablation.sweeps import claims, planning, request, slurm, sweep
from tests.support.fake_runs import fake_run

pytestmark = pytest.mark.usefixtures("composed_once")

TABLE = """
title: Three arms
set: [epochs=3, evaluation=demo]
axes: {seed: [0, 1]}
arms:
  at: {set: [method=at]}
  trades: {set: [method=trades]}
  awp: {set: [method=at, component/awp=enabled]}
"""


class FakeLauncher:
    """Trains nothing: leaves run directories in the states that it is told."""

    def __init__(self, log, states=None, raises=None, before=None):
        self.log, self.states, self.raises = log, states or {}, raises
        self.before = before or {}  # what others do just before a job would start
        self.describe: Any = None

    def launch(self, job_overrides, initial_job_idx):
        for overrides in job_overrides:
            container = compose.Composer().plain(overrides)
            found = validation.load(container)
            job.check_plan(found)
            title, path, claim = self.describe(overrides)
            if title in self.before:
                self.before.pop(title)(found)
            if claim.take():
                continue
            self.log.append((found, list(overrides)))
            state = self.states.get(title, "done")
            if state == "lost":
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("first line\nthe last thing it said\n")
            fake_run(found, {"clean": 90, "pgd20": 40}, state=state, launch=found.launch)
        if self.raises is not None:
            raise self.raises


class Caller:
    def __init__(self, plan=False, max_batch_size=None, **kwargs):
        self.plan, self.max_batch_size, self.kwargs = plan, max_batch_size, kwargs
        self.log: list = []
        self.batches, self.at_a_time = 0, 1
        self.dry, self.waits, self.foreign, self.device = False, True, False, None
        self.place = "here"

    def make_launcher(self):
        self.batches += 1
        return FakeLauncher(self.log, **self.kwargs)

    @property
    def titles(self):
        return [f"{found.method.name}-{found.seed}" for found, _ in self.log]


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(TABLE)
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        yield tmp_path


@pytest.fixture
def go(tmp_path):
    def run(caller, *arguments):
        places = [f"tables_dir={tmp_path}", f"++runs_dir={tmp_path}/runs"]
        return sweep.run(caller, [*arguments, *places], after_sweep)

    return run


def test_a_table_is_trained_and_reported(go, capsys):
    caller = Caller()
    assert go(caller, "table=mine") == DONE
    assert caller.titles == ["at-0", "at-1", "trades-0", "trades-1", "at-0", "at-1"]
    out = capsys.readouterr().out
    assert "mine: 6 jobs, 0 done" in out
    assert "mine: 6 done" in out
    assert "Three arms" in out
    assert "90.0" in out


def test_the_same_command_again_runs_nothing(go):
    assert go(Caller(), "table=mine") == DONE
    again = Caller()
    assert go(again, "table=mine") == DONE
    assert again.batches == 0


def test_every_job_knows_who_asked_for_it(go):
    caller = Caller()
    go(caller, "table=mine", "row=at", "seed=0", "++lr=0.2")
    ((found, _),) = caller.log
    assert found.launch == launches.Launch(
        found.train_id, "mine", ["at"], ["lr=0.2"], "mine/at lr=0.2"
    )
    assert launches.recorded_launches(Run(found.run_dir, found.train_id)) == [
        {"table": "mine", "arms": ["at"], "overrides": ["lr=0.2"]}
    ]


def test_the_group_of_a_run_in_wandb_is_its_first_tables_row(go, tmp_path):
    text = TABLE.replace("set: [method=trades]", 'set: [method=trades, "lr=0.1,0.2"]')
    (tmp_path / "grid.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text)
    first = Caller()
    go(first, "table=grid", "row=trades", "seed=0")
    go(Caller(), "table=other", "row=trades", "seed=0")
    groups = [launches.recorded_group(Run(f.run_dir, f.train_id)) for f, _ in first.log]
    assert groups == ["grid/trades lr=0.1", "grid/trades lr=0.2"]


def test_an_unreachable_server_is_said_once_and_no_job_waits_for_it(go, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(sweep, "offline_reason", lambda config: "no server")
    caller = Caller()
    assert go(caller, "table=mine", "++tracking.mode=online") == DONE
    assert capsys.readouterr().err.count("tracking offline (no server)") == 1
    assert os.environ["WANDB_MODE"] == "offline"


def test_runs_that_were_there_are_recorded_for_the_table(go, tmp_path):
    first = Caller()
    go(first, "table=mine", "row=at", "seed=0")
    (tmp_path / "other.yaml").write_text(TABLE)
    second = Caller()
    assert go(second, "table=other", "row=at", "seed=0") == DONE
    assert second.batches == 0
    found, _ = first.log[0]
    tables = [e["table"] for e in launches.recorded_launches(Run(found.run_dir, found.train_id))]
    assert tables == ["mine", "other"]


def test_failures_are_named_with_their_last_lines_and_the_rest_goes_on(go, capsys):
    caller = Caller(states={"trades seed=0": "failed"})
    assert go(caller, "table=mine") == JOB_FAILED
    assert len(caller.log) == 6
    out = capsys.readouterr().out
    assert "FAILED trades seed=0: loss_ce is not finite" in out
    assert "retry=true goes on" in out
    assert "the last thing it said" in out
    assert "5 done, 1 failed" in out


def test_failed_jobs_are_retried_only_when_asked(go):
    go(Caller(states={"trades seed=0": "failed"}), "table=mine")
    patient = Caller()
    assert go(patient, "table=mine") == JOB_FAILED
    assert patient.log == []
    asked = Caller(states={"trades seed=0": "lost"})
    go(asked, "table=mine", "++retry=true")
    assert [(f.method.name, f.seed) for f, _ in asked.log] == [("trades", 0)]


def test_a_launcher_that_raises_loses_nothing_and_a_rerun_completes(go, capsys):
    states = {"awp seed=1": "lost", "trades seed=1": "interrupted"}
    assert go(Caller(states=states, raises=RuntimeError("a worker\ndied")), "table=mine") == 3
    captured = capsys.readouterr()
    assert "the launcher gave up: RuntimeError: a worker died" in captured.err
    assert "FAILED awp seed=1: it did not start" in captured.out
    again = Caller(states={"trades seed=1": "lost"})
    go(again, "table=mine")
    assert sorted(f.run_name for f, _ in again.log) == sorted(
        f.run_name for f, _ in again.log if f.seed == 1
    )
    assert len(again.log) == 2


def test_ctrl_c_says_how_to_go_on(go, capsys):
    caller = Caller(states={"awp seed=1": "lost"}, raises=KeyboardInterrupt())
    assert go(caller, "table=mine") == INTERRUPTED
    assert "the same command again continues" in capsys.readouterr().err


def test_arms_that_the_command_line_makes_equal_run_once(go, capsys):
    caller = Caller()
    assert go(caller, "table=mine", "component/awp=disabled", "seed=0") == DONE
    assert caller.titles == ["at-0", "trades-0"]
    launch = caller.log[0][0].launch
    assert launch is not None
    assert launch.arms == ["at", "awp"]
    assert "90.0" in capsys.readouterr().out


# Two sweeps at once


def test_a_job_that_another_sweep_starts_runs_elsewhere_and_has_not_failed(go, capsys):
    theirs = []

    def starts(found):
        theirs.append(claims.Claim(Run(found.run_dir, found.train_id), lambda: "new"))
        assert theirs[0].take() is None

    caller = Caller(before={"trades seed=0": starts})
    assert go(caller, "table=mine") == INTERRUPTED
    assert len(caller.log) == 5
    out = capsys.readouterr().out
    assert "5 done, 1 running" in out
    assert "1 job still runs elsewhere" in out
    assert "FAILED" not in out
    theirs[0].release()
    assert go(Caller(), "table=mine") == DONE


def test_a_run_that_a_single_command_trains_is_not_started(go, capsys):
    with contextlib.ExitStack() as stack:

        def starts(found):
            run = Run(found.run_dir, found.train_id)
            stack.enter_context(run.open(yaml.safe_dump(found.container(), sort_keys=False)))

        caller = Caller(before={"trades seed=0": starts})
        assert go(caller, "table=mine", "row=trades") == INTERRUPTED
        assert caller.titles == ["trades-1"]
        assert "FAILED" not in capsys.readouterr().out


def test_a_job_that_others_finished_meanwhile_is_done(go):
    caller = Caller(before={"trades seed=1": lambda found: fake_run(found, {})})
    assert go(caller, "table=mine", "row=trades") == DONE
    assert caller.titles == ["trades-0"]


def test_a_job_that_failed_elsewhere_meanwhile_is_not_tried_again(go, capsys):
    go(Caller(states={"trades seed=0": "failed"}), "table=mine", "row=trades")
    fails = {"trades seed=0": lambda found: age(fake_run(found, {}, state="failed"))}
    caller = Caller(before=fails)
    assert go(caller, "table=mine", "row=trades", "++retry=true") == JOB_FAILED
    assert caller.log == []
    assert "FAILED trades seed=0: loss_ce is not finite" in capsys.readouterr().out


def age(run):
    """Its status has the time of another second than that of the attempt before."""
    status = json.loads((run.path / "status.json").read_text())
    status["finished"] = "2030-01-01T00:00:00+00:00"
    (run.path / "status.json").write_text(json.dumps(status))


def test_a_job_that_was_left_unfinished_elsewhere_is_taken_up(go, monkeypatch):
    running = iter([True])
    take = claims.Claim.take

    def others_first(self):
        if next(running, False):
            self.lost = "running"
            return "running elsewhere"
        return take(self)

    monkeypatch.setattr(claims.Claim, "take", others_first)
    caller = Caller()
    assert go(caller, "table=mine", "row=trades") == DONE
    assert caller.titles == ["trades-1", "trades-0"]


def test_launchers_that_start_jobs_out_of_sight_get_only_what_nobody_has(go, monkeypatch, tmp_path):
    given = []

    class Other:
        def launch(self, job_overrides, initial_job_idx):
            given.extend(job_overrides)

    caller = Caller()
    monkeypatch.setattr(caller, "make_launcher", Other)
    asked = request.read_request(["table=mine", "row=trades", f"tables_dir={tmp_path}",
                                  f"++runs_dir={tmp_path}/runs"])  # fmt: skip
    first, second = planning.Planner(asked.table, asked.cli, asked.rows).plan().jobs
    claim = claims.Claim(first.run, lambda: "new")
    assert claim.take() is None
    go(caller, "table=mine", "row=trades")
    assert [f"planned_id:'{second.config.train_id}'" in text for (*_, text) in given] == [True]


def test_a_run_that_comes_up_under_another_row_is_not_tried_twice(go, tmp_path):
    text = """
title: Two stages
set: [evaluation=demo, "evaluation.val=[pgd20]", epochs=2]
arms:
  search: {set: [method=at, "lr=0.1,0.2"]}
  long: {set: [epochs=5], from: {arm: search, top: 1, by: {metric: pgd20, split: val}}}
  fixed: {set: [method=at, lr=0.1, epochs=5]}
"""
    (tmp_path / "stages.yaml").write_text(text)
    caller = Caller(states={"fixed": "lost"})
    assert go(caller, "table=stages") == JOB_FAILED
    assert [(f.epochs, f.lr) for f, _ in caller.log] == [(2, 0.1), (2, 0.2), (5, 0.1)]


# SLURM's queue


class Submits:
    """Puts jobs in a queue that a fake squeue shows, and starts none."""

    submitted: Any = None

    def __init__(self, log):
        self.log = log

    def launch(self, job_overrides, initial_job_idx):
        for n, overrides in enumerate(job_overrides):
            self.log.append(overrides)
            if self.submitted is not None:
                self.submitted(overrides, f"7_{n}", Path(f"7_{n}.out"))
        return []


@pytest.fixture
def cluster(monkeypatch):
    """A caller whose launcher submits and returns."""
    monkeypatch.setattr(slurm, "_states", lambda ids: {f"7_{n}": "PENDING" for n in range(9)})
    caller = Caller()
    caller.waits = False
    monkeypatch.setattr(caller, "make_launcher", lambda: Submits(caller.log))
    return caller


def test_what_is_queued_is_submitted_once_and_planned_as_queued(go, cluster, capsys):
    assert go(cluster, "table=mine", "row=trades") == DONE
    assert len(cluster.log) == 2
    out = capsys.readouterr().out
    assert "trades seed=0: SLURM job 7_0 (log 7_0.out)" in out
    assert "2 jobs are in SLURM's queue: the same command again looks anew" in out
    assert "FAILED" not in out
    assert "±" not in out
    assert go(cluster, "table=mine", "row=at,trades") == DONE
    assert len(cluster.log) == 4
    cluster.plan = True
    capsys.readouterr()
    assert go(cluster, "table=mine") == DONE
    out = capsys.readouterr().out
    assert "queued 7_1 PENDING  trades seed=1" in out
    assert "4 queued, 2 new" in out


def test_jobs_of_another_call_that_are_queued_leave_a_waiting_one_unfinished(go, cluster):
    go(cluster, "table=mine", "row=trades")
    assert go(Caller(), "table=mine", "row=trades") == INTERRUPTED


def test_a_launcher_that_waited_leaves_no_ticket(go, cluster, tmp_path):
    cluster.waits = True
    assert go(cluster, "table=mine", "row=trades") == JOB_FAILED  # none of them ran
    assert list((tmp_path / "runs" / ".sweep").glob("*.slurm")) == []


def test_a_dry_launcher_shows_and_leaves_nothing(go, cluster, tmp_path, capsys):
    cluster.dry = True
    assert go(cluster, "table=mine", "row=trades") == DONE
    out = capsys.readouterr().out
    assert "# 1: trades seed=1, digits-tiny_cnn-trades-s1-" in out
    assert "nothing was submitted" in out
    assert not (tmp_path / "runs").exists()


def test_batches_limit_what_a_launcher_gets_at_once(go):
    caller = Caller(max_batch_size=4)
    assert go(caller, "table=mine") == DONE
    assert (caller.batches, len(caller.log)) == (2, 6)


def test_a_plan_starts_nothing(go, capsys):
    caller = Caller(plan=True)
    assert go(caller, "table=mine", "row=at,trades") == DONE
    out = capsys.readouterr().out
    assert caller.batches == 0
    assert out.count("new    ") == 4
    assert "method=trades" in out
    assert "left to compute: about" in out


def test_a_plain_sweep_goes_through_the_same_checks(go, capsys):
    assert go(Caller(), "++lr=0.1,-1", "method=at,trades") == BAD_INPUT
    assert "lr=-1: must be positive" in capsys.readouterr().err
    caller = Caller()
    assert go(caller, "method=at,trades", "seed=0,1", "evaluation=demo") == DONE
    assert caller.titles == ["at-0", "at-1", "trades-0", "trades-1"]
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert rows[:2] == ["at", "trades"]


def test_a_sweep_without_evaluation_has_nothing_to_compare(go, capsys):
    assert go(Caller(), "method=at,trades", "evaluation=none") == DONE
    assert "nothing to compare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=mine", "row=nope"], "row=nope: choose from at, trades, awp"),
        (["table=mein"], "table=mein: did you mean mine?"),
        (["row=at"], "row= chooses rows of a table: add table=<name>"),
        (["table=mine", "++component.awp.gamma=1"], "no effect, component.awp is disabled"),
        (["table=mine", "++epoch=1"], "epoch=1: unknown key; did you mean epochs?"),
    ],
)
def test_mistakes_start_nothing(go, capsys, arguments, message):
    caller = Caller()
    assert go(caller, *arguments) == BAD_INPUT
    assert message in capsys.readouterr().err
    assert caller.batches == 0


def test_the_stages_of_a_table_follow_each_other(go, tmp_path):
    text = """
title: Two stages
set: [evaluation=demo, "evaluation.val=[pgd20]", epochs=2]
arms:
  search: {set: [method=at, "lr=0.1,0.2,0.3"]}
  long: {set: [epochs=5], from: {arm: search, top: 1, by: {metric: pgd20, split: val}}}
"""
    (tmp_path / "stages.yaml").write_text(text)
    caller = Caller()
    assert go(caller, "table=stages") == DONE
    assert [(f.epochs, f.lr) for f, _ in caller.log] == [(2, 0.1), (2, 0.2), (2, 0.3), (5, 0.1)]


def test_a_stage_that_cannot_be_chosen_is_said_to_wait(go, tmp_path, capsys):
    text = """
title: Two stages
set: [evaluation=demo, "evaluation.val=[pgd20]", epochs=2]
arms:
  search: {set: [method=at, "lr=0.1,0.2,0.3"]}
  long: {set: [epochs=5], from: {arm: search, top: 2, by: {metric: pgd20, split: val}}}
"""
    (tmp_path / "stages.yaml").write_text(text)
    caller = Caller(states={"search lr=0.2": "lost"})
    assert go(caller, "table=stages") == JOB_FAILED
    out = capsys.readouterr().out
    assert "pending: long waits for all of search" in out
    assert "3 jobs, 0 done, 2 more when they are chosen" in out


def test_overrides_survive_hydras_grammar():
    facts = {"a": None, "b": ["x=1,2", "it's", r"back\slash"], "c": "123e4"}
    text = f"++launch={quoted(facts)}"
    assert parsed(text).value() == facts


def test_a_job_refuses_to_be_another_than_planned(tmp_path):
    container = compose.Composer().plain(["++launch={planned_id:'0123456789'}"])
    with pytest.raises(Exception, match=r"launch\.planned_id=0123456789: this job is"):
        job.train({**container, "runs_dir": str(tmp_path)})
    assert list(Path(tmp_path).glob("digits-*")) == []


def test_the_request_of_a_plain_sweep_has_its_seeds_as_axis():
    asked = request.read_request(["method=at,trades", "++seed=0,1"])
    points = planning.Planner(asked.table, asked.cli).plan().points[""]
    assert [(p.grid, p.axis) for p in points][:2] == [
        (("method=at",), ("seed=0",)),
        (("method=at",), ("seed=1",)),
    ]
    with pytest.raises(ConfigError):
        request.read_request(["row=a"])
