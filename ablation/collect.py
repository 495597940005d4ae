"""From run directories to a ``Comparison``: the runs of a table, or any runs grouped by keys.

Nothing but run directories is read; what a cell cannot vouch for is said, not shown as a number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ablation import job as jobs
from ablation.comparison import Absence, Cell, Comparison, Published, Row, Sample
from ablation.compose import key_of
from ablation.config import Config, EvaluationConfig
from ablation.errors import ConfigError, InputError
from ablation.evaluation import describe
from ablation.planning import JobState, Planner, Point, ranking, state_of, variant
from ablation.runs import VOLATILE, Run, find_runs
from ablation.tables import PublishedTable, RowSpec, Table

ABSENT: Mapping[JobState, Absence] = {
    "new": "missing",
    "partial": "interrupted",
    "running": "running",
    "failed": "failed",
    "done": "not evaluated",
}
IMMATERIAL = ("eps_text", "seed", "batch_size")
"""Parameters of an attack in which two comparable numbers may differ."""
COLLAPSED = 1.25
"""Clean accuracy up to so many times chance, and two standard errors, is chance: a network that
predicts one class has 11.35% on MNIST, which is 1.135 times chance."""


@dataclass(frozen=True)
class Found:
    """One number in a run directory.

    Attributes:
        value: in ``unit``.
        unit: percent, margin or radius.
        n: examples.
        params: of the attack.
        flags: of its evaluation.
        examples: the evaluation's Parquet file.
    """

    value: float
    unit: str
    n: int
    params: Mapping[str, Any]
    flags: tuple[str, ...]
    examples: Path | None


def numbers(
    path: Path, metric: str, split: str, checkpoint: str, weights: str | None = None
) -> list[Found]:
    """Everything a run directory knows about a metric.

    Args:
        path: the run directory.
        metric: for example ``pgd20``.
        split: test, val or train.
        checkpoint: for example ``best_robust``.
        weights: raw or average; ``None`` takes both.

    Raises:
        InputError: an evaluation's file is damaged.
    """
    found = []
    for file in sorted((path / "evaluations").glob("*.json")):
        try:
            record = json.loads(file.read_bytes())
        except ValueError as error:
            raise InputError(f"{file} is damaged: move it away and evaluate again") from error
        table = file.with_suffix(".parquet")
        examples = table if table.is_file() else None
        found += [
            Found(e["value"], e["unit"], e["n"], e["params"], tuple(record["flags"]), examples)
            for e in record["entries"]
            if (e["metric"], e["split"], e["checkpoint"]) == (metric, split, checkpoint)
            and weights in (None, e["weights"])
            and e["value"] is not None
        ]
    return found


def column_place(column: str) -> tuple[str, str]:
    """Metric and split of a column: ``clean_val`` is clean accuracy on validation images."""
    return (column[:-4], "val") if column.endswith("_val") else (column, "test")


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


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def collapsed(clean: Found, classes: int) -> bool:
    """Is the network no better than guessing?"""
    chance = 1 / classes
    noise = 2 * math.sqrt(chance * (1 - chance) / max(1, clean.n))
    return clean.value <= 100 * (COLLAPSED * chance + noise)


class Expected:
    """What a table's recipe says about a cell.

    Args:
        config: of the recipe, without what the command line changed.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def params(self, column: str) -> Mapping[str, Any]:
        """The attack's parameters; nothing for clean accuracy and columns it does not have."""
        config, node = self._config, self._config.evaluation
        attack = node.attacks.get(column_place(column)[0])
        if attack is None:
            return {}
        eps = config.eps if node.eps is None else node.eps
        return describe(attack, eps, node.norm or config.norm, config.data.classes)

    def tags(self, config: Config, found: Found) -> tuple[str, ...]:
        """How a run departs from the recipe, the number of images included."""
        tags = list(deviations(self._config, config))
        node = config.evaluation
        if self._config.evaluation.n is None and node.n is not None:
            tags.append(f"n={found.n}")
        return tuple(tags)


def deviations(recipe: Config, config: Config) -> tuple[str, ...]:
    """How a run's training departs from its recipe, in a few words each."""
    before, after = flat(recipe.container()), flat(config.container())
    tags = []
    for key, words in (("data.name", "data"), ("model.name", "model")):
        if before[key] != after[key]:
            tags.append(f"{words} {after[key]}")
    implied = tuple(
        prefix
        for key, prefix in (("data.name", "data."), ("model.name", "model."))
        if before[key] != after[key]
    )
    if before["epochs"] != after["epochs"]:
        tags.append(f"{after['epochs']} of {before['epochs']} epochs")
    for key in sorted({*before, *after}):
        skipped = key in ("epochs", "scale", "seed", "data.name", "model.name", "augment")
        if skipped and not (key == "augment" and not implied):
            continue
        if key.startswith((*VOLATILE, "attack.", "schedule.milestones", *implied)):
            continue
        if before.get(key) != after.get(key):
            tags.append(f"{key}={_short(after.get(key))}")
    return tuple(tags)


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested plain data by dotted key."""
    if isinstance(node, Mapping) and node:
        found: dict[str, Any] = {}
        for name, value in node.items():
            found |= flat(value, f"{key}.{name}" if key else str(name))
        return found
    return {key: node}


def recorded(runs_dir: Path, table: str) -> dict[tuple[str, ...], list[tuple[Run, set[str]]]]:
    """Runs that a table asked for, by what the command line changed; with the arms they serve."""
    found: dict[tuple[str, ...], list[tuple[Run, set[str]]]] = {}
    for run in find_runs(runs_dir):
        for entry in jobs.recorded_launches(run):
            if entry["table"] == table:
                found.setdefault(tuple(entry["overrides"]), []).append((run, set(entry["arms"])))
    return found


class TableReport:
    """A table's comparison.

    Args:
        name: of the table.
        table: its file.
        published: its CSV; ``None`` if there is none.
        runs_dir: where the runs are.
        cli: overrides that the runs were launched with; empty means: find out.
        rows: arms to show; ``None`` means all.
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
        self._launches = recorded(runs_dir, name)
        self._places = [f"++runs_dir='{runs_dir}'"]
        self._given = list(cli)
        self.variant = self._pick()
        self._rows = rows

    def _pick(self) -> list[str]:
        """What the command line changed in the runs that are shown."""
        asked = variant(self._given, self._table.axes)
        full = {key: runs for key, runs in self._launches.items() if "scale=smoke" not in key}
        if asked or () in full or not full:
            return asked
        return list(max(full.items(), key=lambda item: len(item[1]))[0])

    @property
    def _is_smoke(self) -> bool:
        return "scale=smoke" in self.variant

    def build(self) -> Comparison:
        """Read the runs.

        Raises:
            ConfigError: the table, with these overrides, has problems.
        """
        plan = Planner(self._table, self._arguments(), self._rows, check=False).plan()
        scale = ["scale=smoke"] if self._is_smoke else []
        recipe = Planner(self._table, [*scale, *self._places], self._rows, check=False).plan()
        if plan.problems or recipe.problems:
            raise ConfigError([*plan.problems, *recipe.problems])
        waiting = {wait.arm: wait for wait in plan.pending}
        base = {name: points for name, points in recipe.points.items() if points}
        columns = self._columns(plan.points)
        rows: list[Row] = []
        for spec in self._table.lines():
            if spec.arm in plan.points:
                rows += self._lines(spec, plan.points[spec.arm], base, columns)
            elif spec.arm in waiting:
                wait = waiting[spec.arm]
                why = f"{wait.top} of {wait.candidates} runs of {wait.source}, not chosen yet"
                rows.append(self._empty(spec, columns, "pending", wait.top, why))
        shown = self._rows is None
        rows += self._unavailable(columns) if shown else []
        return Comparison(
            name=f"{self._name}-smoke" if self._is_smoke else self._name,
            title=self._table.title,
            columns=columns,
            rows=tuple(self._ordered(rows)),
            scale="smoke" if self._is_smoke else "full",
            notes=tuple(self._notes()),
        )

    def _arguments(self) -> list[str]:
        """Overrides that give the shown runs: the variant's, and every value of the axes seen."""
        axes = [text for text in self._given if key_of(text) in self._table.axes]
        given = {key_of(text) for text in axes}
        for key, values in self._table.axes.items():
            if key in given:
                continue
            seen = dict.fromkeys(str(value) for value in values)
            for run, _ in self._launches.get(tuple(self.variant), []):
                value = _leaf(run, key)
                if value is not None:
                    seen.setdefault(str(value))
            axes.append(f"{key}={','.join(seen)}")
        return [*self.variant, *axes, *self._places]

    def _columns(self, points: Mapping[str, list[Point]]) -> tuple[str, ...]:
        if self._published is not None:
            return self._published.columns
        configs = [p.config for found in points.values() for p in found if p.config is not None]
        return tuple(dict.fromkeys(name for c in configs for name in c.evaluation.attacks))

    def _lines(
        self,
        spec: RowSpec,
        points: Sequence[Point],
        base: Mapping[str, Sequence[Point]],
        columns: Sequence[str],
    ) -> list[Row]:
        """A row; without a selection one per grid point."""
        grids = list(dict.fromkeys(point.grid for point in points))
        if len(grids) > 1 and spec.select is not None:
            ranked = ranking(points, spec.select)
            by = f"best val {spec.select.metric} of {len(grids)}"
            if ranked is None:
                states = Counter(state_of(p.config) for p in points if p.config is not None)
                done = f"{states['done']} of {len(points)} runs done"
                return [self._empty(spec, columns, "pending", len(points), f"{by}: {done}")]
            if not ranked:
                return [self._empty(spec, columns, "failed", len(points), by)]
            return [self._row(spec, ranked[0], points, base, columns, f"{_text(ranked[0])} ({by})")]
        many = len(grids) > 1
        return [self._row(spec, grid, points, base, columns, _text(grid), many) for grid in grids]

    def _row(
        self,
        spec: RowSpec,
        grid: tuple[str, ...],
        points: Sequence[Point],
        base: Mapping[str, Sequence[Point]],
        columns: Sequence[str],
        chosen: str,
        several: bool = False,
    ) -> Row:
        mine = [point for point in points if point.grid == grid]
        recipe = next((p for p in base.get(spec.arm, ()) if p.grid == grid), None)
        recipe = recipe or next(iter(base.get(spec.arm, mine)))
        assert recipe.config is not None  # noqa: S101  the plan has no problems
        expected = Expected(recipe.config)
        flags: dict[str, None] = {}
        cells = {c: self._cell(spec, c, mine, expected, flags) for c in columns}
        key = f"{spec.key} {_text(grid)}" if several else spec.key
        return Row(key, self._label(spec), spec.arm, cells, chosen, tuple(flags))

    def _cell(
        self,
        spec: RowSpec,
        column: str,
        points: Sequence[Point],
        expected: Expected,
        flags: dict[str, None],
    ) -> Cell:
        absent: Counter[Absence] = Counter()
        samples, tags, wrong = [], dict[str, None](), dict[str, None]()
        unit = self._published.units.get(column, "percent") if self._published else "percent"
        wanted = expected.params(column)
        for point in points:
            config = point.config
            assert config is not None  # noqa: S101
            found = measured(config, column, wanted)
            if not isinstance(found, Found):
                absent[self._why(found, point)] += 1
                continue
            unit = found.unit
            axis = " ".join(point.axis)
            samples.append(
                Sample(axis, found.value, found.n, config.run_name, found.examples)
            )  # fmt: skip
            tags |= dict.fromkeys([*expected.tags(config, found), *self._stand_ins(spec, config)])
            wrong |= dict.fromkeys(mismatches(found.params, wanted))
            flags |= dict.fromkeys(found.flags)
        return Cell(
            *(column, unit, tuple(samples), dict(absent)),
            *(self._number(spec.key, column), tuple(tags), tuple(wrong)),
        )

    def _why(self, absence: Absence, point: Point) -> Absence:
        """A run that is missing at full scale, but was tried at smoke scale."""
        smoke = [arms for key, runs in self._launches.items() if "scale=smoke" in key
                 for _, arms in runs]  # fmt: skip
        tried = absence == "missing" and not self._is_smoke
        return "smoke" if tried and any(point.arm in arms for arms in smoke) else absence

    def _stand_ins(self, spec: RowSpec, config: Config) -> list[str]:
        """Where even the table's own recipe departs from what was published."""
        table = self._published
        if table is None or spec.key not in table.datasets:
            return []
        pairs = (("data", config.data.name, table.datasets[spec.key]),
                 ("model", config.model.name, table.models[spec.key]))  # fmt: skip
        return [f"{what} {ours}" for what, ours, theirs in pairs
                if ours != theirs and theirs != "not_stated"]  # fmt: skip

    def _number(self, key: str, column: str) -> Published | None:
        return self._published.cells.get(key, {}).get(column) if self._published else None

    def _label(self, spec: RowSpec) -> str:
        return spec.label or self._table.arms[spec.arm].label or spec.key

    def _empty(
        self, spec: RowSpec, columns: Sequence[str], why: Absence, count: int, chosen: str
    ) -> Row:
        cells = {
            c: Cell(c, absent={why: count}, published=self._number(spec.key, c)) for c in columns
        }
        return Row(spec.key, self._label(spec), spec.arm, cells, chosen)

    def _unavailable(self, columns: Sequence[str]) -> list[Row]:
        return [
            Row(key, key, "", {c: Cell(c, published=self._number(key, c)) for c in columns})
            for key in self._table.unavailable
        ]

    def _ordered(self, rows: Sequence[Row]) -> list[Row]:
        """In the published order, where there is one."""
        order = list(self._published.cells) if self._published else []
        place = {key: number for number, key in enumerate(order)}
        return sorted(rows, key=lambda row: place.get(row.key.split(" ")[0], len(place)))

    def _notes(self) -> list[str]:
        notes = []
        if self._rows is None:
            whys = dict.fromkeys(self._table.unavailable.values())
            notes += [f"rows without numbers: {why}" for why in whys]
        if self.variant:
            notes.append(f"runs launched with: {' '.join(self.variant)}")
        for key, runs in self._launches.items():
            if list(key) != self.variant:
                count = len({run.path for run, _ in runs})
                how = f"ablation-report table={self._name} {' '.join(key)}".strip()
                notes.append(f"{count} other runs of this table: {how}")
        return notes


def _leaf(run: Run, key: str) -> Any:
    """A dotted key of a run's saved config."""
    try:
        return flat(yaml.safe_load(run.config_path.read_text("utf-8"))).get(key)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _text(grid: Sequence[str]) -> str:
    return " ".join(grid)


def measured(config: Config, column: str, wanted: Mapping[str, Any]) -> Found | Absence:
    """A run's number for a column, or why there is none."""
    state = state_of(config)
    metric, split = column_place(column)
    checkpoint = jobs.checkpoints(config)[0]
    weights = jobs.chosen_weights(config)
    found = numbers(config.run_dir, metric, split, checkpoint, weights)
    if not found:
        return ABSENT[state]
    clean = numbers(config.run_dir, "clean", "test", checkpoint, weights)
    if clean and collapsed(clean[0], config.data.classes):
        return "collapsed"
    node = _evaluation(config, split)
    size = None if node is None else node.n
    # The attack that the table asks for, on as many images as the config asks for.
    return min(found, key=lambda f: (len(mismatches(f.params, wanted)), f.n != size, -f.n))


def _evaluation(config: Config, split: str) -> EvaluationConfig | None:
    return next((node for node in jobs.evaluations(config) if node.split == split), None)


def compare_runs(paths: Iterable[Path], by: Sequence[str], title: str = "runs") -> Comparison:
    """Any runs, grouped by keys of their configs.

    Args:
        paths: run directories.
        by: dotted keys, for example ``method`` or ``component.awp``.
        title: for people.

    Raises:
        InputError: no run is evaluated, or a config cannot be read.
    """
    groups: dict[tuple[str, ...], list[_Evaluated]] = {}
    skipped: Counter[str] = Counter()
    every = [_evaluated(path) for path in paths]
    smoke = all(run.scale == "smoke" for run in every if run is not None and run.numbers)
    for run in every:
        if run is None or not run.numbers:
            skipped["without a result"] += 1
        elif run.scale == "smoke" and not smoke:
            skipped["at smoke scale"] += 1
        else:
            groups.setdefault(tuple(_value(run.config, key) for key in by), []).append(run)
    if not groups:
        raise InputError(f"{title}: no evaluated run there; train some, or give runs=<folder>")
    columns = tuple(dict.fromkeys(c for g in groups.values() for run in g for c in run.numbers))
    rows, notes = [], [f"{n} runs {why} are left out" for why, n in skipped.items()]
    for values, group in groups.items():
        label = " ".join(f"{k}={v}" for k, v in zip(by, values, strict=True)) or "all"
        rows.append(_group_row(label, group, columns))
        mixed = _differing([run.config for run in group], by)
        if mixed:
            notes.append(f"{label} averages runs that differ in {', '.join(mixed)}: add to by=")
    return Comparison(
        *("runs", title, columns, tuple(rows)),
        scale="smoke" if smoke else "full",
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Evaluated:
    """A run with its numbers by column."""

    path: Path
    config: Mapping[str, Any]
    scale: str
    numbers: Mapping[str, Found]


def _evaluated(path: Path) -> _Evaluated | None:
    run = Run(path, path.name.rpartition("-")[2])
    result = run.result()
    try:
        config = flat(yaml.safe_load(run.config_path.read_text("utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: config.yaml cannot be read ({error})") from error
    if result is None:
        return None
    found: dict[str, Found] = {}
    checkpoint = {"robust": "best_robust", "clean": "best_clean"}.get(
        str(config.get("selection.metric")), "last"
    )
    for entry in result["entries"]:
        column = entry["metric"] + ("_val" if entry["split"] == "val" else "")
        for number in numbers(path, entry["metric"], entry["split"], checkpoint):
            if column not in found or number.n > found[column].n:
                found[column] = number
    return _Evaluated(path, config, str(result["scale"]), found)


def _value(config: Mapping[str, Any], key: str) -> str:
    """A key's value for a label: ``method`` is its name, a component enabled or disabled."""
    if key in config:
        return str(config[key])
    if f"{key}.name" in config:
        return str(config[f"{key}.name"])
    if f"{key}._target_" in config:
        return (
            str(config[f"{key}._target_"]).rpartition(".")[2].lower()
            if (not key.startswith("component."))
            else "enabled"
        )
    return "disabled" if key.startswith("component.") else "none"


def _group_row(label: str, group: Sequence[_Evaluated], columns: Sequence[str]) -> Row:
    cells, flags = {}, dict[str, None]()
    for column in columns:
        absent: Counter[Absence] = Counter()
        samples, wrong = [], dict[str, None]()
        first: Found | None = None
        for run in group:
            found = run.numbers.get(column)
            clean = run.numbers.get("clean")
            classes = int(run.config["data.classes"])
            if found is None or (clean is not None and collapsed(clean, classes)):
                absent["not evaluated" if found is None else "collapsed"] += 1
                continue
            first = first or found
            wrong |= dict.fromkeys(mismatches(found.params, first.params))
            flags |= dict.fromkeys(found.flags)
            axis = f"seed={run.config['seed']}"
            samples.append(Sample(axis, found.value, found.n, run.path.name, found.examples))
        unit = first.unit if first else "percent"
        cells[column] = Cell(column, unit, tuple(samples), dict(absent), mismatch=tuple(wrong))
    return Row(label, label, label, cells, flags=tuple(flags))


def _differing(configs: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[str]:
    """Keys in which the runs of one group differ, the seed and the grouping keys apart."""
    keys = {key for config in configs for key in config}
    skip = ("seed", "scale", *VOLATILE, *by)
    found = sorted(
        key
        for key in keys
        if not key.startswith(tuple(skip)) and len({str(c.get(key)) for c in configs}) > 1
    )
    # A part that is another one is one difference, not one per setting.
    parts = {key.removesuffix("._target_") for key in found if key.endswith("._target_")}
    whole = {key: next((p for p in parts if key.startswith(f"{p}.")), key) for key in found}
    return sorted(set(whole.values()) - {""})
