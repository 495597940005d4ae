"""Every table at a glance: its runs, what they would take, and what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ablation.config.compose import Composer
from ablation.config.evaluations import evaluation_ids
from ablation.config.experiment import Config
from ablation.config.overrides import quoted
from ablation.errors import ConfigError, InputError
from ablation.output import say
from ablation.runs.directory import find_runs
from ablation.runs.launches import recorded_launches
from ablation.sweeps.cost import Estimate, estimate, size
from ablation.sweeps.h100 import ASSUMED, estimate_on_h100
from ablation.sweeps.planning import Planner, state_of
from ablation.sweeps.request import open_table, table_folders
from ablation.sweeps.tables import Table, table_names
from ablation.text import one_line, summary_table

HEADER = (
    *("table", "runs", "shared", "done", "failed", "other", "time here", "on an H100", "disk"),
    "title",
)
NOTES = (
    "shared: runs that another table needs, too; the total counts them once. other: runs launched "
    "for the table with other settings (ablation-report table=<name> names them)",
    "Times and disk are of the runs that are not done, and estimates:",
    "here: measured on runs of equal cost, else passes through the network times a short probe of "
    "it on this machine ({devices}), right to about a factor of two if it is idle",
    f"{ASSUMED}, right to about a factor of three",
)

UNITS = {"years": 24 * 365.25, "days": 24.0, "h": 1.0}
"""Of estimated times, in hours, the largest first; one is used from two of it on."""


@dataclass(frozen=True)
class Need:
    """A run that a table needs.

    Attributes:
        config: of the run.
        state: of its job.
        share: of the run that is needed: below 1 for candidates among which some will be chosen.
    """

    config: Config
    state: str
    share: float = 1.0

    @property
    def run(self) -> str:
        """Name of its directory."""
        return self.config.run_name

    @property
    def cost(self) -> tuple[str, ...]:
        """Equal for runs that cost the same: those that differ in their seed alone."""
        return (self.config.arm_id, *evaluation_ids(self.config))


@dataclass(frozen=True)
class Cost:
    """What a run takes: seconds here and on an H100, and bytes."""

    here: float
    h100: float
    bytes: float


def publish_overview(runs_dir: Path, tables_dir: str | None = None) -> None:
    """Print every table with its runs, hours and disk.

    Args:
        runs_dir: where the runs are.
        tables_dir: the user's own table files, beside ours.

    Raises:
        InputError: ``runs_dir`` cannot be listed.
    """
    names = table_names(table_folders(tables_dir))
    composer, needs, titles, problems = Composer(), {}, {}, []
    for name in tqdm(names, desc="planning tables", disable=None, leave=False):
        try:
            table = open_table(name, tables_dir)
            needs[name] = list(needed_runs(table, runs_dir, composer))
            titles[name] = table.title
        except InputError as error:  # of the user's own; the others can be shown
            problems.append(f"left out: {name}: {_first_problem(error)}")
    every = [need for table in needs.values() for need in table]
    costs, devices = _costs(every, runs_dir)
    say(overview(needs, titles, _launched(runs_dir), costs, devices))
    for problem in problems:
        say(problem)


def _first_problem(error: InputError) -> str:
    return error.problems[0] if isinstance(error, ConfigError) else one_line(error)


def needed_runs(table: Table, runs_dir: Path, composer: Composer) -> Iterator[Need]:
    """The runs of a table; of an arm that waits for a choice, all candidates with their share.

    Args:
        table: whose runs.
        runs_dir: where they are, if they are done.
        composer: of an initialised ``GlobalHydra``; several tables may share one.

    Raises:
        ConfigError: the table has problems.
    """
    place = [f"++runs_dir={quoted(str(runs_dir))}"]
    seeds = [int(seed) for seed in table.axes.get("seed", ())]
    alike = set(table.axes) == {"seed"} and not any(arm.source for arm in table.arms.values())
    cli = [*place, f"seed={seeds[0]}"] if alike else place
    plan = Planner(table, cli, check=False, composer=composer).plan()
    if plan.problems:
        raise ConfigError(plan.problems)
    for job in plan.jobs:
        yield Need(job.config, job.state)
        for seed in seeds[1:] if alike else ():  # composing is what takes the time
            config = replace(job.config, seed=seed)
            yield Need(config, state_of(config))
    for wait in plan.pending:
        arm = table.arms[wait.arm]
        free = replace(arm, source=None, set=[*table.arms[wait.source].set, *arm.set])
        every = replace(table, arms={wait.arm: free}, rows=None)
        jobs = Planner(every, place, check=False, composer=composer).plan().jobs
        yield from (Need(job.config, "pending", wait.top / wait.candidates) for job in jobs)


def _launched(runs_dir: Path) -> Mapping[str, set[str]]:
    """Names of the runs that were launched for each table, with whatever settings.

    Raises:
        InputError: ``runs_dir`` cannot be listed.
    """
    launched: dict[str, set[str]] = {}
    for run in find_runs(runs_dir):
        for entry in recorded_launches(run):
            launched.setdefault(entry["table"], set()).add(run.path.name)
    return launched


def _costs(
    needs: Sequence[Need], runs_dir: Path
) -> tuple[Mapping[tuple[str, ...], Cost], Sequence[str]]:
    """By ``Need.cost``, of the runs that are not done; the devices that the seconds are of."""
    once = {need.cost: need.config for need in needs if need.state != "done"}
    configs = list(once.values())
    here, there = estimate(configs, runs_dir), estimate_on_h100(configs)
    found = {
        key: Cost(_seconds(mine), _seconds(other), mine.bytes)
        for key, mine, other in zip(once, here, there, strict=True)
    }
    return found, sorted({each.device for each in here})


def _seconds(found: Estimate) -> float:
    return found.train_seconds + found.evaluation_seconds


def overview(
    needs: Mapping[str, Sequence[Need]],
    titles: Mapping[str, str],
    launched: Mapping[str, set[str]],
    costs: Mapping[tuple[str, ...], Cost],
    devices: Sequence[str],
) -> str:
    """Aligned text: a line per table, and the total.

    Args:
        needs: by table.
        titles: by table.
        launched: by table, names of the runs that were launched for it.
        costs: by ``Need.cost``, of the runs that are not done.
        devices: that the seconds here are of.
    """
    tables = Counter(run for table in needs.values() for run in _runs(table))
    rows = []
    for name, table in needs.items():
        shared = sum(tables[run] > 1 for run in _runs(table))
        other = len(launched.get(name, set()) - _runs(table))
        rows.append(_row(name, table, costs, (shared, other), titles[name]))
    once = {(need.run, *need.cost): need for table in needs.values() for need in table}
    every: set[str] = set().union(*(launched.get(name, set()) for name in needs))
    beside = (sum(count > 1 for count in tables.values()), len(every - tables.keys()))
    rows.append(_row("total", list(once.values()), costs, beside, ""))
    notes = [note.format(devices=", ".join(devices) or "nothing left") for note in NOTES]
    return "\n".join([summary_table("", rows, HEADER), "", *notes])


def _runs(needs: Sequence[Need]) -> set[str]:
    return {need.run for need in needs}


def _row(
    name: str,
    needs: Sequence[Need],
    costs: Mapping[tuple[str, ...], Cost],
    beside: tuple[int, int],
    title: str,
) -> tuple[str, ...]:
    """A line; ``beside`` has the numbers of shared and of other runs."""
    shared, other = beside
    left = [(need.share, costs[need.cost]) for need in needs if need.state != "done"]
    states = Counter(need.state for need in needs)
    here, h100, disk = (
        sum(share * getattr(cost, key) for share, cost in left) for key in ("here", "h100", "bytes")
    )
    needed = round(sum(need.share for need in needs))
    counts = (needed, shared, states["done"], states["failed"], other)
    return (name, *map(str, counts), _time(here), _time(h100), size(disk) if left else "-", title)


def _time(seconds: float) -> str:
    """In a unit that a person can picture, to two digits: an estimate has no more."""
    hours = seconds / 3600
    count, unit = next(
        (hours / size, unit) for unit, size in UNITS.items() if hours >= 2 * size or unit == "h"
    )
    rounded = float(f"{count:.2g}")
    return f"{rounded:g} {unit}" if rounded < 10 else f"{rounded:.0f} {unit}"
