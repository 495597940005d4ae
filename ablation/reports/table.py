"""From run directories to a ``Comparison``: the runs of a table, or any runs grouped by keys.

Nothing but run directories is read; what a cell cannot vouch for is said, not shown as a number.
"""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ablation.config.compose import key_of
from ablation.config.experiment import DISABLED, Config
from ablation.config.parser import TARGET, did_you_mean
from ablation.errors import ConfigError, InputError
from ablation.evaluation import describe
from ablation.jobs import train as jobs
from ablation.reports.comparison import Absence, Cell, Comparison, Published, Row, Sample
from ablation.runs.directory import VOLATILE, Run, State, find_runs
from ablation.sweeps.planning import Pending, Plan, Planner, Point, ranking, variant
from ablation.sweeps.sweep import quoted
from ablation.sweeps.tables import PRINTED_AS, PublishedTable, RowSpec, Table

IMMATERIAL = (
    *("eps_text", "seed", "batch_size"),
    *("std", "mean_all", "correct", "zero_gradients"),
)
"""Parameters of an attack in which two comparable numbers may differ; what a measure found."""
COLLAPSED = 1.25
"""Clean accuracy up to so many times chance, and two standard errors, is chance: a network that
predicts one class has 11.35% on MNIST, which is 1.135 times chance."""
NAMED = 8
"""How many of the keys in which runs differ are named."""


# What a run directory says


@dataclass(frozen=True)
class Found:
    """One number in a run directory.

    Attributes:
        metric: its name.
        split: whose images.
        checkpoint: whose weights.
        weights: raw or average.
        value: in ``unit``.
        unit: percent, margin or radius.
        n: examples.
        params: of the attack.
        flags: of its evaluation.
        eval_id: likewise.
        examples: likewise, the Parquet file; ``None`` if it is gone.
    """

    metric: str
    split: str
    checkpoint: str
    weights: str
    value: float
    unit: str
    n: int
    params: Mapping[str, Any]
    flags: tuple[str, ...]
    eval_id: str
    examples: Path | None

    @property
    def column(self) -> str:
        """``clean_val`` is clean accuracy on validation images; ``margin_train`` says it itself."""
        named = self.split == "test" or self.metric.endswith(f"_{self.split}")
        return self.metric if named else f"{self.metric}_{self.split}"

    @property
    def whole(self) -> bool:
        """Is it over its whole split? A random subset hardly ever is the first n images."""
        return self.examples is not None and _last_index(self.examples) == self.n - 1


@dataclass(frozen=True)
class Directory:
    """What a run directory says.

    Attributes:
        name: of the run.
        state: ``None`` if the run never started.
        found: all its numbers.
    """

    name: str
    state: State | None
    found: tuple[Found, ...]

    @property
    def absence(self) -> Absence:
        """Why a number is not there."""
        if self.state is None:
            return "missing"
        return "not evaluated" if self.state == "done" else self.state


def read(path: Path) -> Directory:
    """Read a run directory; it need not exist.

    Raises:
        InputError: an evaluation's file is damaged.
    """
    run = Run(path, path.name.rpartition("-")[2])
    status = run.status()
    lost: State | None = "interrupted" if run.config_path.is_file() else None
    files = sorted(run.evaluations.glob("*.json"))
    found = tuple(number for file in files for number in _numbers(file))
    return Directory(path.name, lost if status is None else status.state, found)


def _numbers(file: Path) -> Iterator[Found]:
    table = file.with_suffix(".parquet")
    try:
        record = json.loads(file.read_bytes())
        for entry in record["entries"]:
            if entry["value"] is not None:
                yield Found(
                    metric=entry["metric"],
                    split=entry["split"],
                    checkpoint=entry["checkpoint"],
                    weights=entry["weights"],
                    value=float(entry["value"]),
                    unit=entry["unit"],
                    n=int(entry["n"]),
                    params=dict(entry["params"]),
                    flags=tuple(record["flags"]),
                    eval_id=record["eval_id"],
                    examples=table if table.is_file() else None,
                )
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: move it away and evaluate again") from error


def _last_index(examples: Path) -> int | None:
    """The largest index in a file of examples, from its footer."""
    import pyarrow.parquet as parquet  # most cells do without

    try:
        footer = parquet.read_metadata(examples)
        column = footer.schema.names.index("index")
        groups = [footer.row_group(i).column(column) for i in range(footer.num_row_groups)]
        return max((int(group.statistics.max) for group in groups), default=None)
    except (OSError, ValueError, AttributeError):  # damaged, or without statistics
        return None


def collapsed(found: Iterable[Found], classes: int) -> bool:
    """Is the network no better than guessing, by its accuracy on most clean images?"""
    clean = [number for number in found if number.metric == "clean"]
    if not clean:
        return False
    best = max(clean, key=lambda number: (number.split == "test", number.n))
    chance = 1 / classes
    noise = 2 * math.sqrt(chance * (1 - chance) / max(1, best.n))
    return best.value <= 100 * (COLLAPSED * chance + noise)


def measured(
    config: Config, directory: Directory, column: str, wanted: Mapping[str, Any]
) -> Found | Absence:
    """A run's number for a column, or why there is none.

    Its own evaluation's if it is there; else, of what else was run on the same weights, the attack
    that is nearest to the wanted one, on most images.
    """
    place = (jobs.checkpoints(config)[0], jobs.chosen_weights(config))
    mine = [number for number in directory.found if (number.checkpoint, number.weights) == place]
    found = [number for number in mine if number.column == column]
    if directory.state == "failed":
        return "failed"
    if collapsed(mine, config.data.classes):
        return "collapsed"
    if not found:
        return directory.absence
    own = _own_evaluations(config)
    return min(
        found, key=lambda f: (f.eval_id not in own, len(mismatches(f.params, wanted)), -f.n)
    )  # fmt: skip


def _own_evaluations(config: Config) -> tuple[str, ...]:
    weights = jobs.chosen_weights(config)
    nodes = jobs.evaluations(config)
    return tuple(jobs.eval_id(node, config.eps, config.norm, weights) for node in nodes)


def column_place(column: str) -> tuple[str, str]:
    """Metric and split of a column: ``clean_val`` is clean accuracy on validation images."""
    return (column[:-4], "val") if column.endswith("_val") else (column, "test")


# How two attacks, and two configs, differ


def mismatches(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Where an attack's parameters are not those of the table."""
    return tuple(
        f"{key} {_short(params.get(key))}, not {_short(value)}"
        for key, value in wanted.items()
        if key not in IMMATERIAL and not _same(params.get(key), value)
    )


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9)
    return bool(left == right)


def _attack(params: Mapping[str, Any]) -> str:
    """Equal for attacks whose numbers may be averaged."""
    kept = {
        key: f"{value:.9g}" if isinstance(value, float) else value
        for key, value in params.items()
        if key not in IMMATERIAL
    }
    return json.dumps(kept, sort_keys=True)


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys in which two plain configs differ, and the second one's values.

    What was replaced by another thing altogether (a method, an average) is one key, not all that
    is in it.
    """
    before, after = _nothing(before), _nothing(after)
    both = isinstance(before, Mapping) and isinstance(after, Mapping)
    if both and _kind(before) == _kind(after):
        for name in sorted({*before, *after}, key=str):
            path = f"{key}.{name}" if key else str(name)
            yield from differences(before.get(name), after.get(name), path)
    elif not _same(before, after):
        yield key, after


def _nothing(node: Any) -> Any:
    """A disabled component and no average are what an older config does not mention."""
    return None if node in ({}, DISABLED) else node


def _kind(node: Mapping[str, Any]) -> Any:
    return node.get(TARGET, node.get("name"))


def _short(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, Mapping):
        kind = _kind(value)
        leaves = (f"{name}={_short(entry)}" for name, entry in value.items())
        return str(kind).rpartition(".")[2].lower() if kind else " ".join(leaves)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_short, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _setting(key: str, value: Any) -> str:
    """``lr=0.1``, ``component.awp=enabled``."""
    if key.startswith("component.") and key.count(".") == 1:
        return f"{key}={'disabled' if _nothing(value) is None else 'enabled'}"
    return f"{key}={_short(_nothing(value))}"


def _within(key: str, parents: Iterable[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def deviations(recipe: Config, config: Config) -> tuple[str, ...]:
    """How a run's training departs from its recipe, in a few words each."""
    before, after = recipe.container(), config.container()
    found = dict(differences(before, after))
    hidden = {"seed", "scale", *VOLATILE} - {"init_from"}
    if "data" in found:
        hidden.add("augment")
    if "epochs" in found:
        hidden.add("schedule.milestones")
    replaced = [key for key in ("data", "model", "method") if key in found]
    tags = [f"{key} {found.pop(key)['name']}" for key in replaced]
    if found.get("epochs", math.inf) < before["epochs"]:
        tags.append(f"{found.pop('epochs')} of {before['epochs']} epochs")
    tags += [_setting(key, value) for key, value in found.items() if not _within(key, hidden)]
    return tuple(tags)


@dataclass(frozen=True)
class Recipe:
    """What a table says about a run: its config without what the command line changed."""

    config: Config

    def attack(self, column: str) -> Mapping[str, Any] | None:
        """An attack's parameters; ``None`` if the table's evaluation does not have it."""
        config, node = self.config, self.config.evaluation
        metric, _ = column_place(column)
        attack = node.attacks.get(metric)
        if attack is None:
            return {} if metric == "clean" or metric in node.attacks else None
        eps = config.eps if node.eps is None else node.eps
        return describe(attack, eps, node.norm or config.norm, config.data.classes)

    def mismatches(self, found: Found) -> tuple[str, ...]:
        """Why a number cannot stand beside the published one."""
        if self.config.scale == "smoke":
            return ("scale smoke, not full",)
        wanted = self.attack(found.column)
        if wanted is None:
            return ("not in the table's evaluation",)
        return mismatches(found.params, wanted)

    def tags(self, config: Config, found: Found) -> tuple[str, ...]:
        """How a run departs from the recipe, weights and images of its evaluation included."""
        tags = list(deviations(self.config, config))
        before, after = self.config.evaluation, config.evaluation
        if (before.checkpoints, before.weights) != (after.checkpoints, after.weights):
            tags.append(f"weights {found.checkpoint} ({found.weights})")
        asked = self._images(found)
        if not found.whole and (asked is None or found.n < asked):
            tags.append(f"n={found.n}")
        return tuple(tags)

    def _images(self, found: Found) -> int | None:
        """How many images the table asks for; ``None`` means all."""
        nodes = [node for node in jobs.evaluations(self.config) if node.split == found.split]
        attacks = [node.attacks.get(found.metric) for node in nodes]
        sizes = [node.n for node in nodes] + [getattr(attack, "n", None) for attack in attacks]
        return min((size for size in sizes if size is not None), default=None)


# Cells


@dataclass(frozen=True)
class Number:
    """A run's number on its way into a cell."""

    found: Found
    sample: Sample
    tags: tuple[str, ...]
    mismatch: tuple[str, ...]


def one_attack(numbers: Sequence[Number]) -> list[Number]:
    """Numbers that may be averaged: of the attack nearest to the wanted one, then most frequent."""
    groups: dict[str, list[Number]] = {}
    for number in numbers:
        groups.setdefault(_attack(number.found.params), []).append(number)
    return min(groups.values(), key=lambda g: (len(g[0].mismatch), -len(g)), default=[])


def filled(
    column: str,
    numbers: Sequence[Number],
    absent: Mapping[Absence, int],
    published: Published | None = None,
) -> tuple[Cell, tuple[str, ...]]:
    """A cell and the warnings of its evaluations."""
    kept = one_attack(numbers)
    without = Counter(absent)
    without["not evaluated"] += len(numbers) - len(kept)
    cell = Cell(
        column,
        kept[0].found.unit if kept else "percent",
        tuple(number.sample for number in kept),
        {reason: count for reason, count in without.items() if count},
        published,
        _unique(number.tags for number in kept),
        _unique(number.mismatch for number in kept),
        {**kept[0].found.params, "split": kept[0].found.split} if kept else {},
    )
    return cell, _unique(number.found.flags for number in kept)


def _unique(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for texts in lists for text in texts))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# A table


Launches = Mapping[tuple[str, ...], Mapping[str, tuple[Run, set[str]]]]


def recorded(runs: Iterable[Run], table: str) -> Launches:
    """What a table asked for: overrides -> name of the run -> run and the arms that it serves."""
    found: dict[tuple[str, ...], dict[str, tuple[Run, set[str]]]] = {}
    for run in runs:
        for entry in jobs.recorded_launches(run):
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
        configs = [_saved(run) for name, (run, _) in launched.items() if name not in known]
        given = {key_of(text) for text in self._given}
        found = {}
        for key, values in self._table.axes.items():
            seen = {_at(config, key) for config in configs if key not in given}
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
        first = next((c.evaluation.attacks for c in configs), {})
        shown = [c.evaluation.attacks for c in configs[: sum(map(len, points.values()))]]
        return tuple(dict.fromkeys(name for attacks in [*shown, first] for name in attacks))

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
            done = f"{states['done']} of {_count(len(points), 'run')} done"
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
            (_config(p).run_name, _own_evaluations(_config(p))): p for p in points if p.grid == grid
        }
        pinned = self._pinned(spec, points)
        cells, flags = {}, []
        for column in columns:
            cells[column], found = self._cell(spec, column, list(mine.values()), pinned)
            flags.append(found)
        key = f"{spec.key} {' '.join(grid)}" if several else spec.key
        runs = tuple(dict.fromkeys(_config(point).run_dir for point in mine.values()))
        return Row(key, self._label(spec), spec.arm, cells, chosen, _unique(flags), runs=runs)

    def _pinned(self, spec: RowSpec, points: Sequence[Point]) -> tuple[str, ...]:
        """A tag for a row whose choice among grid points the command line has narrowed."""
        now, planned = len(_grids(points)), len(_grids(self._recipes[spec.arm]))
        free = spec.select is None or self._table.arms[spec.arm].source is not None
        return () if free or now >= planned else (f"{now} of {_count(planned, 'grid point')}",)

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
            others = _count(len(runs.keys() - shown), "run")
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


def _saved(run: Run) -> Mapping[str, Any]:
    """A run's saved config.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = yaml.safe_load(run.config_path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{run.config_path} cannot be read ({text}): move it away") from error
    return found if isinstance(found, Mapping) else {}


def _at(config: Mapping[str, Any], key: str) -> Any:
    """A dotted key's value; ``None`` if it is not there."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


# Any runs


@dataclass(frozen=True)
class _Trained:
    """A run with the numbers, by column, of the weights that it stands for."""

    path: Path
    config: Mapping[str, Any]
    directory: Directory
    numbers: Mapping[str, Sequence[Found]]

    @property
    def is_smoke(self) -> bool:
        return self.config.get("scale") == "smoke"

    @property
    def absence(self) -> Absence | None:
        """Why it has no number at all."""
        if not self.numbers or self.directory.state == "failed":
            return self.directory.absence
        every = [number for found in self.numbers.values() for number in found]
        return "collapsed" if collapsed(every, int(_at(self.config, "data.classes"))) else None


def compare_runs(paths: Iterable[Path], by: Sequence[str], title: str = "runs") -> Comparison:
    """Any runs, grouped by keys of their configs.

    Args:
        paths: run directories; one that is named twice counts once.
        by: dotted keys, for example ``method`` or ``component.awp``.
        title: for people.

    Raises:
        InputError: no run is evaluated, no run has such a key, or a file cannot be read.
    """
    once = {path.resolve(): path for path in paths}
    every = [run for run in map(_trained, once.values()) if run is not None]
    evaluated = [run for run in every if run.numbers]
    if not evaluated:
        raise InputError(f"{title}: no evaluated run there; train some, or give runs=<folder>")
    smoke = all(run.is_smoke for run in evaluated)
    kept = [run for run in every if run.is_smoke == smoke]
    keys = [key.replace("/", ".") for key in by]
    _check_keys(keys, kept)
    groups: dict[str, list[_Trained]] = {}
    for run in kept:
        groups.setdefault(_group_name(run.config, keys), []).append(run)
    columns = tuple(dict.fromkeys(column for run in kept for column in run.numbers))
    usual = {column: _usual(kept, column) for column in columns}
    other, scale = len(every) - len(kept), "full" if smoke else "smoke"
    notes = [f"{_count(other, 'run')} at {scale} scale not shown"] if other else []
    for label, group in groups.items():
        notes += _mixed(label, group)
    return Comparison(
        *("runs", title, columns),
        tuple(_group_row(label, group, usual) for label, group in groups.items()),
        scale="smoke" if smoke else "full",
        notes=tuple(notes),
    )


def _group_name(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """``dyart``, ``elsayed burn_in coef=1000``: what is switched off goes without saying."""
    names, tails = [], Counter(key.rpartition(".")[2] for key in keys)
    for key in keys:
        value, tail = _nothing(_at(config, key)), key.rpartition(".")[2]
        if tails[tail] > 1:
            tail = key.removeprefix("component.")
        is_component = key.startswith("component.")
        if is_component and value is None:
            continue
        if is_component and key.count(".") == 1:
            names.append(tail)
        elif "." not in key and isinstance(value, str | Mapping):
            names.append(str(_short(value)))
        else:
            names.append(f"{tail}={_short(value)}")
    if keys and not names:
        return "without " + ", ".join(key.removeprefix("component.") for key in keys)
    return " ".join(names) or "all"


def _trained(path: Path) -> _Trained | None:
    """``None`` for what is no training: ``ablation-evaluate checkpoint=`` leaves folders, too."""
    config = _saved(Run(path, path.name.rpartition("-")[2]))
    if not {"seed", "data", "selection"} <= config.keys():
        return None
    checkpoint, weights = _stands_for(config)
    directory = read(path)
    numbers: dict[str, list[Found]] = {}
    for number in directory.found:
        if (number.checkpoint, number.weights) == (checkpoint, weights):
            numbers.setdefault(number.column, []).append(number)
    return _Trained(path, {**config, "weights": f"{checkpoint} {weights}"}, directory, numbers)


def _stands_for(config: Mapping[str, Any]) -> tuple[str, str]:
    """Checkpoint and weights, as ``job.checkpoints`` and ``job.chosen_weights`` choose them."""
    selected = {"robust": "best_robust", "clean": "best_clean"}
    checkpoints = _at(config, "evaluation.checkpoints")
    usual = selected.get(_at(config, "selection.metric"), "last")
    weights = _at(config, "evaluation.weights")
    averaged = "average" if config.get("average") else "raw"
    return (checkpoints[0] if checkpoints else usual), weights or averaged


def _check_keys(keys: Iterable[str], runs: Sequence[_Trained]) -> None:
    known: dict[str, None] = {}
    for run in runs:
        known |= dict.fromkeys(_paths(run.config))
    for key in keys:
        if key.startswith("evaluation"):
            raise InputError(f"by={key}: a run may have several evaluations; group by what trained")
        if key not in known:
            near = [name for name in known if name.count(".") == key.count(".")]
            raise InputError(f"by={key}: no run has this key; {did_you_mean(key, near)}")


def _paths(node: Any, key: str = "") -> Iterator[str]:
    """Every dotted key of nested plain data, parents included."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        path = f"{key}.{name}" if key else str(name)
        yield path
        yield from _paths(value, path)


def _usual(runs: Sequence[_Trained], column: str) -> Mapping[str, Any]:
    """The parameters of the attack that most runs have under a name."""
    each = [{_attack(f.params): f.params for f in run.numbers.get(column, ())} for run in runs]
    counts = Counter(attack for params in each for attack in params)
    (first, _), *_ = counts.most_common(1)
    return next(params[first] for params in each if first in params)


def _group_row(
    label: str, group: Sequence[_Trained], usual: Mapping[str, Mapping[str, Any]]
) -> Row:
    seeds = Counter(run.config["seed"] for run in group)
    cells, flags = {}, []
    for column, wanted in usual.items():
        absent: Counter[Absence] = Counter()
        numbers = []
        for run in group:
            found = run.numbers.get(column, ())
            if run.absence is not None or not found:
                absent[run.absence or "not evaluated"] += 1
                continue
            best = min(found, key=lambda f: (len(mismatches(f.params, wanted)), -f.n))
            # Two runs of one seed cannot be told apart by it, so they pair with nothing.
            seed = run.config["seed"]
            axis = f"seed={seed}" if seeds[seed] == 1 else run.path.name
            sample = Sample(axis, best.value, best.n, run.path.name, best.examples)
            subset = () if best.whole else (f"n={best.n}",)
            numbers.append(Number(best, sample, subset, mismatches(best.params, wanted)))
        cells[column], found_flags = filled(column, numbers, absent)
        flags.append(found_flags)
    runs = tuple(run.path for run in group)
    return Row(label, label, label, cells, flags=_unique(flags), runs=runs)


def _mixed(label: str, group: Sequence[_Trained]) -> list[str]:
    """A note if the runs of a group differ in more than their seed."""
    first = group[0].config
    hidden = {"seed", "scale", *VOLATILE}
    found = {key for run in group[1:] for key, _ in differences(first, run.config)}
    keys = sorted(key for key in found if not _within(key, hidden))
    if not keys:
        return []
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return [f"{label} averages runs that differ in {', '.join(keys[:NAMED])}{more}: add to by="]
