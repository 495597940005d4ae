"""The trials of a search: what Optuna proposes, and what each run tells it.

A trial counts as its best epoch's half of clean plus robust validation accuracy, in percent; a run
that diverged counts as 0. The study is a journal beside the runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ablation.config.overrides import quoted
from ablation.errors import InputError
from ablation.output import warn
from ablation.runs.launches import Launch
from ablation.sweeps.claims import Claim
from ablation.sweeps.planning import Job, state_of
from ablation.sweeps.spaces import Dimension, Search, override
from ablation.text import one_line

optuna.logging.set_verbosity(optuna.logging.WARNING)
FAILURES = 3
"""So many trials in a row that fail have one cause: no further one is started."""
STUDY = "search"
"""Name of the only study in a journal."""


class Trials:
    """The trials of a study, made when a place is free for them: first those that were broken off.

    Args:
        search: what is searched, and how.
        study: grows by the trials.
        total: how many trials it is to have; those that failed before are made up for.
        job_of: the run of a trial, by the values that it has.
    """

    def __init__(
        self,
        search: Search,
        study: optuna.Study,
        total: int,
        job_of: Callable[[Mapping[str, Any]], Job],
    ) -> None:
        self._search, self._study, self._total, self._job_of = search, study, total, job_of
        self._space = {key: distribution(each) for key, each in search.space.items()}
        study.pruner = _pruner(search)

    def __iter__(self) -> Iterator[Trial]:
        """Every trial that this command has to run.

        Raises:
            InputError: the config cannot take the values of a trial.
        """
        for broken in self._now(TrialState.RUNNING):
            self._study.enqueue_trial(broken.params)
            self._study.tell(broken.number, state=TrialState.FAIL)
        before, failed = len(self._now()), len(self._now(TrialState.FAIL))
        while self._now(TrialState.WAITING) or len(self._now()) - failed < self._total:
            if self._only_failures(before):
                warn(f"the last {FAILURES} trials failed; mend the cause and run the same again")
                return
            # A draw is a function of the seed, the trials before it and the draws so far (one that
            # was broken off and goes on is no new one): a search that was stopped goes on as if
            # it had not been.
            draws = sum("fixed_params" not in trial.system_attrs for trial in self._now())
            self._study.sampler = _sampler(self._search, draws)
            drawn = self._study.ask(self._space)
            try:
                job = self._job_of(drawn.params)
            except InputError:
                self._study.tell(drawn, state=TrialState.FAIL)
                raise
            yield Trial(self._study, drawn, job)

    def _only_failures(self, before: int) -> bool:
        """Tell whether the last trials of this command that ended have all failed."""
        ended = [trial for trial in self._now()[before:] if trial.state.is_finished()]
        last = ended[-FAILURES:]
        return len(last) == FAILURES and all(each.state == TrialState.FAIL for each in last)

    def _now(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)


class Trial:
    """One trial: what the pool runs, and whose turn it is (``ablation.sweeps.pool.Turn``).

    Args:
        study: is told how it ends.
        drawn: Optuna's side of it.
        job: the run.

    Attributes:
        title: for people.
        log: file of the job's output.
        overrides: of the job.
    """

    def __init__(self, study: optuna.Study, drawn: optuna.Trial, job: Job) -> None:
        self._study, self._drawn, self.job = study, drawn, job
        self._claim = Claim(job.run, partial(state_of, job.config))
        self._reported: set[int] = set()
        self._seen: tuple[int, int] | None = None
        self._pruned = False
        drawn.set_user_attr("run", job.config.run_name)
        values = [override(short(key), value) for key, value in drawn.params.items()]
        self.title = " ".join([f"trial {drawn.number}:", *values])
        self.log = job.run.path.parent / ".search" / f"{job.config.run_name}.log"
        launch = quoted(asdict(Launch(job.config.train_id)))
        self.overrides = [*job.points[0].overrides, f"++launch={launch}"]

    def take(self) -> str | None:
        """Claim the run; returns why it needs no process, else ``None``."""
        if state_of(self.job.config) == "done":
            return "done already"
        return self._claim.take()

    def elsewhere(self, pid: int | None = None) -> str | None:
        """What others do with the run; ``None`` if nothing."""
        return self._claim.elsewhere(pid)

    def unwanted(self) -> bool:
        """Report new epochs; returns whether the trial is to end early."""
        length = sum(phase.epochs for phase in self.job.config.phases)
        if self._report() and max(self._reported) < length:
            self._pruned = self._drawn.should_prune()
        return self._pruned

    def release(self) -> None:
        """Tell the study what the run directory says; a run that was broken off stays open."""
        self._claim.release()
        self._report()
        status = self.job.run.status()
        diverged = status is not None and status.term is not None
        if status is None or (status.state == "failed" and not diverged):
            self._study.tell(self._drawn, state=TrialState.FAIL)
        elif status.state == "failed":
            self._study.tell(self._drawn, 0.0)
        elif status.state == "done":
            values = scores(self.job.run.read_metrics())
            self._study.tell(self._drawn, max(values.values()))
        elif self._pruned:
            self._study.tell(self._drawn, state=TrialState.PRUNED)

    def _report(self) -> bool:
        """Hand on the epochs that ended since the last call; returns whether there were any."""
        with suppress(OSError, InputError):  # not there yet, or damaged
            found = self.job.run.metrics_path.stat()
            if (found.st_mtime_ns, found.st_size) == self._seen:
                return False
            values = scores(self.job.run.read_metrics())
            self._seen = found.st_mtime_ns, found.st_size
            new = sorted(values.keys() - self._reported)
            for step in new:
                self._drawn.report(values[step], step)
            self._reported |= set(new)
            return bool(new)
        return False


def short(key: str) -> str:
    """``coef`` of ``component.ema_logits.coef``."""
    return key.rpartition(".")[2]


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Half of clean plus robust validation accuracy (percent), by epochs trained, from 1."""
    return {
        row["epoch"] + 1: (row["val_clean"] + row["val_robust"]) / 2
        for row in rows
        if row.get("val_clean") is not None and row.get("val_robust") is not None
    }


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are over, pruned ones included, failed ones not."""
    over = (TrialState.COMPLETE, TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=over)


def open_study(journal: Path) -> optuna.Study:
    """Read a study, or begin one.

    Raises:
        InputError: its file cannot be read or written, or is damaged.
    """
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        if not journal.stat().st_size:
            return optuna.create_study(storage=storage, study_name=STUDY, direction="maximize")
        return optuna.load_study(storage=storage, study_name=STUDY)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{journal} cannot be read ({one_line(error)}): restore it, or move it away to begin "
            f"anew; runs that are done are not trained again"
        ) from error


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's name for the values of a key."""
    if dimension.low is None or dimension.high is None:
        return CategoricalDistribution(dimension.choices)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _sampler(search: Search, count: int) -> optuna.samplers.BaseSampler:
    seed = random.Random(f"{search.seed} {count}").getrandbits(32)
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=search.warmup)
    if search.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, search.warmup))
    return optuna.pruners.NopPruner()
