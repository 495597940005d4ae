"""Means, intervals and paired differences of a comparison's cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from ablation.errors import InputError
from ablation.reports.comparison import Cell, Comparison, Contrast, Interval, Row, Sample
from ablation.runs.columns import recorded_metric, verdict_column

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

CONFIDENCE = 0.95
"""Of every interval, two-sided."""


def interval(values: Sequence[float]) -> Interval:
    """Mean of values and half the width of their two-sided 95% Student t interval.

    Identical values have exactly their own mean and a half-width of 0.

    Args:
        values: at least one, all finite.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    n = array.size
    if n == 0:
        raise ValueError("no values, so no mean")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite: {array[~np.isfinite(array)].tolist()}")
    # Around the first value, because the mean of equal floats can differ from them in the last bit.
    shifted = array - array[0]
    mean = float(array[0] + shifted.mean())
    if n == 1:
        return Interval(mean, None, 1)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Interval(mean, quantile * float(shifted.std(ddof=1)) / math.sqrt(n), n)


def cell_interval(cell: Cell) -> Interval | None:
    """The interval over a cell's runs, in its unit; ``None`` without a sample."""
    return interval([sample.value for sample in cell.samples]) if cell.samples else None


def difference(cell: Cell) -> float | None:
    """Measured mean minus published value, in the cell's unit.

    ``None`` without a sample or a published number, where the attacks differ (``mismatch``), and
    where the published number is of another quantity.
    """
    measured = cell_interval(cell)
    if measured is None or cell.published is None or cell.mismatch:
        return None
    if not cell.published.comparable:
        return None
    return measured.mean - cell.published.value


def contrasts(comparison: Comparison, against: str) -> tuple[Contrast, ...]:
    """Every other row minus one row, where both have a sample in a column.

    Both of a contrast's intervals are ``None`` where no repetition is common, where the rows are on
    different data sets, or where the two cells' attacks depart from the table's in different ways.

    Args:
        comparison: its rows are compared in their order, its columns in theirs.
        against: the row's key; or an arm with one row, if no key is equal.

    Raises:
        InputError: no such key or arm, or an arm with several rows.
    """
    base = row_of(comparison.rows, against)
    return tuple(
        _contrast(row, base, column)
        for row in comparison.rows
        if row.key != base.key
        for column in comparison.columns
        if _samples(row, column) and _samples(base, column)
    )


def row_of(rows: Sequence[Row], against: str) -> Row:
    """Find a row by its key, or by its arm where that has one row.

    Raises:
        InputError: there is none, or several.
    """
    matching = [row for row in rows if row.key == against]
    matching = matching or [row for row in rows if row.arm == against]
    if len(matching) == 1:
        return matching[0]
    if matching:
        keys = ", ".join(row.key for row in matching)
        raise InputError(f"{against!r} is the arm of {len(matching)} rows; give a key: {keys}")
    keys = ", ".join(row.key for row in rows)
    raise InputError(f"{against!r} is no row of the table; give one of: {keys}")


def _samples(row: Row, column: str) -> dict[str, Sample]:
    """By repetition."""
    cell = row.cells.get(column)
    return {sample.axis: sample for sample in cell.samples} if cell else {}


def _contrast(row: Row, base: Row, column: str) -> Contrast:
    ours, theirs = _samples(row, column), _samples(base, column)
    pairs = [(sample, theirs[axis]) for axis, sample in ours.items() if axis in theirs]
    if row.data != base.data:
        pairs = []
    if not pairs or set(row.cells[column].mismatch) != set(base.cells[column].mismatch):
        return Contrast(row.key, base.key, column, None, None)
    by_seed = interval([a.value - b.value for a, b in pairs])
    return Contrast(row.key, base.key, column, by_seed, _by_example(pairs, column))


def _by_example(pairs: Iterable[tuple[Sample, Sample]], column: str) -> Interval | None:
    """Over the examples of every pair; ``None`` if a file or its column is missing."""
    import pandas as pd

    differences = [_difference_per_example(a, b, column) for a, b in pairs]
    present = [each for each in differences if each is not None]
    if len(present) < len(differences):
        return None
    per_example = pd.concat(present, axis=1, join="inner").mean(axis=1)
    return interval(per_example.to_list()) if len(per_example) else None


def _difference_per_example(a: Sample, b: Sample, column: str) -> pd.Series[float] | None:
    """In percentage points by index; ``None`` too if an index is not the same image in both."""
    ours, theirs = _outcomes(a, column), _outcomes(b, column)
    if ours is None or theirs is None:
        return None
    both = ours.join(theirs, how="inner", rsuffix="_other")
    if not both["label"].equals(both["label_other"].rename("label")):
        return None
    return 100 * (both["outcome"] - both["outcome_other"])


def _outcomes(sample: Sample, column: str) -> pd.DataFrame | None:
    """``label`` and ``outcome`` (1 correct, 0 not) by ``index``, of the examples attacked."""
    import pandas as pd  # slow to import, and most reports contrast nothing

    if sample.examples is None:
        return None
    try:
        name = _verdict(sample.examples, column)
        if name is None:
            return None
        table = pd.read_parquet(sample.examples, columns=["index", "label", name])
    except (OSError, ValueError):  # gone or unreadable; pyarrow's own errors are ValueErrors
        return None
    table = table.dropna().set_index("index").rename(columns={name: "outcome"})
    return table.astype({"outcome": float})


def _verdict(examples: Path, column: str) -> str | None:
    """Which column of a Parquet file says who is correct; ``None`` without one."""
    import pyarrow.parquet as parquet

    present = parquet.read_schema(examples).names
    metric = recorded_metric(column, present, verdict_column)
    return None if metric is None else verdict_column(metric)
