"""A search with a launcher that trains nothing: what it proposes, ends early, and goes on with."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir

from ablation.commands import cli, train
from ablation.config import folders, surroundings
from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED
from ablation.reports.search import after_search, ranked
from ablation.runs.directory import Run
from ablation.sweeps import search, spaces
from ablation.sweeps.trials import finished, open_study

pytestmark = pytest.mark.usefixtures("composed_once")

SEARCH: dict[str, Any] = {
    "title": "A search",
    "set": ["epochs=6", "monitor.enabled=false"],
    "space": {
        "lr": {"low": 0.0001, "high": 1.0, "log": True},
        "optim.momentum": {"low": 0.0, "high": 0.9},
    },
    "trials": 5,
    "pruner": "none",
}


def quality(config):
    """Best at a learning rate of 0.03 and momentum 0.5, between 0 and 90."""
    off = (math.log10(config.lr / 0.03) / 2) ** 2 + (config.optim.momentum - 0.5) ** 2
    return 90 / (1 + 3 * off)


class FakeLauncher:
    """Leaves run directories as training would; ``break_at`` breaks the trial of this number off.

    ``ending`` says how a run ends, by its config: ``done``, ``diverged`` or ``failed``.
    """

    def __init__(self, log, break_at=None, error=KeyboardInterrupt, ending=lambda _: "done"):
        self.log, self.break_at, self.error, self.ending = log, break_at, error, ending

    def stream(self, trials, total):
        for trial in trials:
            try:
                if trial.take() is None:
                    self._train(trial)
            finally:
                trial.release()

    def _train(self, trial):
        config = trial.job.config
        self.log.append(trial)
        run = Run(config.run_dir, config.train_id)
        with run.open(yaml.safe_dump(config.container(), sort_keys=False)):
            run.rewind_metrics(0)
            (run.checkpoints.folder / "step_0000001").mkdir(parents=True, exist_ok=True)
            for epoch in range(config.epochs):
                value = quality(config) * (1 - 0.5 ** (epoch + 1))
                run.log({"epoch": epoch, "val_clean": value + 5, "val_robust": value - 5})
                if len(self.log) - 1 == self.break_at and epoch == 2:
                    run.set_status("interrupted", error="SIGTERM")
                    raise self.error
                if trial.unwanted():
                    run.set_status("interrupted", error="SIGTERM")
                    return
            how = self.ending(config)
            term = "loss_ce" if how == "diverged" else None
            run.set_status("done" if how == "done" else "failed", error=how, term=term)


class Caller:
    plan, dry, waits, foreign, at_a_time = False, False, True, False, 1
    place: surroundings.Place = "here"
    max_batch_size: int | None = None
    device: str | None = None

    def __init__(self, **settings):
        self.log: list[Any] = []
        self.settings = settings

    def make_launcher(self):
        return FakeLauncher(self.log, **self.settings)


@pytest.fixture(autouse=True)
def _hydra():
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        yield


class Place:
    """A folder with a search file in it, and its runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()

    def write(self, **changes):
        (self.path / "searches").mkdir(parents=True, exist_ok=True)
        content = yaml.safe_dump({**SEARCH, **changes}, sort_keys=False)
        (self.path / "searches" / "mine.yaml").write_text(content)

    def arguments(self, *more):
        return ["search=mine", f"tables_dir={self.path}", f"++runs_dir={self.path}/runs", *more]

    def go(self, caller, *more):
        return search.run(caller, self.arguments(*more), after_search)

    def study(self, *more):
        return open_study(search.read_search(self.arguments(*more)).journal)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def drawn(study):
    return [tuple(trial.params.values()) for trial in sorted(finished(study), key=by_number)]


def by_number(trial):
    return trial.number


def test_it_closes_in_on_the_optimum(place):
    place.write(trials=30)
    assert place.go(Caller()) == DONE
    values = [trial.value or 0 for trial in sorted(finished(place.study()), key=by_number)]
    assert len(values) == 30
    # The first ten are TPE's random start.
    assert sum(values[20:]) / 10 > sum(values[:10]) / 10 + 10


def test_a_random_search_draws_in_the_space_whatever_it_finds(place):
    place.write(sampler="random", trials=20)
    place.go(Caller())
    rates, momenta = zip(*drawn(place.study()), strict=True)
    assert all(0.0001 <= rate <= 1 for rate in rates)
    assert sum(rate < 0.01 for rate in rates) in range(5, 16)  # half of the logarithms
    assert all(0 <= momentum <= 0.9 for momentum in momenta)


def test_a_trial_counts_as_its_best_epoch(place):
    place.write(trials=1)
    caller = Caller()
    place.go(caller)
    (trial,) = finished(place.study())
    rows = caller.log[0].job.run.read_metrics()
    assert trial.value == max((row["val_clean"] + row["val_robust"]) / 2 for row in rows)
    assert trial.user_attrs["run"] == caller.log[0].job.config.run_name


def test_no_trial_sees_test_images(place):
    caller = Caller()
    place.go(caller)
    configs = [trial.job.config for trial in caller.log]
    assert [dict(config.evaluation.attacks) for config in configs] == [{}] * 5
    assert all("evaluation=none" in trial.overrides for trial in caller.log)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, error):
    through, broken = Place(tmp_path / "a"), Place(tmp_path / "b")
    for place in (through, broken):
        place.write(trials=12)  # TPE's random start are ten
    through.go(Caller())
    first = Caller(break_at=4, error=error)
    if error is KeyboardInterrupt:
        assert broken.go(first) == INTERRUPTED
    else:
        with pytest.raises(RuntimeError):
            broken.go(first)
    second = Caller()
    assert broken.go(second) == DONE
    assert (len(first.log), len(second.log)) == (5, 8)
    assert second.log[0].job.run.path == first.log[4].job.run.path
    assert drawn(broken.study()) == drawn(through.study())


def test_finished_trials_are_not_repeated_and_more_can_be_asked_for(place):
    assert place.go(Caller(), "trials=5") == DONE
    again, more = Caller(), Caller()
    assert place.go(again, "trials=5") == DONE
    assert again.log == []
    assert place.go(more, "trials=7") == DONE
    assert len(more.log) == 2
    assert len(finished(place.study())) == 7


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_bad_trials_end_early(place, pruner):
    place.write(pruner=pruner, warmup=1, trials=25)
    caller = Caller()
    assert place.go(caller) == DONE
    trials = {trial.user_attrs["run"]: trial for trial in finished(place.study())}
    runs = {trial.job.config.run_name: trial.job.run for trial in caller.log}
    pruned = [name for name, trial in trials.items() if trial.state.name == "PRUNED"]
    assert 5 <= len(pruned) <= 20
    for name in pruned:
        assert 1 <= len(runs[name].read_metrics()) < 6
        assert runs[name].status().state == "interrupted"
    ends = {name: quality(trial.job.config) for name, trial in zip(runs, caller.log, strict=True)}
    assert max(ends, key=lambda name: ends[name]) not in pruned


def test_nothing_ends_early_during_the_warmup(place):
    place.write(pruner="median", warmup=6, trials=8)
    place.go(Caller())
    assert {trial.state.name for trial in finished(place.study())} == {"COMPLETE"}


def test_a_run_that_diverged_counts_as_0(place):
    ending = {True: "diverged", False: "done"}
    place.go(Caller(ending=lambda config: ending[config.lr > 0.1]), "trials=6")
    values = {trial.params["lr"]: trial.value for trial in finished(place.study())}
    assert len(values) == 6
    assert any(rate > 0.1 for rate in values)
    assert all((value == 0) == (rate > 0.1) for rate, value in values.items())


def test_failed_trials_are_made_up_for_by_the_next_command(place):
    endings = iter(["failed", "done", "failed", "failed", "done", "done"])
    caller = Caller(ending=lambda config: next(endings))
    assert place.go(caller, "trials=6") == JOB_FAILED
    assert len(caller.log) == 6
    assert len({one.job.config.lr for one in caller.log}) == 6  # a failure is not drawn again
    assert len(finished(place.study())) == 3
    again = Caller()
    assert place.go(again, "trials=6") == DONE
    assert len(again.log) == 3
    assert not {one.job.config.lr for one in again.log} & {one.job.config.lr for one in caller.log}


def test_failures_in_a_row_end_the_search(place, capsys):
    caller = Caller(ending=lambda config: "failed")
    assert place.go(caller, "trials=6") == JOB_FAILED
    assert len(caller.log) == 3
    assert "the last 3 trials failed; mend the cause" in capsys.readouterr().err


def test_another_base_config_is_another_study(place):
    place.go(Caller(), "trials=2")
    place.go(Caller(), "trials=2", "++seed=1")
    assert len(list((place.path / "runs" / ".search").glob("mine-*.log"))) == 2


def test_one_process_at_a_time(place, capsys):
    journal = search.read_search(place.arguments()).journal
    with search.locked(journal):
        assert place.go(Caller()) == BAD_INPUT
    assert "another process runs this search" in capsys.readouterr().err


def test_a_damaged_study_is_said(place, capsys):
    place.go(Caller(), "trials=1")
    journal = search.read_search(place.arguments()).journal
    journal.write_text("no journal\n" * 3)
    assert place.go(Caller()) == BAD_INPUT
    assert f"{journal} cannot be read" in capsys.readouterr().err


def test_the_plan_starts_nothing(place, capsys):
    caller = Caller()
    place.go(caller, "trials=2")
    caller.plan = True
    assert place.go(caller, "trials=5") == DONE
    out = capsys.readouterr().out
    assert "mine: 2 finished, 3 left" in out
    assert "left to compute, if none ends early: about" in out
    assert len(caller.log) == 2


LR = {"low": 0.1, "high": 0.2}


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({}, ["search=mien"], "search=mien: did you mean mine?"),
        ({}, ["search=../mine"], "search=../mine: did you mean mine?"),
        ({"space": {"lrr": LR}}, [], "lrr=0.1: unknown key; did you mean lr?"),
        ({"space": {"lr": {"low": 1, "high": 1}}}, [], "low=1 must be below high=1"),
        ({"space": {"lr": {"low": 1}}}, [], "mine.yaml: space.lr: an empty range"),
        ({"space": {"lr": {"low": 0, "high": 1, "log": True}}}, [], "low=0 must be positive"),
        ({"space": {"lr": {**LR, "choices": [1]}}}, [], "low and high, or choices, not both"),
        ({"space": {"lr": {**LR, "step": -1}}}, [], "step=-1: a positive number"),
        ({"space": {"lr": {"choices": [None, 1]}}}, [], "choices are numbers, words"),
        ({"space": {"optim.momentum": {"low": 0, "high": 2}}}, [], "momentum=2"),
        ({"space": {"method": {"choices": ["at", "att"]}}}, [], "att"),
        ({"space": {"runtime.device": {"choices": ["cpu", "auto"]}}}, [], "changes nothing"),
        ({"space": {}}, [], "space: empty"),
        ({"trials": 0}, [], "trials=0: at least 1"),
        ({"sampler": "tpee"}, [], "did you mean tpe?"),
        ({"warmup": -1}, [], "warmup=-1"),
        ({"extra": 1}, [], "extra=1: unknown key"),
        ({"set": ["epochs=(1"]}, [], "epochs=(1"),
        ({"set": ["evaluation=quick"]}, [], "test images must not enter"),
        ({}, ["evaluation.n=10"], "test images must not enter"),
        ({}, ["++monitor.curves=[test]"], "test images must not enter"),
        ({}, ["++monitor.effective_margin=true"], "it measures test images"),
        ({}, ["++data.val_size=0", "++selection.metric=last"], "held-out training images"),
        ({}, ["++lr=0.1"], "lr=0.1: the search chooses lr; remove it"),
        ({}, ["seed=0,1"], "seed=0,1: a search has one value per key"),
        ({}, ["table=demo"], "give search= or table="),
        ({}, ["trials=x"], "trials=x: a whole number from 1"),
        ({}, ["trials=true"], "trials=True: a whole number from 1"),
        ({}, ["trials=-1"], "trials=-1: a whole number from 1"),
    ],
)
def test_bad_input_is_said_before_anything_starts(place, capsys, changes, arguments, said):
    place.write(**changes)
    caller = Caller()
    assert search.run(caller, [*place.arguments(), *arguments], after_search) == BAD_INPUT
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (place.path / "runs").exists()


def test_a_launcher_that_cannot_end_a_trial_is_refused(place, capsys):
    caller = Caller()
    caller.make_launcher = object  # type: ignore[method-assign]
    assert place.go(caller) == BAD_INPUT
    assert "needs hydra/launcher=basic or pool" in capsys.readouterr().err


def test_without_optuna_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(spaces, "find_spec", lambda _: None)
    (problem,) = cli.preflight("config", ["search=lma", "-m"], train.check, planned=True)
    assert problem == (
        "search= needs Optuna, which is not installed: pip install 'ablation[search]'"
    )


def test_what_one_job_cannot_have(tmp_path):
    problems = cli.preflight("config", ["trials=3"], train.check, planned=True)
    assert problems == ["trials=3: belongs to a sweep; add search=<name>"]


def test_values_have_six_digits_and_are_those_that_train(place):
    caller = Caller()
    place.go(caller, "trials=3")
    for trial, kept in zip(caller.log, sorted(finished(place.study()), key=by_number), strict=True):
        assert trial.job.config.lr == float(f"{kept.params['lr']:.6g}")


def test_lma_searches_the_space_of_the_paper(tmp_path):
    (tmp_path / "data").mkdir()
    request = search.read_search(["search=lma", f"++data_dir={tmp_path}/data"])
    space = request.search.space
    ranges = {key: (each.low, each.high) for key, each in space.items()}
    assert ranges == {
        "component.ema_logits.coef": (1, 100),
        "component.ema_logits.alpha": (1.345, 9.345),
        "component.ema_logits.tau": (0, 0.999),
        "component.margin_loss.delta": (0, 1),
        "optim.weight_decay": (1e-5, 0.2),
    }
    assert [key for key, each in space.items() if each.log] == ["optim.weight_decay"]
    assert space["component.ema_logits.alpha"].step == 1
    assert (request.base.method.name, request.base.epochs) == ("lma_at", 130)
    assert not request.base.evaluation.attacks


def test_the_best_trial_comes_first(place):
    place.write(pruner="median", trials=20)
    place.go(Caller())
    trials = ranked(place.study())
    complete = [trial.value or 0 for trial in trials if trial.state.name == "COMPLETE"]
    assert complete == sorted(complete, reverse=True)
    assert [trial.state.name for trial in trials] == sorted(trial.state.name for trial in trials)


@pytest.mark.slow
def test_two_trials_on_the_digits_and_their_report(tmp_path):
    place = Place(tmp_path)
    place.write(
        set=[
            *("epochs=1", "attack.steps=1", "selection.attack.steps=1", "selection.n=20"),
            *("data.train_size=200", "tracking.mode=disabled", "runtime.device=cpu"),
            "monitor.enabled=false",
        ]
    )
    words = [text.lstrip("+") for text in place.arguments()]

    def command(name, *more):
        code = [sys.executable, "-m", "ablation.commands.scripts", name]
        return subprocess.run([*code, *words, *more], capture_output=True, text=True, check=False)

    done = command("train", "trials=2", "hydra/launcher=pool", "hydra.launcher.jobs=2")
    assert done.returncode == DONE, done.stdout + done.stderr
    assert "2 complete" in done.stdout
    again = command("train", "trials=2")
    assert again.returncode == DONE
    assert "mine: 2 trials, 2 finished" in again.stdout
    runs = [Run.at(path) for path in (tmp_path / "runs").iterdir() if path.name[0] != "."]
    assert len(runs) == 2
    for run in runs:
        status = run.status()
        assert status is not None
        assert status.state == "done"
        assert not list(run.evaluations.glob("*"))
    report = command("report", f"out={tmp_path}/out")
    assert report.returncode == DONE, report.stderr
    assert "2 complete" in report.stdout
    assert len((tmp_path / "out/search_mine/trials.csv").read_text().splitlines()) == 3
