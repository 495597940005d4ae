"""What a report shows: rows of cells, each a measured number beside a published one.

Plain values without torch: ``table`` and ``groups`` fill them from run directories,
``text_tables`` and ``latex`` print them, ``plots`` and ``curves`` draw them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ablation.sweeps.published import Published

Absence = Literal[
    "missing", "running", "interrupted", "failed", "collapsed", "smoke", "pending", "not evaluated"
]
"""Why a planned run has no number: never started; at work; stopped; failed; at chance level; ran
at ``scale=smoke``; waits for a selection among other runs; trained, but without this metric."""


@dataclass(frozen=True)
class Sample:
    """One run's number.

    Attributes:
        axis: which repetition, for example ``seed=0``; samples of two rows pair by it.
        value: in the cell's unit.
        n: examples it is taken over.
        run: name of the run directory.
        examples: the evaluation's Parquet file, one line per example; ``None`` if it is gone.
    """

    axis: str
    value: float
    n: int
    run: str
    examples: Path | None = None


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        column: its metric, for example ``pgd20``.
        unit: percent, margin, radius, correlation or s.
        samples: one per run that has the number.
        absent: why the other planned runs have none, and how many of each.
        published: the paper's number.
        tags: how the measured runs depart from the table's recipe, a few words each
            (``n=200``, ``5 of 200 epochs``, ``data digits``); ``strict`` hides such cells.
        mismatch: where the attack's parameters differ from the table's (``steps 10, not 20``):
            then the two numbers are not compared.
        params: of the attack or measure behind the samples, with the ``split`` it ran on; empty
            without samples.
    """

    column: str
    unit: str = "percent"
    samples: tuple[Sample, ...] = ()
    absent: Mapping[Absence, int] = field(default_factory=dict)
    published: Published | None = None
    tags: tuple[str, ...] = ()
    mismatch: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def example_files(self) -> list[Path]:
        """The Parquet files of the samples that have one."""
        return [each.examples for each in self.samples if each.examples is not None]


@dataclass(frozen=True)
class Row:
    """One printed line.

    Attributes:
        key: the CSV's id, or the arm's name; unique in a table.
        label: for people.
        arm: what was trained.
        chosen: the grid point that stands for the arm and how it was chosen, or empty.
        cells: by column.
        flags: warnings of the row's evaluations (gradient masking), each once.
        note: for example why the row has no arm.
        runs: directories of the runs behind it; they need not exist.
        data: name of the data set; numbers on different ones are not subtracted.
    """

    key: str
    label: str
    arm: str
    cells: Mapping[str, Cell]
    chosen: str = ""
    flags: tuple[str, ...] = ()
    note: str = ""
    runs: tuple[Path, ...] = ()
    data: str = ""


@dataclass(frozen=True)
class Comparison:
    """A whole table.

    Attributes:
        name: for files, for example ``dose_table1``.
        title: for people.
        columns: metrics, in order.
        rows: in order.
        scale: ``smoke`` marks everything that is shown.
        notes: below the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    scale: Literal["full", "smoke"] = "full"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval.

    Attributes:
        mean: of ``n`` values.
        half: half the width of Student's t interval; ``None`` below two values.
        n: number of values.
    """

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Contrast:
    """A row minus another in one column, paired.

    Attributes:
        key: the row.
        against: the other row.
        column: the metric.
        by_seed: over repetitions that both have (``n`` pairs); ``None`` without a pair.
        by_example: over the examples that both evaluated, averaged over repetitions first; in
            percentage points; ``None`` where the metric has no line per example.
    """

    key: str
    against: str
    column: str
    by_seed: Interval | None
    by_example: Interval | None
