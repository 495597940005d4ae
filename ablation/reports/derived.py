"""Derived columns of a table: differences of two others, run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from ablation.reports.cells import unique
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.sweeps.published import Published


def with_differences(
    comparison: Comparison, differences: Mapping[str, Sequence[str]]
) -> Comparison:
    """Add a column for each difference whose two columns a table has.

    Args:
        comparison: the table.
        differences: name -> minuend and subtrahend.
    """
    here = {
        name: (columns[0], columns[1])
        for name, columns in differences.items()
        if {*columns} <= {*comparison.columns}
    }
    rows = [
        replace(row, cells={**row.cells, **{name: _cell(name, row, *pair) for name, pair in
                                             here.items()}})
        for row in comparison.rows
    ]  # fmt: skip
    return replace(comparison, columns=(*comparison.columns, *here), rows=tuple(rows))


def _cell(name: str, row: Row, first: str, second: str) -> Cell:
    """The difference in the runs that have both numbers."""
    minuend, subtrahend = row.cells[first], row.cells[second]
    theirs = {sample.run: sample for sample in subtrahend.samples}
    pairs = [(mine, theirs[mine.run]) for mine in minuend.samples if mine.run in theirs]
    samples = [
        Sample(mine.axis, mine.value - other.value, min(mine.n, other.n), mine.run)
        for mine, other in pairs
    ]
    return Cell(
        name,
        minuend.unit,
        tuple(samples),
        max((minuend.absent, subtrahend.absent), key=lambda absent: sum(absent.values())),
        _published(minuend.published, subtrahend.published),
        unique([minuend.tags, subtrahend.tags]),
        unique([minuend.mismatch, subtrahend.mismatch]),
        {"difference": f"{first} - {second}"},
    )


def _published(first: Published | None, second: Published | None) -> Published | None:
    """The difference of two printed numbers, to their digits."""
    if first is None or second is None or not (first.comparable and second.comparable):
        return None
    text = str(Decimal(first.printed) - Decimal(second.printed))
    return Published(float(text), text)
