"""The published numbers beside a table file: ``published/<name>.csv``."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablation.errors import InputError
from ablation.sweeps.tables import Table
from ablation.text import did_you_mean, one_line


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
        value: as a number, in the cell's unit.
        printed: as the paper prints it, trailing zeros kept.
        ci: the printed plus-minus figure, or empty; what it means differs by paper.
        note: what is odd about it, or empty. One that begins with ``not comparable`` is of another
            quantity than ours: it is shown, and no difference is.
    """

    value: float
    printed: str
    ci: str = ""
    note: str = ""

    @property
    def comparable(self) -> bool:
        """Whether it is of the quantity that is measured here."""
        return not self.note.startswith("not comparable")


PUBLISHED_NAMES: Mapping[str, str] = {
    "vgg16": "vgg16_bn",
    "tinyimagenet": "tiny_imagenet",
}
"""Ids of the CSV files that differ from ours."""
PRINTED_AS: Mapping[str, str] = {"wrn34_10_emr": "wrn34_10"}
"""Models of ours that are what a paper means by another's id: EMR's WRN-34-10 is its code's own."""


@dataclass(frozen=True)
class PublishedTable:
    """The numbers of a CSV file.

    Attributes:
        columns: metrics in order.
        units: by metric.
        cells: row key -> metric -> number.
        datasets: row key -> our name of its data set.
        models: row key -> our name of its model.
    """

    columns: tuple[str, ...]
    units: Mapping[str, str]
    cells: Mapping[str, Mapping[str, Published]]
    datasets: Mapping[str, str]
    models: Mapping[str, str]


def published_path(path: Path) -> Path | None:
    """The CSV beside a table file, if there is one."""
    found = path.parent / "published" / f"{path.stem}.csv"
    return found if found.is_file() else None


def load_published(path: Path) -> PublishedTable:
    """Read a CSV of published numbers.

    Raises:
        InputError: it cannot be read, or a number is none.
    """
    cells: dict[str, dict[str, Published]] = {}
    units: dict[str, str] = {}
    datasets: dict[str, str] = {}
    models: dict[str, str] = {}
    rows = _read(path)
    ambiguous = _several_models(rows)
    for row in rows:
        arm, model = row["arm"], row["model"]
        key = f"{arm}@{model}" if arm in ambiguous else arm
        number = Published(float(row["value"]), row["value"], row["ci"], row["note"])
        cells.setdefault(key, {})[row["metric"]] = number
        units[row["metric"]] = row["unit"]
        datasets[key] = PUBLISHED_NAMES.get(row["dataset"], row["dataset"])
        models[key] = PUBLISHED_NAMES.get(model, model)
    return PublishedTable(tuple(units), units, cells, datasets, models)


COLUMNS = ("arm", "dataset", "model", "metric", "value", "ci", "unit", "note")
"""Of a CSV file, those that are read."""


def _read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, complete and with numbers for values."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise InputError(f"{path}: the columns {', '.join(lacking)} are missing")
            found = []
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: not as many cells as columns"
                    )
                if not _is_number(row["value"]):
                    line = f"{path}, line {reader.line_num}"
                    raise InputError(f"{line}: value={row['value']!r} is no number")
                if odd := [name for name, text in row.items() if not text.isprintable()]:
                    line = f"{path}, line {reader.line_num}"
                    raise InputError(f"{line}: {odd[0]}={row[odd[0]]!r} has control characters")
                found.append(row)
            return found
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _several_models(rows: Sequence[Mapping[str, str]]) -> set[str]:
    """Arms that a CSV has with more than one model."""
    models: dict[str, set[str]] = {}
    for row in rows:
        models.setdefault(row["arm"], set()).add(row["model"])
    return {arm for arm, names in models.items() if len(names) > 1}


def check_published(table: Table, published: PublishedTable, source: str) -> list[str]:
    """Rows that only one of file and CSV has; a row that no paper has names no ``csv``."""
    ours = {row.key: row for row in table.lines()}
    theirs = set(published.cells)
    left = sorted(theirs - ours.keys())
    problems = [
        f"rows: {key} is not in {source}; {did_you_mean(key, sorted(theirs))}"
        for key in sorted(ours.keys() - theirs)
        if ours[key].csv or ours[key].model or difflib.get_close_matches(key, left, n=1)
    ]
    problems += [
        f"{source} has {key}, the table file has no such row; add it to rows, or to unavailable "
        f"with the reason"
        for key in sorted(theirs - ours.keys() - set(table.unavailable))
    ]
    problems += [
        f"unavailable.{key}: {'it is among the rows' if key in ours else f'not in {source}'}"
        for key in sorted(table.unavailable)
        if key in ours or key not in theirs
    ]
    return problems
