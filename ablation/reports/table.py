"""From run directories to a ``Comparison``: the runs of a table, or any runs grouped by keys.

Nothing but run directories is read; what a cell cannot vouch for is said, not shown as a number.
"""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ablation.config.experiment import Config
from ablation.config.overrides import key_of, quoted, variant
from ablation.errors import ConfigError
from ablation.reports.cells import Number, counted, filled, unique
from ablation.reports.comparison import Absence, Cell, Comparison, Row, Sample
from ablation.reports.deviations import deviations
from ablation.reports.recipes import Recipe
from ablation.reports.records import (
    Directory,
    Found,
    asked_columns,
    measured,
    own_evaluations,
    read,
    saved_config,
    value_at,
)
from ablation.runs import launches
from ablation.runs.directory import Run, find_runs
from ablation.sweeps.planning import Pending, Plan, Planner, Point, ranking
from ablation.sweeps.published import PRINTED_AS, Published, PublishedTable
from ablation.sweeps.tables import RowSpec, Table

Launches = Mapping[tuple[str, ...], Mapping[str, tuple[Run, set[str]]]]


def recorded(runs: Iterable[Run], table: str) -> Launches:
    """What a table asked for: overrides -> name of the run -> run and the arms that it serves."""
    found: dict[tuple[str, ...], dict[str, tuple[Run, set[str]]]] = {}
    for run in runs:
        for entry in launches.recorded_launches(run):
            if entry["table"] == table:
                served = found.setdefault(_without_scale(entry["overrides"]), {})
                served.setdefault(run.path.name, (run, set()))[1].update(entry["arms"])
    return found


def _without_scale(overrides: Iterable[str]) -> tuple[str, ...]:
    """``scale=full`` changes nothing, but asks for the table's own runs."""
    return tuple(text for text in overrides if text != "scale=full")


def _is_smoke(overrides: Iterable[str]) -> bool:
    return "scale=smoke" in overrides


class TableReport:
    """A table's comparison.

    Args:
        name: of the table.
        table: its file.
        published: its CSV; ``None`` if there is none.
        runs_dir: where the runs are.
        cli: overrides that the runs were launched with; none means: find out.
        rows: arms to show; ``None`` means all.

    Raises:
        InputError: ``runs_dir`` cannot be listed.
    """

    def __init__(
        self,
        name: str,
        table: Table,
        published: PublishedTable | None,
        runs_dir: Path,
        cli: Sequence[str] = (),
        rows: Sequence[str] | None = None,
    ) -> None:
        self._name, self._table, self._published = name, table, published
        self._runs_dir, self._given, self._rows = runs_dir, list(cli), rows
        runs = list(find_runs(runs_dir))
        self._notes = [] if runs else [f"no runs in {runs_dir}"]
        self._launches = recorded(runs, name)
        self._asked = variant(self._given, table.axes)
        self.variant = self._pick()
        self._read = functools.cache(read)
        self._recipes: Mapping[str, Sequence[Point]] = {}

    def _pick(self) -> list[str]:
        """What the command line changed in the runs that are shown: by default, in most of them."""
        full = {key: runs for key, runs in self._launches.items() if not _is_smoke(key)}
        if self._asked or () in full or not full:
            return list(_without_scale(self._asked))
        return list(max(full.items(), key=lambda item: len(item[1]))[0])

    def build(self) -> Comparison:
        """Read the runs.

        Raises:
            ConfigError: the table, with these overrides, has problems.
            InputError: a file of a run is damaged.
        """
        plan = self._plan()
        self._recipes = self._bare_plan().points
        columns = self._columns(plan.points)
        waiting = {wait.arm: wait for wait in plan.pending}
        rows: dict[str, list[Row]] = {}
        for spec in self._shown():
            if spec.arm in waiting:
                rows[spec.key] = [self._waiting(spec, columns, waiting[spec.arm])]
            else:
                rows[spec.key] = self._lines(spec, plan.points[spec.arm], columns)
        if self._rows is None:
            rows |= {key: [self._unavailable(key, columns)] for key in self._table.unavailable}
        smoke = _is_smoke(self.variant)
        return Comparison(
            name=f"{self._name}-smoke" if smoke else self._name,
            title=self._table.title,
            columns=columns,
            rows=tuple(row for key in self._order(rows) for row in rows[key]),
            scale="smoke" if smoke else "full",
            notes=(*self._notes, *self._unavailable_notes()),
        )

    # Which runs

    def _shown(self) -> list[RowSpec]:
        lines = self._table.lines()
        return lines if self._rows is None else [s for s in lines if s.arm in self._rows]

    def _plan(self) -> Plan:
        """The table's runs, and those of more seeds unless a selection would have to wait."""
        plan = self._planned({})
        extras = self._extras(plan)
        if extras:
            more = self._planned(extras)
            if not self._waits(more):
                plan = replace(more, points=self._started(more.points, extras))
            else:
                axes = [f"{key}={','.join(values)}" for key, values in extras.items()]
                self._notes.append(f"left out, because not all are done: {' '.join(axes)}")
        self._note_others(plan, extras)
        return plan

    def _planned(self, extras: Mapping[str, Sequence[str]]) -> Plan:
        axes = [text for text in self._given if key_of(text) in self._table.axes]
        for key, values in extras.items():
            own = map(str, self._table.axes[key])
            axes.append(f"{key}={','.join([*own, *values])}")
        overrides = [*self.variant, *axes, *self._places()]
        plan = Planner(self._table, overrides, self._rows, check=False).plan()
        if plan.problems:
            raise ConfigError(plan.problems)
        return plan

    def _places(self) -> list[str]:
        return [f"++runs_dir={quoted(str(self._runs_dir))}"]

    def _extras(self, plan: Plan) -> dict[str, list[str]]:
        """Values of the axes that the table does not have, but runs of it do."""
        known = self._names(plan)
        launched = self._launches.get(tuple(self.variant), {})
        configs = [saved_config(run) for name, (run, _) in launched.items() if name not in known]
        given = {key_of(text) for text in self._given}
        found = {}
        for key, values in self._table.axes.items():
            seen = {value_at(config, key) for config in configs if key not in given}
            more = {value for value in seen if type(value) in (int, float)} - set(values)
            if more:
                found[key] = [str(value) for value in sorted(more)]
        return found

    def _waits(self, plan: Plan) -> bool:
        chosen = [spec for spec in self._shown() if spec.select and spec.arm in plan.points]
        return bool(plan.pending) or any(
            ranking(plan.points[spec.arm], spec.select) is None
            for spec in chosen
            if spec.select and len(_grids(plan.points[spec.arm])) > 1
        )

    def _started(
        self, points: Mapping[str, Sequence[Point]], extras: Mapping[str, Sequence[str]]
    ) -> dict[str, list[Point]]:
        """Points without extra ones that nobody asked this arm for."""
        extra = {f"{key}={value}" for key, values in extras.items() for value in values}
        return {
            arm: [p for p in found if not extra & set(p.axis) or self._at(p).state is not None]
            for arm, found in points.items()
        }

    def _bare_plan(self) -> Plan:
        """The table as its file has it, for one seed; arms that continue others with every grid."""
        arms = {
            name: replace(arm, source=None, set=[*self._table.arms[arm.source.arm].set, *arm.set])
            if arm.source
            else arm
            for name, arm in self._table.arms.items()
        }
        seed = [f"seed={value}" for value in self._table.axes.get("seed", [])[:1]]
        scale = ["scale=smoke"] if _is_smoke(self.variant) else []
        table = replace(self._table, arms=arms)
        overrides = [*scale, *seed, *self._places()]
        plan = Planner(table, overrides, self._rows, check=False).plan()
        if plan.problems:
            raise ConfigError(plan.problems)
        return plan

    def _recipe(self, point: Point) -> Recipe:
        """The table's own point that is nearest: the command line may have replaced a grid."""
        config = _config(point)
        source = self._table.arms[point.arm].source
        every = self._recipes[point.arm]
        same = [other for other in every if other.grid == point.grid] or every
        configs = [_config(other) for other in same]
        if source is not None and source.weights:  # the plan has chosen where it starts from
            configs = [replace(other, init_from=config.init_from) for other in configs]
        return Recipe(min(configs, key=lambda other: len(deviations(other, config))))

    def _names(self, plan: Plan) -> set[str]:
        return {_config(point).run_name for found in plan.points.values() for point in found}

    def _at(self, point: Point) -> Directory:
        return self._read(_config(point).run_dir)

    # Rows

    def _columns(self, points: Mapping[str, Sequence[Point]]) -> tuple[str, ...]:
        if self._published is not None:
            return self._published.columns
        every = [*points.values(), *self._recipes.values()]
        configs = [_config(point) for found in every for point in found]
        shown = configs[: sum(map(len, points.values()))]
        asked = map(asked_columns, [*shown, *configs[:1]])
        return tuple(dict.fromkeys(column for columns in asked for column in columns))

    def _lines(self, spec: RowSpec, points: Sequence[Point], columns: Sequence[str]) -> list[Row]:
        """A row; without a selection one per grid point."""
        grids = _grids(points)
        if not grids:
            source = self._table.arms[spec.arm].source
            why = f"every grid point of {source.arm} failed" if source else ""
            return [self._empty(spec, columns, {"failed": source.top if source else 1}, why)]
        if len(grids) == 1 or spec.select is None:
            many = len(grids) > 1
            return [self._row(spec, grid, points, columns, " ".join(grid), many) for grid in grids]
        ranked = ranking(points, spec.select)
        if ranked is None:
            states = Counter(self._at(point).state for point in points)
            done = f"{states['done']} of {counted(len(points), 'run')} done"
            by = f"best val {spec.select.metric} of {len(grids)}: {done}"
            return [self._empty(spec, columns, self._reasons(points), by)]
        failed = f", {len(grids) - len(ranked)} failed" if len(ranked) < len(grids) else ""
        by = f"best val {spec.select.metric} of {len(grids)}{failed}"
        if not ranked:
            return [self._empty(spec, columns, self._reasons(points), by)]
        chosen = f"{' '.join(ranked[0])} ({by})"
        return [self._row(spec, ranked[0], points, columns, chosen)]

    def _row(
        self,
        spec: RowSpec,
        grid: tuple[str, ...],
        points: Sequence[Point],
        columns: Sequence[str],
        chosen: str,
        several: bool = False,
    ) -> Row:
        # An axis may name one value in two ways.
        mine = {
            (_config(p).run_name, own_evaluations(_config(p))): p for p in points if p.grid == grid
        }
        pinned = self._pinned(spec, points)
        cells, flags = {}, []
        for column in columns:
            cells[column], found = self._cell(spec, column, list(mine.values()), pinned)
            flags.append(found)
        key = f"{spec.key} {' '.join(grid)}" if several else spec.key
        runs = tuple(dict.fromkeys(_config(point).run_dir for point in mine.values()))
        return Row(key, self._label(spec), spec.arm, cells, chosen, unique(flags), runs=runs)

    def _pinned(self, spec: RowSpec, points: Sequence[Point]) -> tuple[str, ...]:
        """A tag for a row whose choice among grid points the command line has narrowed."""
        now, planned = len(_grids(points)), len(_grids(self._recipes[spec.arm]))
        free = spec.select is None or self._table.arms[spec.arm].source is not None
        return () if free or now >= planned else (f"{now} of {counted(planned, 'grid point')}",)

    def _cell(
        self, spec: RowSpec, column: str, points: Sequence[Point], pinned: tuple[str, ...]
    ) -> tuple[Cell, tuple[str, ...]]:
        absent: Counter[Absence] = Counter()
        numbers = []
        for point in points:
            config, recipe = _config(point), self._recipe(point)
            found = measured(config, self._at(point), column, recipe.attack(column) or {})
            if not isinstance(found, Found):
                absent[self._why(found, point)] += 1
                continue
            sample = Sample(
                " ".join(point.axis), found.value, found.n, config.run_name, found.examples
            )
            tags = (*recipe.tags(config, found), *self._stand_ins(spec, config), *pinned)
            numbers.append(Number(found, sample, tags, recipe.mismatches(found)))
        return filled(column, numbers, absent, self._number(spec.key, column))

    def _why(self, absence: Absence, point: Point) -> Absence:
        """A run that is missing at full scale, but was tried at smoke scale, is said to be so."""
        if absence != "missing" or _is_smoke(self.variant):
            return absence
        smoke = [runs for overrides, runs in self._launches.items() if _is_smoke(overrides)]
        tried = {arm for runs in smoke for _, arms in runs.values() for arm in arms}
        return "smoke" if point.arm in tried else absence

    def _reasons(self, points: Sequence[Point]) -> Counter[Absence]:
        """Why no grid point is chosen yet: what is done waits for the rest."""
        found = [self._at(point) for point in points]
        return Counter(
            "pending" if run.state == "done" else self._why(run.absence, point)
            for point, run in zip(points, found, strict=True)
        )

    def _stand_ins(self, spec: RowSpec, config: Config) -> list[str]:
        """Where even the table's own recipe departs from what was published."""
        table = self._published
        if table is None or spec.key not in table.datasets:
            return []
        pairs = (("data", config.data.name, table.datasets[spec.key]),
                 ("model", config.model.name, table.models[spec.key]))  # fmt: skip
        return [f"{what} {ours}" for what, ours, theirs in pairs
                if theirs not in (ours, PRINTED_AS.get(ours), "not_stated")]  # fmt: skip

    def _number(self, key: str, column: str) -> Published | None:
        return self._published.cells.get(key, {}).get(column) if self._published else None

    def _label(self, spec: RowSpec) -> str:
        return spec.label or self._table.arms[spec.arm].label or spec.key

    def _waiting(self, spec: RowSpec, columns: Sequence[str], wait: Pending) -> Row:
        why = f"{wait.top} of {wait.candidates} grid points of {wait.source}, not chosen yet"
        return self._empty(spec, columns, {"pending": wait.top}, why)

    def _empty(
        self, spec: RowSpec, columns: Sequence[str], absent: Mapping[Absence, int], chosen: str
    ) -> Row:
        cells = {c: Cell(c, absent=absent, published=self._number(spec.key, c)) for c in columns}
        return Row(spec.key, self._label(spec), spec.arm, cells, chosen)

    def _unavailable(self, key: str, columns: Sequence[str]) -> Row:
        return Row(key, key, "", {c: Cell(c, published=self._number(key, c)) for c in columns})

    def _order(self, keys: Iterable[str]) -> list[str]:
        """In the published order, where there is one."""
        order = list(self._published.cells) if self._published else []
        place = {key: number for number, key in enumerate(order)}
        return sorted(keys, key=lambda key: place.get(key, len(place)))

    # Notes

    def _note_others(self, plan: Plan, extras: Mapping[str, Sequence[str]]) -> None:
        """Runs of this table that are not shown, and how to see them."""
        shown = self._names(plan)
        if self.variant:
            by_itself = "" if self._asked else " (most runs of this table)"
            text = shlex.join(self.variant)
            self._notes.append(f"runs launched with: {text}{by_itself}")
        for overrides, runs in self._launches.items():
            others = counted(len(runs.keys() - shown), "run")
            if not runs.keys() - shown:
                continue
            if list(overrides) != self.variant:
                add, leave = shlex.join(overrides), shlex.join(self._asked)
                how = f"add {add}" if overrides else f"leave out {leave}"
                self._notes.append(f"{others} of this table not shown: {how}")
            elif self._rows is None and not extras and not self._axes_given():
                self._notes.append(
                    f"{others} launched for this table before it changed: "
                    f"ablation-report runs={self._runs_dir} compares any runs"
                )

    def _axes_given(self) -> bool:
        return any(key_of(text) in self._table.axes for text in self._given)

    def _unavailable_notes(self) -> list[str]:
        """Each reason once."""
        rows: dict[str, list[str]] = {}
        for key, why in self._table.unavailable.items() if self._rows is None else ():
            rows.setdefault(why, []).append(key)
        return [f"not available: {why} ({', '.join(keys)})" for why, keys in rows.items()]


def _config(point: Point) -> Config:
    assert point.config is not None  # noqa: S101  a plan with problems raises
    return point.config


def _grids(points: Iterable[Point]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(point.grid for point in points))
