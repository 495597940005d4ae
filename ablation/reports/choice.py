"""Which runs a table shows: those launched with one command line, at every seed that there is."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation.config.experiment import Config
from ablation.config.overrides import key_of, quoted, variant
from ablation.errors import ConfigError, InputError
from ablation.reports.cells import counted
from ablation.reports.records import Directory, read, saved_config, value_at
from ablation.runs import launches
from ablation.runs.directory import Run, find_runs
from ablation.sweeps.planning import Pending, Plan, Planner, Point, ranking
from ablation.sweeps.tables import RowSpec, Table

Launches = Mapping[tuple[str, ...], Mapping[str, tuple[Run, set[str]]]]
"""Overrides -> name of a run launched with them -> the run, and the arms that it serves."""

Points = Mapping[str, Sequence[Point]]
"""By arm."""


@dataclass(frozen=True)
class Choice:
    """The runs that a table shows, and what they wrote.

    Attributes:
        lines: rows with an arm, in the table's order.
        points: the trainings behind the rows, each with its config.
        pending: by arm, those whose grid points cannot be chosen yet.
        recipes: the table's own trainings for one seed, without what the command line changed.
        ranked: by a row's key its arm's grid points, best first; ``None`` while runs are missing.
            Only of rows that stand for the best of several.
        directories: by path, what the runs of the rows wrote.
        smoke: whether the runs are at smoke scale.
        tried: arms that were run at smoke scale, while others are shown.
        notes: which runs are shown and which are not.
    """

    lines: Sequence[RowSpec]
    points: Points
    pending: Mapping[str, Pending]
    recipes: Points
    ranked: Mapping[str, list[tuple[str, ...]] | None]
    directories: Mapping[Path, Directory]
    smoke: bool
    tried: frozenset[str]
    notes: tuple[str, ...]

    def directory(self, point: Point) -> Directory:
        """What a point's run wrote."""
        return self.directories[config_of(point).run_dir]


def choose(
    name: str,
    table: Table,
    runs_dir: Path,
    cli: Sequence[str] = (),
    rows: Sequence[str] | None = None,
) -> Choice:
    """Choose the runs of a table and read them.

    Args:
        name: of the table.
        table: its file.
        runs_dir: where the runs are.
        cli: overrides that the runs were launched with; none means those of most runs.
        rows: arms to show; ``None`` means all.

    Raises:
        ConfigError: the table, with these overrides, has problems.
        InputError: ``runs_dir`` cannot be listed, or a file of a run is damaged.
    """
    runs = list(find_runs(runs_dir))
    launched = recorded(runs, name)
    asked = variant(list(cli), table.axes)
    request = _Request(table, runs_dir, list(cli), rows, launched, asked, _picked(asked, launched))
    once = functools.cache(read)
    more = request.more_axes()
    plan, left_out = _planned(request, more, once)
    smoke = _is_smoke(request.variant)
    shown = [config_of(p).run_dir for s in request.lines() for p in plan.points.get(s.arm, ())]
    directories = {path: once(path) for path in shown}
    return Choice(
        lines=request.lines(),
        points=plan.points,
        pending={wait.arm: wait for wait in plan.pending},
        recipes=_recipes(request, plan),
        ranked=_ranked(request.lines(), plan.points),
        directories=directories,
        smoke=smoke,
        tried=frozenset() if smoke else _smoke_arms(launched),
        notes=(
            *([] if runs else [f"no runs in {runs_dir}"]),
            *left_out,
            *_others(request, _names(plan), bool(more)),
            *(text for directory in directories.values() for text in directory.problems),
        ),
    )


def recorded(runs: Iterable[Run], table: str) -> Launches:
    """What a table asked for, by the overrides of the command line."""
    launched: dict[tuple[str, ...], dict[str, tuple[Run, set[str]]]] = {}
    for run in runs:
        for entry in launches.recorded_launches(run):
            if entry["table"] == table:
                served = launched.setdefault(_without_scale(entry["overrides"]), {})
                served.setdefault(run.path.name, (run, set()))[1].update(entry["arms"])
    return launched


def config_of(point: Point) -> Config:
    """A planned point's config."""
    assert point.config is not None  # noqa: S101  a plan with problems raises
    return point.config


def grids(points: Iterable[Point]) -> list[tuple[str, ...]]:
    """The grid points of an arm, each once."""
    return list(dict.fromkeys(point.grid for point in points))


def _without_scale(overrides: Iterable[str]) -> tuple[str, ...]:
    """``scale=full`` changes nothing, but asks for the table's own runs."""
    return tuple(text for text in overrides if text != "scale=full")


def _is_smoke(overrides: Iterable[str]) -> bool:
    return "scale=smoke" in overrides


def _picked(asked: Sequence[str], launched: Launches) -> list[str]:
    """What the command line changed in the runs that are shown: by default, in most of them."""
    full = {key: runs for key, runs in launched.items() if not _is_smoke(key)}
    if asked or () in full or not full:
        return list(_without_scale(asked))
    return list(max(full.items(), key=lambda item: len(item[1]))[0])


@dataclass(frozen=True)
class _Request:
    """What a report is asked for.

    Attributes:
        table: its file.
        runs_dir: where the runs are.
        cli: overrides of the command line.
        rows: arms; ``None`` means all.
        launched: what the table was launched with.
        asked: of ``cli``, what changes the table, axes apart.
        variant: what the command line changed in the runs that are shown.
    """

    table: Table
    runs_dir: Path
    cli: Sequence[str]
    rows: Sequence[str] | None
    launched: Launches
    asked: Sequence[str]
    variant: Sequence[str]

    def lines(self) -> list[RowSpec]:
        """The rows with an arm that are asked for."""
        lines = self.table.lines()
        return lines if self.rows is None else [spec for spec in lines if spec.arm in self.rows]

    def given_axes(self) -> list[str]:
        """Overrides of axes."""
        return [text for text in self.cli if key_of(text) in self.table.axes]

    def more_axes(self) -> dict[str, list[str]]:
        """Values of the axes that the table does not have, but runs of it do."""
        given = {key_of(text) for text in self.given_axes()}
        open_axes = {key: own for key, own in self.table.axes.items() if key not in given}
        configs = list(self.saved()) if open_axes else []
        beyond = {}
        for key, own in open_axes.items():
            seen = {value_at(config, key) for config in configs}
            numbers = {value for value in seen if type(value) in (int, float)}
            more = numbers - {_number(value) for value in own}
            if more:
                beyond[key] = [str(value) for value in sorted(more)]
        return beyond

    def plan(self, more: Mapping[str, Sequence[str]]) -> Plan:
        """The table's runs, with more values of its axes.

        Raises:
            ConfigError: the plan has problems.
        """
        axes = self.given_axes()
        for key, values in more.items():
            axes.append(f"{key}={','.join([*map(str, self.table.axes[key]), *values])}")
        return self.planned(self.table, [*self.variant, *axes], self.rows)

    def planned(self, table: Table, texts: Sequence[str], rows: Sequence[str] | None) -> Plan:
        """A table's plan.

        Raises:
            ConfigError: it has problems.
        """
        places = [f"++runs_dir={quoted(str(self.runs_dir))}", *self.data_dir()]
        plan = Planner(table, [*texts, *places], rows, check=False).plan()
        if plan.problems:
            raise ConfigError(plan.problems)
        return plan

    def data_dir(self) -> list[str]:
        """Where the images are, as an override: own images tell their classes, mean and deviation.

        That of the command line, or else of the runs that are shown.
        """
        given = [text for text in self.cli if key_of(text) == "data_dir"]
        if given:
            return given[-1:]
        places = (value_at(config, "data_dir") for config in self.saved())
        first = next((place for place in places if isinstance(place, str)), None)
        return [] if first is None else [f"++data_dir={quoted(first)}"]

    def saved(self) -> Iterator[Mapping[str, Any]]:
        """Read the configs of the runs that are shown, as far as they can be read."""
        for run, _ in self.launched.get(tuple(self.variant), {}).values():
            if config := _saved(run):
                yield config


def _saved(run: Run) -> Mapping[str, Any]:
    """A run's saved config; empty where it cannot be read, which ``read`` tells."""
    try:
        return saved_config(run)
    except InputError:
        return {}


def _number(value: object) -> object:
    """An axis' value as a run's config has it: a table may have it as text."""
    try:
        return float(str(value))
    except ValueError:
        return value


def _planned(
    request: _Request, more: Mapping[str, Sequence[str]], once: Callable[[Path], Directory]
) -> tuple[Plan, list[str]]:
    """The runs, those at more values of the axes too unless a selection would have to wait.

    Returns:
        The plan, and a note if it leaves those out.
    """
    plan = request.plan(more)
    if not more:
        return plan, []
    if plan.pending or None in _ranked(request.lines(), plan.points).values():
        axes = [f"{key}={','.join(values)}" for key, values in more.items()]
        return request.plan({}), [f"left out, because not all are done: {' '.join(axes)}"]
    return replace(plan, points=_started(plan.points, more, once)), []


def _started(
    points: Points, more: Mapping[str, Sequence[str]], once: Callable[[Path], Directory]
) -> dict[str, list[Point]]:
    """Points without those at more values of an axis that nobody asked this arm for."""
    beyond = {f"{key}={value}" for key, values in more.items() for value in values}
    return {
        arm: [
            point
            for point in every
            if not beyond & set(point.axis) or once(config_of(point).run_dir).state is not None
        ]
        for arm, every in points.items()
    }


def _ranked(lines: Sequence[RowSpec], points: Points) -> dict[str, list[tuple[str, ...]] | None]:
    """Grid points, best first, of the rows that stand for the best of several."""
    return {
        spec.key: ranking(points[spec.arm], spec.select)
        for spec in lines
        if spec.select and spec.arm in points and len(grids(points[spec.arm])) > 1
    }


def _recipes(request: _Request, plan: Plan) -> Points:
    """The table as its file has it, for one seed; arms that continue others with every grid.

    Planned anew only where the plan of the runs departs from that.
    """
    table = request.table
    seed = [f"seed={value}" for value in table.axes.get("seed", [])[:1]]
    changed = bool(request.given_axes()) or not set(request.variant) <= {"scale=smoke"}
    bare = {} if changed else {
        arm: [point for point in points if set(seed) <= set(point.axis)]
        for arm, points in plan.points.items()
        if table.arms[arm].source is None
    }  # fmt: skip
    wanted = table.arms if request.rows is None else request.rows
    left = [arm for arm in wanted if not bare.get(arm)]
    if not left:
        return bare
    arms = {
        name: replace(arm, source=None, set=[*table.arms[arm.source.arm].set, *arm.set])
        if arm.source
        else arm
        for name, arm in table.arms.items()
    }
    scale = ["scale=smoke"] if _is_smoke(request.variant) else []
    return {**bare, **request.planned(replace(table, arms=arms), [*scale, *seed], left).points}


def _names(plan: Plan) -> set[str]:
    return {config_of(point).run_name for points in plan.points.values() for point in points}


def _smoke_arms(launched: Launches) -> frozenset[str]:
    smoke = [runs for overrides, runs in launched.items() if _is_smoke(overrides)]
    return frozenset(arm for runs in smoke for _, arms in runs.values() for arm in arms)


def _others(request: _Request, shown: set[str], more: bool) -> list[str]:
    """With which overrides the runs were launched; runs that are not shown, and how to see them."""
    notes = []
    if request.variant:
        by_itself = "" if request.asked else " (most runs of this table)"
        notes.append(f"runs launched with: {shlex.join(request.variant)}{by_itself}")
    for overrides, runs in request.launched.items():
        hidden = runs.keys() - shown
        if not hidden:
            continue
        others = counted(len(hidden), "run")
        if list(overrides) != list(request.variant):
            add, leave = shlex.join(overrides), shlex.join(request.asked)
            how = f"add {add}" if overrides else f"leave out {leave}"
            notes.append(f"{others} of this table not shown: {how}")
        elif request.rows is None and not more and not request.given_axes():
            notes.append(
                f"{others} launched for this table before it changed: "
                f"ablation-report runs={request.runs_dir} compares any runs"
            )
    return notes
