"""Table files: what trains (arms), what is printed (rows), and the published numbers beside them.

A table is ``multirun_sweeps/<name>.yaml``; its published numbers are ``published/<name>.csv`` in
the same folder. Overrides stay text here; ``planning`` turns them into jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ablation.config.folders import read_yaml
from ablation.config.parser import Parser
from ablation.errors import ConfigError, InputError
from ablation.text import did_you_mean

Extra = Literal["seconds_per_step"]
"""Columns that are shown on request: of the training, not of an evaluation."""


@dataclass(frozen=True)
class Select:
    """How one of several runs is chosen; validation data only, there is no switch for test.

    Attributes:
        metric: largest mean over the axes wins; ties go to the first grid point.
        split: always ``val``.
    """

    metric: str
    split: Literal["val"] = "val"


@dataclass(frozen=True)
class From:
    """An arm that goes on with the best grid points of another.

    Attributes:
        arm: the other one.
        top: how many of its grid points.
        by: what makes them best.
        weights: start from their weights too (``init_from``), not only from their settings.
    """

    arm: str
    top: int
    by: Select
    weights: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top={self.top}: at least 1")


@dataclass(frozen=True)
class Arm:
    """What trains.

    Attributes:
        set: overrides in Hydra's grammar; one with a comma or range() is the arm's own grid.
        label: for people; ``None`` means the arm's name.
        source: the key ``from`` of the file.
    """

    set: list[str] = field(default_factory=list)
    label: str | None = None
    source: From | None = None


@dataclass(frozen=True)
class RowSpec:
    """What is printed.

    Attributes:
        arm: whose runs.
        csv: the published row; ``None`` means the arm's name.
        model: the published model, where a CSV has an arm several times.
        select: needed where the arm has a grid.
        label: for people; ``None`` means the arm's.
    """

    arm: str
    csv: str | None = None
    model: str | None = None
    select: Select | None = None
    label: str | None = None

    @property
    def key(self) -> str:
        """Unique in a table."""
        stem = self.csv or self.arm
        return f"{stem}@{self.model}" if self.model else stem


@dataclass(frozen=True)
class Table:
    """A table file.

    Attributes:
        title: for people.
        arms: what trains, by name.
        rows: what is printed; ``None`` means a row per arm.
        set: overrides of all arms; an arm's own win.
        axes: keys crossed with every arm, for example ``seed: [0, 1, 2]``.
        evaluation: option of the group ``evaluation``.
        unavailable: published rows that cannot be trained yet, and why.
        differences: derived columns: name -> the two columns, the second subtracted from the first.
        extra: columns to show beside what was evaluated.
    """

    title: str
    arms: Mapping[str, Arm]
    rows: list[RowSpec] | None = None
    set: list[str] = field(default_factory=list)
    axes: Mapping[str, list[Any]] = field(default_factory=dict)
    evaluation: str | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, list[str]] = field(default_factory=dict)
    extra: list[Extra] = field(default_factory=list)

    def lines(self) -> list[RowSpec]:
        """The rows, complete."""
        return [RowSpec(arm) for arm in self.arms] if self.rows is None else self.rows


def table_names(folders: Sequence[Path]) -> list[str]:
    """Tables that can be asked for."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def table_path(name: str, folders: Sequence[Path]) -> Path:
    """The file of a table; the first folder wins.

    Raises:
        InputError: there is none.
    """
    for folder in folders:
        if name in table_names([folder]):  # a name, never a path
            return folder / f"{name}.yaml"
    raise InputError(f"table={name}: {did_you_mean(name, table_names(folders))}")


def load_table(path: Path) -> Table:
    """Read and check a table file.

    Raises:
        ConfigError: with everything that is wrong with it.
    """
    parser = Parser()
    table = parser.parse(Table, _renamed(read_yaml(path)), "")
    problems = [problem.replace(".source", ".from") for problem in parser.problems]
    if isinstance(table, Table):
        problems += check_table(table)
    if problems:
        raise ConfigError([f"{path.name}: {problem}" for problem in problems])
    assert isinstance(table, Table)  # noqa: S101
    return table


def _renamed(values: Any) -> Any:
    """``from`` is no name that a Python field can have."""
    arms = values.get("arms") if isinstance(values, Mapping) else None
    if not isinstance(arms, Mapping):
        return values
    renamed = {
        name: {("source" if key == "from" else key): value for key, value in arm.items()}
        if isinstance(arm, Mapping)
        else arm
        for name, arm in arms.items()
    }
    return {**values, "arms": renamed}


def _texts(table: Table) -> dict[str, str]:
    """What a table file says to people, by key."""
    found: dict[str, str | None] = {"title": table.title}
    found |= {f"arms.{name}": name for name in table.arms}
    found |= {f"arms.{name}.label": arm.label for name, arm in table.arms.items()}
    found |= {f"rows[{i}].label": row.label for i, row in enumerate(table.rows or ())}
    found |= {f"unavailable.{name}": f"{name}{why}" for name, why in table.unavailable.items()}
    return {key: text for key, text in found.items() if text is not None}


def check_table(table: Table) -> list[str]:
    """List contradictions within the file."""
    problems = [] if table.arms else ["arms: a table needs at least one"]
    problems += [
        f"{key}={text!r}: it is printed in tables, so write it on one line, without control "
        f"characters"
        for key, text in _texts(table).items()
        if not text.isprintable()
    ]
    names = list(table.arms)
    for name, arm in table.arms.items():
        if arm.source is None:
            continue
        source = table.arms.get(arm.source.arm)
        if source is None or arm.source.arm == name:
            remedy = did_you_mean(arm.source.arm, [other for other in names if other != name])
            problems.append(f"arms.{name}.from.arm={arm.source.arm}: no other arm; {remedy}")
        elif source.source is not None:
            problems.append(f"arms.{name}.from.arm={arm.source.arm}: continues an arm itself")
    keys = [row.key for row in table.lines()]
    problems += [f"rows: {key} is there twice" for key in sorted(set(keys)) if keys.count(key) > 1]
    for row in table.lines():
        if row.arm not in table.arms:
            problems.append(f"rows: {row.key} names arm={row.arm}; {did_you_mean(row.arm, names)}")
    problems += [
        f"differences.{name}={columns}: two columns, as [clean, aa]"
        for name, columns in table.differences.items()
        if len(columns) != 2
    ]
    for axis, values in table.axes.items():
        if not values:
            problems.append(f"axes.{axis}: empty; give at least one value")
    return problems
