"""From the runs of a table to a ``Comparison``: a row per arm, a cell per column.

What a cell cannot vouch for is said, not shown as a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ablation.config.evaluations import evaluation_ids
from ablation.config.experiment import Config
from ablation.reports.cells import Number, counted, filled, unique
from ablation.reports.choice import Choice, choose, config_of, grids
from ablation.reports.comparison import Absence, Cell, Comparison, Row, Sample
from ablation.reports.derived import with_differences
from ablation.reports.deviations import deviations
from ablation.reports.recipes import Recipe
from ablation.reports.records import Measurement, asked_columns, measured, stands_for
from ablation.reports.seconds import with_extra
from ablation.sweeps.planning import Point
from ablation.sweeps.published import PRINTED_AS, Published, PublishedTable
from ablation.sweeps.tables import RowSpec, Table


def compare_table(
    name: str,
    table: Table,
    published: PublishedTable | None,
    runs_dir: Path,
    cli: Sequence[str] = (),
    rows: Sequence[str] | None = None,
) -> Comparison:
    """A table's runs beside its published numbers.

    Args:
        name: of the table.
        table: its file.
        published: its CSV; ``None`` if there is none.
        runs_dir: where the runs are.
        cli: overrides that the runs were launched with; none means those of most runs.
        rows: arms to show; ``None`` means all.

    Raises:
        ConfigError: the table, with these overrides, has problems.
        InputError: ``runs_dir`` cannot be listed, or a file of a run is damaged.
    """
    choice = choose(name, table, runs_dir, cli, rows)
    sheet = Sheet(table, published, choice, _columns(choice, published))
    lines = {spec.key: _lines(sheet, spec) for spec in choice.lines}
    unavailable = table.unavailable if rows is None else {}
    lines |= {key: [_unavailable(sheet, key)] for key in unavailable}
    comparison = Comparison(
        name=f"{name}-smoke" if choice.smoke else name,
        title=table.title,
        columns=sheet.columns,
        rows=tuple(row for key in _order(lines, published) for row in lines[key]),
        scale="smoke" if choice.smoke else "full",
        notes=(*choice.notes, *_unavailable_notes(unavailable)),
    )
    return with_extra(with_differences(comparison, table.differences), table.extra)


@dataclass(frozen=True)
class Sheet:
    """What the rows of a table are made from.

    Attributes:
        table: its file.
        published: its CSV; ``None`` if there is none.
        choice: the runs.
        columns: of the table.
    """

    table: Table
    published: PublishedTable | None
    choice: Choice
    columns: tuple[str, ...]

    def label(self, spec: RowSpec) -> str:
        """A row's label, for people; of several rows of an arm it says how each was chosen."""
        own = self._own_label(spec)
        alike = sum(self._own_label(each) == own for each in self.choice.lines)
        return f"{own}, best {spec.select.metric}" if alike > 1 and spec.select else own

    def _own_label(self, spec: RowSpec) -> str:
        return spec.label or self.table.arms[spec.arm].label or spec.key

    def number(self, key: str, column: str) -> Published | None:
        """The published number of a row."""
        return self.published.cells.get(key, {}).get(column) if self.published else None

    def why(self, absence: Absence, point: Point) -> Absence:
        """A run that is missing at full scale, but was tried at smoke scale, is said to be so."""
        return "smoke" if absence == "missing" and point.arm in self.choice.tried else absence


def _columns(choice: Choice, published: PublishedTable | None) -> tuple[str, ...]:
    """The published ones, or those that the runs ask for; then what else was measured."""
    points = [point for spec in choice.lines for point in choice.points.get(spec.arm, ())]
    shown = [config_of(point) for point in points]
    recipes = (config_of(point) for points in choice.recipes.values() for point in points)
    asked = [published.columns] if published else map(asked_columns, shown or list(recipes)[:1])
    own = dict.fromkeys(column for columns in asked for column in columns)
    more = (
        number.column
        for point in points
        for number in choice.directory(point).measurements
        if number.split != "val" and number.source is None and stands_for(config_of(point), number)
    )
    return tuple(own | dict.fromkeys(more))


def _order(keys: Iterable[str], published: PublishedTable | None) -> list[str]:
    """In the published order, where there is one."""
    order = list(published.cells) if published else []
    place = {key: number for number, key in enumerate(order)}
    return sorted(keys, key=lambda key: place.get(key, len(place)))


def _unavailable_notes(unavailable: Mapping[str, str]) -> list[str]:
    """Each reason once."""
    rows: dict[str, list[str]] = {}
    for key, why in unavailable.items():
        rows.setdefault(why, []).append(key)
    return [f"not available: {why} ({', '.join(keys)})" for why, keys in rows.items()]


def _lines(sheet: Sheet, spec: RowSpec) -> list[Row]:
    """A row; without a selection one per grid point."""
    choice = sheet.choice
    if spec.arm in choice.pending:
        wait = choice.pending[spec.arm]
        why = f"{wait.top} of {wait.candidates} grid points of {wait.source}, not chosen yet"
        return [_empty(sheet, spec, {"pending": wait.top}, why)]
    points = choice.points[spec.arm]
    every = grids(points)
    if not every:
        source = sheet.table.arms[spec.arm].source
        why = f"every grid point of {source.arm} failed" if source else ""
        return [_empty(sheet, spec, {"failed": source.top if source else 1}, why)]
    if len(every) == 1 or spec.select is None:
        several = len(every) > 1
        return [_row(sheet, spec, grid, " ".join(grid), several) for grid in every]
    return [_best(sheet, spec, f"best val {spec.select.metric} of {len(every)}")]


def _best(sheet: Sheet, spec: RowSpec, by: str) -> Row:
    """A row that stands for the best of several grid points."""
    points, ranked = sheet.choice.points[spec.arm], sheet.choice.ranked[spec.key]
    if ranked is None:
        states = Counter(sheet.choice.directory(point).state for point in points)
        done = f"{states['done']} of {counted(len(points), 'run')} done"
        return _empty(sheet, spec, _reasons(sheet, points), f"{by}: {done}")
    failed = len(grids(points)) - len(ranked)
    by += f", {failed} failed" if failed else ""
    if not ranked:
        return _empty(sheet, spec, _reasons(sheet, points), by)
    return _row(sheet, spec, ranked[0], f"{' '.join(ranked[0])} ({by})")


def _reasons(sheet: Sheet, points: Sequence[Point]) -> Counter[Absence]:
    """Why no grid point is chosen yet: what is done waits for the rest."""
    runs = [(point, sheet.choice.directory(point)) for point in points]
    return Counter(
        "pending" if run.state == "done" else sheet.why(run.absence, point) for point, run in runs
    )


def _empty(sheet: Sheet, spec: RowSpec, absent: Mapping[Absence, int], chosen: str) -> Row:
    cells = {
        column: Cell(column, absent=absent, published=sheet.number(spec.key, column))
        for column in sheet.columns
    }
    return Row(spec.key, sheet.label(spec), spec.arm, cells, chosen)


def _unavailable(sheet: Sheet, key: str) -> Row:
    cells = {column: Cell(column, published=sheet.number(key, column)) for column in sheet.columns}
    return Row(key, key, "", cells)


def _row(
    sheet: Sheet, spec: RowSpec, grid: tuple[str, ...], chosen: str, several: bool = False
) -> Row:
    """The row of a grid point; one of several has the grid point in its key."""
    points = sheet.choice.points[spec.arm]
    # An axis may name one value in two ways.
    mine = {
        (config_of(point).run_name, evaluation_ids(config_of(point))): point
        for point in points
        if point.grid == grid
    }
    recipes = {place: _recipe(sheet, point) for place, point in mine.items()}
    pairs = [(point, recipes[place]) for place, point in mine.items()]
    pinned = _pinned(sheet, spec)
    filled_cells = {column: _cell(sheet, spec, column, pairs, pinned) for column in sheet.columns}
    return Row(
        f"{spec.key} {' '.join(grid)}" if several else spec.key,
        sheet.label(spec),
        spec.arm,
        {column: cell for column, (cell, _) in filled_cells.items()},
        chosen,
        unique(flags for _, flags in filled_cells.values()),
        runs=tuple(dict.fromkeys(config_of(point).run_dir for point in mine.values())),
        data=next((config_of(point).data.name for point in mine.values()), ""),
    )


def _recipe(sheet: Sheet, point: Point) -> Recipe:
    """The table's own point that is nearest: the command line may have replaced a grid."""
    config = config_of(point)
    source = sheet.table.arms[point.arm].source
    every = sheet.choice.recipes[point.arm]
    same = [other for other in every if other.grid == point.grid] or every
    configs = [config_of(other) for other in same]
    if source is not None and source.weights:  # the plan has chosen where it starts from
        configs = [replace(other, init_from=config.init_from) for other in configs]
    return Recipe(min(configs, key=lambda other: len(deviations(other, config))))


def _pinned(sheet: Sheet, spec: RowSpec) -> tuple[str, ...]:
    """A tag for a row whose choice among grid points the command line has narrowed."""
    now = len(grids(sheet.choice.points[spec.arm]))
    planned = len(grids(sheet.choice.recipes[spec.arm]))
    free = spec.select is None or sheet.table.arms[spec.arm].source is not None
    return () if free or now >= planned else (f"{now} of {counted(planned, 'grid point')}",)


def _cell(
    sheet: Sheet,
    spec: RowSpec,
    column: str,
    pairs: Sequence[tuple[Point, Recipe]],
    pinned: tuple[str, ...],
) -> tuple[Cell, tuple[str, ...]]:
    """A cell of a grid point's runs, and the warnings of their evaluations."""
    absent: Counter[Absence] = Counter()
    numbers = []
    for point, recipe in pairs:
        config, directory = config_of(point), sheet.choice.directory(point)
        measurement = measured(config, directory, column, recipe.attack(column) or {})
        if not isinstance(measurement, Measurement):
            absent[sheet.why(measurement, point)] += 1
            continue
        axis = " ".join(point.axis)
        sample = Sample(
            axis, measurement.value, measurement.n, config.run_name, measurement.examples
        )
        tags = (*recipe.tags(config, measurement), *_stand_ins(sheet, spec, config), *pinned)
        numbers.append(Number(measurement, sample, tags, recipe.mismatches(measurement)))
    return filled(column, numbers, absent, sheet.number(spec.key, column))


def _stand_ins(sheet: Sheet, spec: RowSpec, config: Config) -> list[str]:
    """Where even the table's own recipe departs from what was published."""
    published = sheet.published
    if published is None or spec.key not in published.datasets:
        return []
    pairs = (("data", config.data.name, published.datasets[spec.key]),
             ("model", config.model.name, published.models[spec.key]))  # fmt: skip
    return [f"{what} {ours}" for what, ours, theirs in pairs
            if theirs not in (ours, PRINTED_AS.get(ours), "not_stated")]  # fmt: skip
