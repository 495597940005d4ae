"""Any runs, grouped by keys of their configs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation.errors import InputError
from ablation.reports.cells import Number, counted, filled, unique
from ablation.reports.comparison import Absence, Comparison, Row, Sample
from ablation.reports.deviations import (
    absent_as_none,
    attack_key,
    differences,
    mismatches,
    short,
    within,
)
from ablation.reports.records import (
    Directory,
    Measurement,
    collapsed,
    read,
    saved_config,
    selected,
    value_at,
)
from ablation.runs.directory import VOLATILE, Run
from ablation.text import did_you_mean

NAMED = 8
"""How many of the keys in which runs differ are named."""


@dataclass(frozen=True)
class _Trained:
    """A run with the numbers, by column, of the weights that it stands for."""

    path: Path
    config: Mapping[str, Any]
    directory: Directory
    numbers: Mapping[str, Sequence[Measurement]]

    @property
    def is_smoke(self) -> bool:
        return self.config.get("scale") == "smoke"

    @property
    def absence(self) -> Absence | None:
        """Why it has no number at all."""
        if not self.numbers or self.directory.state == "failed":
            return self.directory.absence
        every = [number for found in self.numbers.values() for number in found]
        return "collapsed" if collapsed(every, int(value_at(self.config, "data.classes"))) else None


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
    notes: list[str] = []
    every = _without_copies(_readable(once.values(), notes), notes)
    evaluated = [run for run in every if run.numbers]
    if not evaluated:
        left_out = "".join(f"; {note}" for note in notes)
        raise InputError(
            f"{title}: no evaluated run there; train some, or give runs=<folder>{left_out}"
        )
    smoke = all(run.is_smoke for run in evaluated)
    kept = [run for run in every if run.is_smoke == smoke]
    keys = [key.replace("/", ".") for key in by]
    _check_keys(keys, kept)
    named: dict[str, list[_Trained]] = {}
    for run in kept:
        named.setdefault(_group_name(run.config, keys), []).append(run)
    groups: dict[str, list[_Trained]] = {}
    for label, group in named.items():
        groups |= _apart(label, group, notes)
    columns = tuple(dict.fromkeys(column for run in kept for column in run.numbers))
    usual = {column: _usual(kept, column) for column in columns}
    other, scale = len(every) - len(kept), "full" if smoke else "smoke"
    notes += [f"{counted(other, 'run')} at {scale} scale not shown"] if other else []
    return Comparison(
        *("runs", title, columns),
        _with_data([_group_row(label, group, usual) for label, group in groups.items()]),
        scale="smoke" if smoke else "full",
        notes=tuple(notes),
    )


def _with_data(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Name the data set in each row's label where the rows are of several."""
    if len({row.data for row in rows}) == 1:
        return tuple(rows)
    return tuple(
        row if row.data in row.label.split() else replace(row, label=f"{row.label} {row.data}")
        for row in rows
    )


def _group_name(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Name a group by its keys' values: ``elsayed burn_in coef=1000``; nothing if disabled."""
    names, tails = [], Counter(key.rpartition(".")[2] for key in keys)
    for key in keys:
        value, tail = absent_as_none(value_at(config, key)), key.rpartition(".")[2]
        if tails[tail] > 1:
            tail = key.removeprefix("component.")
        is_component = key.startswith("component.")
        if is_component and value is None:
            continue
        if is_component and key.count(".") == 1:
            names.append(tail)
        elif "." not in key and key != "init_from" and isinstance(value, str | Mapping):
            names.append(str(short(value)))
        else:
            names.append(f"{tail}={short(value)}")
    if keys and not names:
        return "without " + ", ".join(key.removeprefix("component.") for key in keys)
    return " ".join(names) or "all"


def _readable(paths: Iterable[Path], notes: list[str]) -> list[_Trained]:
    """The runs that can be read; what cannot is named in ``notes``."""
    runs = []
    for path in paths:
        try:
            run = _trained(path, saved_config(Run.at(path)))
        except InputError as error:
            notes.append(f"left out: {error}")
            continue
        if run is not None:
            runs.append(run)
            notes += run.directory.problems
    return runs


def _without_copies(runs: Sequence[_Trained], notes: list[str]) -> list[_Trained]:
    """Count a training once, wherever its directory was copied to; the fullest copy counts."""
    kept: list[_Trained] = []
    for run in sorted(runs, key=lambda run: -sum(map(len, run.numbers.values()))):
        twins = (other for other in kept if not _departures(other.config, run.config))
        original = next((t for t in twins if t.config["seed"] == run.config["seed"]), None)
        if original is None:
            kept.append(run)
        else:
            notes.append(f"counted once: {run.path} is the same training as {original.path}")
    return [run for run in runs if run in kept]


def _trained(path: Path, config: Mapping[str, Any]) -> _Trained | None:
    """``None`` for what is no training: ``ablation-evaluate checkpoint=`` leaves folders, too.

    Raises:
        InputError: the config is cut.
    """
    if "weights" in config:
        return None
    if not {"seed", "data", "selection", "evaluation", "method"} <= config.keys():
        raise InputError(f"{Run.at(path).config_path} is cut: move it away")
    checkpoint, weights = selected(config)
    directory = read(path)
    numbers: dict[str, list[Measurement]] = {}
    for number in directory.measurements:
        own = number.source is None  # transferred attacks have a matrix of their own
        if own and number.is_of(checkpoint, weights):
            numbers.setdefault(number.column, []).append(number)
    return _Trained(
        path,
        {**config, "init_from": _start(config), "weights": f"{checkpoint} {weights}"},
        directory,
        numbers,
    )


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
    each = [{attack_key(f.params): f.params for f in run.numbers.get(column, ())} for run in runs]
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
    data = str(value_at(group[0].config, "data.name"))
    return Row(label, label, label, cells, flags=unique(flags), runs=runs, data=data)


def _departures(
    first: Mapping[str, Any],
    other: Mapping[str, Any],
) -> list[str]:
    """The keys in which two runs were trained differently, without what follows from others."""
    keys = [key for key, _ in differences(first, other)]
    follows = {"data": "augment", "epochs": "schedule.milestones", "eps": "method.budget.eps"}
    ignored = {"seed", *VOLATILE, *(follows[key] for key in follows if key in keys)}
    ignored -= {"init_from"}
    return [key for key in keys if not within(key, ignored)]


def _rank(key: str) -> tuple[bool, str]:
    """What a reader asks for first stands first."""
    return key not in ("data", "model", "method"), key


def _start(config: Mapping[str, Any]) -> str | None:
    """Which kind of run its weights are from: of the same name but for seed and id."""
    source = config.get("init_from")
    return re.sub(r"-s\d+-[0-9a-f]{10}$", "", Path(source).name) if source else None


def _apart(label: str, group: Sequence[_Trained], notes: list[str]) -> dict[str, list[_Trained]]:
    """Split a group into runs that differ in their seed alone, named by what sets them apart."""
    parts: list[list[_Trained]] = []
    for run in group:
        same = (p for p in parts if not _departures(p[0].config, run.config))
        part = next(same, None)
        if part is None:
            parts.append([run])
        else:
            part.append(run)
    if len(parts) == 1:
        return {label: parts[0]}
    first = parts[0][0].config
    every = [_departures(first, part[0].config) for part in parts[1:]]
    keys = sorted({key for keys in every for key in keys}, key=_rank)
    notes.append(
        f"{label}: runs that differ in {_some(keys)} are rows of their own, each over its seeds"
    )
    base = "" if label == "all" else f"{label} "
    titles = [f"{base}{_group_name(part[0].config, keys[:NAMED])}" for part in parts]
    twice = {title for title, count in Counter(titles).items() if count > 1}
    return {
        f"{title} ({part[0].path.name})" if title in twice else title: part
        for title, part in zip(titles, parts, strict=True)
    }


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more
