"""Search hyperparameters on validation images: Optuna proposes, every trial is an ordinary run.

A trial trains and is not evaluated, so no test image enters. The same command again continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from optuna import Study

from ablation.config.compose import Composer
from ablation.config.experiment import Config, digest
from ablation.config.overrides import bare, key_of, parsed
from ablation.config.parser import plain
from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.output import say, warn
from ablation.sweeps.cost import describe_total, estimate
from ablation.sweeps.planning import Job, Planner
from ablation.sweeps.request import table_folders
from ablation.sweeps.spaces import Search, open_search, override
from ablation.sweeps.sweep import Caller
from ablation.sweeps.tables import Arm, Table
from ablation.sweeps.trials import Trials, finished, open_study
from ablation.text import one_line

OWN_KEYS = ("search", "trials", "tables_dir")
"""Keys of a command line that name the search; they are not passed on to trials."""
UNEVALUATED = "evaluation=none"
"""Override of every trial, on top of all others."""


@dataclass(frozen=True)
class SearchRequest:
    """A search's command line, taken apart and checked.

    Attributes:
        name: of the search.
        search: the file.
        cli: what the command line says on top of the file.
        tables_dir: the user's own folder of files, if one was given.
        trials: how many.
        base: the config at the first value of every key.
    """

    name: str
    search: Search
    cli: tuple[str, ...]
    tables_dir: str | None
    trials: int
    base: Config

    @property
    def scale(self) -> str:
        """``smoke`` marks everything that is shown."""
        return self.base.scale

    @property
    def runs_dir(self) -> Path:
        """Where the runs are."""
        return Path(self.base.runs_dir).expanduser()

    @property
    def journal(self) -> Path:
        """The study's file: another base config or another space is another study."""
        space = plain(self.search.space)
        key = digest({"base": self.base.identity(), "space": space})
        return self.runs_dir / ".search" / f"{self.name}-{key}.log"


Epilogue = Callable[[SearchRequest, Study], str]
"""Text to print after the last trial."""


def run(caller: Caller, arguments: Sequence[str], epilogue: Epilogue) -> int:
    """Run a search; returns an exit code.

    Args:
        caller: Hydra's sweeper.
        arguments: task overrides.
        epilogue: makes the text printed after the last trial.
    """
    try:
        request = read_search(arguments)
        if caller.plan:
            say(described(request, caller.at_a_time))
            return DONE
        launcher = _launcher(caller)
        with locked(request.journal):
            return _searched(request, open_study(request.journal), launcher, epilogue)
    except InputError as error:
        warn(error.told())
        return BAD_INPUT


def _launcher(caller: Caller) -> Any:
    """The chosen launcher.

    Raises:
        InputError: it runs whole batches only.
    """
    launcher = caller.make_launcher()
    if not hasattr(launcher, "stream"):
        raise InputError("search=: needs hydra/launcher=basic or pool, which can end a trial early")
    return launcher


def _searched(request: SearchRequest, study: Study, launcher: Any, epilogue: Epilogue) -> int:
    """Launch trials until there are enough, then say how it went."""
    done = len(finished(study))
    say(f"{request.name}: {request.trials} trials, {done} finished (study {request.journal})")
    trials = Trials(request.search, study, request.trials, partial(_job, request, Composer()))
    stopped = False
    try:
        launcher.stream(trials, max(0, request.trials - done))
    except KeyboardInterrupt:
        stopped = True
    say(epilogue(request, study))
    if stopped:
        warn("stopped; the same command again continues")
        return INTERRUPTED
    return DONE if len(finished(study)) >= request.trials else JOB_FAILED


def described(request: SearchRequest, at_a_time: int) -> str:
    """What is done, what is left to compute, and where the study is."""
    done = 0
    if request.journal.is_file():
        done = len(finished(open_study(request.journal)))
    left = max(0, request.trials - done)
    lines = [f"{request.name}: {done} finished, {left} left (study {request.journal})"]
    if left:
        found = estimate([request.base] * left, request.runs_dir)
        lines.append(f"left to compute, if none ends early: {describe_total(found, at_a_time)}")
    return "\n".join(lines)


def read_search(arguments: Sequence[str]) -> SearchRequest:
    """Understand a search's command line, and check that every trial of it can be composed.

    Args:
        arguments: task overrides in Hydra's grammar.

    Raises:
        InputError: there is no such search.
        ConfigError: with everything that is wrong with the file, an override or a value.
    """
    try:
        own = {key_of(text): parsed(text).value() for text in arguments if key_of(text) in OWN_KEYS}
    except HydraException as error:
        raise ConfigError([one_line(error)]) from error
    name = str(own["search"])
    folder = None if own.get("tables_dir") is None else str(own["tables_dir"])
    search = open_search(name, table_folders(folder))
    trials: Any = search.trials if own.get("trials") is None else own["trials"]
    cli = tuple(text for text in arguments if key_of(text) not in (*OWN_KEYS, "launch"))
    problems = _override_problems(search, cli)
    if type(trials) is not int or trials < 1:
        problems.append(f"trials={trials}: a whole number from 1")
    if problems:
        raise ConfigError(problems)
    base = _checked(search, cli)
    return SearchRequest(name, search, cli, folder, trials, base)


def _override_problems(search: Search, cli: Sequence[str]) -> list[str]:
    """What no trial can have, one line each."""
    problems = []
    for text in (*search.set, *cli):
        try:
            given, key = parsed(text), key_of(text)
        except HydraException as error:
            problems.append(f"{text}: {one_line(error)}")
            continue
        if key in search.space:
            problems.append(f"{bare(text)}: the search chooses {key}; remove it")
        elif key in ("table", "row"):
            problems.append(f"{bare(text)}: a search has no table; give search= or table=")
        elif given.is_sweep_override():
            problems.append(f"{bare(text)}: a search has one value per key; searched: "
                            f"{', '.join(search.space)}")  # fmt: skip
        elif key.split(".")[0] == "evaluation" and bare(text) != UNEVALUATED:
            problems.append(
                f"{bare(text)}: trials are not evaluated, for test images must not enter; "
                f"evaluate the best run afterwards: ablation-evaluate run=..."
            )
    return problems


def _checked(search: Search, cli: Sequence[str]) -> Config:
    """The config at the first value of every key, after a look at each extreme of each.

    Raises:
        ConfigError: with every problem.
    """
    first = {key: dimension.extremes()[0] for key, dimension in search.space.items()}
    every = {"first": first} | {
        override(key, value): {**first, key: value}
        for key, dimension in search.space.items()
        for value in dimension.extremes()[1:]
    }
    arms = {name: Arm(_overrides(search, params)) for name, params in every.items()}
    plan = Planner(Table(search.title, arms), list(cli)).plan()
    if plan.problems:
        raise ConfigError(plan.problems)
    configs = {name: points[0].config for name, points in plan.points.items()}
    base = configs["first"]
    assert base is not None  # noqa: S101  there were no problems
    ids = {name: config.train_id for name, config in configs.items() if config is not None}
    problems = [
        f"space.{key}: changes nothing that is trained; remove it"
        for key, dimension in search.space.items()
        if {ids[override(key, value)] for value in dimension.extremes()[1:]} <= {base.train_id}
    ]
    if problems := [*problems, *_split_problems(base)]:
        raise ConfigError(problems)
    return base


def _split_problems(config: Config) -> list[str]:
    """Trials are compared on images that are held out of the training images, and see no others."""
    problems = []
    if not config.data.val_size:
        problems.append("data.val_size=0: trials are compared on held-out training images")
    if "test" in config.monitor.curves:
        problems.append("monitor.curves: test images must not enter a search; give [] or [val]")
    if config.monitor.effective_margin:
        problems.append("monitor.effective_margin=true: it measures test images; set it to false")
    return problems


def _overrides(search: Search, params: Mapping[str, Any]) -> list[str]:
    return [*search.set, *(override(key, value) for key, value in params.items()), UNEVALUATED]


def _job(request: SearchRequest, composer: Composer, params: Mapping[str, Any]) -> Job:
    """The run of a trial.

    Raises:
        ConfigError: the config cannot take these values.
    """
    arm = Arm(_overrides(request.search, params))
    plan = Planner(Table(request.search.title, {"": arm}), request.cli, composer=composer).plan()
    if plan.problems:
        raise ConfigError(plan.problems)
    return plan.jobs[0]


@contextmanager
def locked(journal: Path) -> Iterator[None]:
    """Keep other processes from running the same search.

    Raises:
        InputError: one runs it, or the folder cannot be written.
    """
    lock = FileLock(journal.with_suffix(".lock"))
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{journal}: another process runs this search") from error
    except OSError as error:
        raise InputError(f"{journal.parent} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
