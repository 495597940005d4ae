"""Comparisons as text: terminal, Markdown, CSV, and a data frame; LaTeX is in ``latex``.

A measured number is the mean over runs, its 95% interval's half-width and the number of runs:
``85.34 ±0.41 (3)``, or ``(2/3)`` if a planned run has no number. Percent have two decimals if every
run's number is over at least 2000 examples (its step is 0.05 or less), else one; correlations have
three; margins have four significant digits, radii four decimals, seconds three digits. Half-width
and difference have the decimals of their mean. Published numbers are as printed.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from ablation.reports.comparison import Cell, Comparison, Contrast, Interval, Row
from ablation.reports.statistics import cell_interval, difference
from ablation.text import summary_table

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

SMOKE = "SMOKE RUN: tiny data, model and attacks; these numbers mean nothing"
"""First and last line of what a smoke comparison prints."""

HIDDEN = "hidden (tagged)"
"""What ``strict`` shows for a number that departs from the table's recipe."""

FINE = 2000
"""Least number of examples for two decimals of a percentage."""

GAP = 2
"""Characters between two columns."""

MEASURED = "mean ± half-width of its 95% t interval (runs)"

PAIRED = (
    "paired: mean ± half-width of its 95% t interval (pairs of runs; examples, for these networks "
    "as they are); * excludes 0, not corrected for the number of comparisons"
)

NUMBER = re.compile(r"[+-]?\d+(?=$|[. ])")
"""The part of a number that is left of its decimal point."""

LINE = {
    "key": "string",
    "label": "string",
    "arm": "string",
    "chosen": "string",
    "column": "string",
    "unit": "string",
    "mean": "float64",
    "ci95": "float64",
    "n_runs": "int64",
    "planned": "int64",
    "n_examples": "Int64",
    "published": "float64",
    "published_printed": "string",
    "published_ci": "string",
    "difference": "float64",
    "tags": "string",
    "mismatch": "string",
    "absent": "string",
    "scale": "string",
    "flags": "string",
}
"""Columns of the frame and their types."""


def terminal(
    comparison: Comparison, strict: bool = False, contrasts: Sequence[Contrast] = ()
) -> str:
    """Aligned plain text as wide as the terminal (120 without one), in blocks of metrics.

    Args:
        comparison: the table.
        strict: hide measured numbers with tags.
        contrasts: of its rows; a second table.
    """
    width = shutil.get_terminal_size(fallback=(120, 24)).columns
    tables = tables_of(comparison, strict, contrasts)
    return between_banners(comparison, [as_terminal(table, width) for table in tables], SMOKE)


def markdown(
    comparison: Comparison, strict: bool = False, contrasts: Sequence[Contrast] = ()
) -> str:
    """GitHub's Markdown, in one block.

    Args:
        comparison: the table.
        strict: hide measured numbers with tags.
        contrasts: of its rows; a second table.
    """
    tables = tables_of(comparison, strict, contrasts)
    return between_banners(comparison, [as_markdown(table) for table in tables], f"**{SMOKE}**")


def frame(comparison: Comparison, strict: bool = False) -> pd.DataFrame:
    """Long form, one line per cell.

    ``mean``, ``ci95`` and ``difference`` are missing where the text shows no number; ``n_examples``
    is the least over the runs.

    Args:
        comparison: the table.
        strict: leave out measured numbers with tags.
    """
    import pandas as pd  # slow to import, and the other formats do without

    lines = [
        _line(comparison, row, row.cells[column], strict)
        for row in comparison.rows
        for column in comparison.columns
        if column in row.cells
    ]
    table = pd.DataFrame(lines, columns=list(LINE))
    return table.astype(LINE)


def csv(comparison: Comparison, strict: bool = False) -> str:
    """The frame as CSV; a smoke comparison is marked in the column ``scale``.

    Args:
        comparison: the table.
        strict: leave out measured numbers with tags.
    """
    return frame(comparison, strict).to_csv(index=False, lineterminator="\n")


def _line(comparison: Comparison, row: Row, cell: Cell, strict: bool) -> dict[str, object]:
    measured = None if _hidden(cell, strict) else cell_interval(cell)
    published = cell.published
    return {
        "key": row.key,
        "label": row.label,
        "arm": row.arm,
        "chosen": row.chosen,
        "column": cell.column,
        "unit": cell.unit,
        "mean": measured.mean if measured else None,
        "ci95": measured.half if measured else None,
        "n_runs": len(cell.samples),
        "planned": _planned(cell),
        "n_examples": min((sample.n for sample in cell.samples), default=None),
        "published": published.value if published else None,
        "published_printed": published.printed if published else "",
        "published_ci": published.ci if published else "",
        "difference": difference(cell) if measured else None,
        "tags": "; ".join(cell.tags),
        "mismatch": "; ".join(cell.mismatch),
        "absent": reasons(cell),
        "scale": comparison.scale,
        "flags": "; ".join(row.flags),
    }


@dataclass(frozen=True)
class Text:
    """A cell of any format: plain text, and the letters of its footnotes."""

    text: str
    marks: str = ""


@dataclass(frozen=True)
class Group:
    """Columns that stay side by side.

    Attributes:
        heading: of the first column, or of all.
        names: of each column below the heading; one column has the heading alone.
        rows: per row of the table, a text per column.
        words: not numbers; aligned to the left everywhere.
    """

    heading: str
    names: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    words: bool = False

    @property
    def header(self) -> tuple[str, ...]:
        """One text per column, for formats with a single line of them."""
        return (self.heading, *self.names[1:])


@dataclass(frozen=True)
class Table:
    """A table of any format: ``stub`` is repeated in every block of ``groups``."""

    title: str
    legend: str
    label: str
    stub: Group
    groups: tuple[Group, ...]
    footnotes: Mapping[str, str]
    notes: tuple[str, ...] = ()


def tables_of(comparison: Comparison, strict: bool, contrasts: Sequence[Contrast]) -> list[Table]:
    """The comparison's table, and one per row that others are contrasted with."""
    others = dict.fromkeys(contrast.against for contrast in contrasts)
    return [
        _main_table(comparison, strict),
        *(
            _contrast_table(comparison, strict, [c for c in contrasts if c.against == key], key)
            for key in others
        ),
    ]


def _main_table(comparison: Comparison, strict: bool) -> Table:
    rows = comparison.rows
    cells = [[row.cells.get(column, Cell(column)) for row in rows] for column in comparison.columns]
    marks = footnotes(
        remark
        for line in zip(*cells, strict=True)
        for cell in line
        for remark in (*_remarks(cell, strict), *_published_remarks(cell))
    )
    groups = tuple(_metric(column, strict, marks) for column in cells if column)
    if any(row.chosen for row in rows):
        selected = Group(
            "selected", ("",), tuple((Text(row.chosen or "-"),) for row in rows), words=True
        )
        groups = (selected, *groups)
    compared = any(len(group.names) > 1 for group in groups)
    labels = tuple((Text(f"{row.label} !" if row.flags else row.label),) for row in rows)
    return Table(
        comparison.title,
        f"{MEASURED}; pub.: as printed; diff: measured minus published" if compared else MEASURED,
        comparison.name,
        Group("row", ("",), labels, words=True),
        groups,
        {letter: text for text, letter in marks.items()},
        (
            *(f"warning: {row.label}: {flag}" for row in rows for flag in alike(row.flags)),
            *(f"{row.label}: {row.note}" for row in rows if row.note),
            *comparison.notes,
        ),
    )


def alike(flags: Sequence[str]) -> list[str]:
    """Of warnings that differ in numbers only the first: seeds and splits mostly say the same."""
    groups: dict[str, list[str]] = {}
    for flag in flags:
        groups.setdefault(re.sub(r"(?<!\w)\d[\d.]*", "0", flag), []).append(flag)
    more = ((first, len(rest)) for first, *rest in groups.values())
    return [f"{first} (and {count} more like it)" if count else first for first, count in more]


def _metric(cells: Sequence[Cell], strict: bool, marks: Mapping[str, str]) -> Group:
    """A metric's columns; measured numbers alone if the paper prints none."""
    measured = [
        Text(measured_text(cell, strict), letters(_remarks(cell, strict), marks)) for cell in cells
    ]
    heading = f"{cells[0].column} (s)" if cells[0].unit == "s" else cells[0].column
    if not any(cell.published for cell in cells):
        return Group(heading, ("measured",), tuple((text,) for text in measured))
    rows = tuple(
        (text, _published(cell, marks), Text(_signed_difference(cell, strict)))
        for cell, text in zip(cells, measured, strict=True)
    )
    return Group(heading, ("measured", "pub.", "diff"), rows)


def measured_text(cell: Cell, strict: bool) -> str:
    """A measured number, or why there is none."""
    mean = cell_interval(cell)
    if mean is None:
        return reasons(cell) or "-"
    if _hidden(cell, strict):
        return HIDDEN
    planned = _planned(cell)
    runs = str(mean.n) if mean.n == planned else f"{mean.n}/{planned}"
    return interval_text(mean, decimals_of(cell), runs)


def _published(cell: Cell, marks: Mapping[str, str]) -> Text:
    printed = cell.published.printed if cell.published else "-"
    return Text(printed, letters(_published_remarks(cell), marks))


def _signed_difference(cell: Cell, strict: bool) -> str:
    value = None if _hidden(cell, strict) else difference(cell)
    return "-" if value is None else f"{value:+z.{decimals_of(cell)}f}"


def interval_text(interval: Interval, decimals: int, runs: str, sign: str = "") -> str:
    """``85.34 ±0.41 (3)``; with ``sign="+"`` as a difference."""
    half = "" if interval.half is None else f" ±{interval.half:.{decimals}f}"
    return f"{interval.mean:{sign}z.{decimals}f}{half} ({runs})"


def decimals_of(cell: Cell) -> int:
    """Decimals of a cell's numbers; see the top of the file."""
    if cell.unit == "percent":
        return 2 if all(sample.n >= FINE for sample in cell.samples) else 1
    if cell.unit == "radius":
        return 4
    if cell.unit == "correlation":
        return 3
    size = max(abs(sample.value) for sample in cell.samples)
    behind = 2 if cell.unit == "s" else 3  # digits behind the first
    digits = behind - math.floor(math.log10(size)) if size > 0 else behind
    return min(6, max(0, digits))


def _hidden(cell: Cell, strict: bool) -> bool:
    return strict and bool(cell.tags)


def _planned(cell: Cell) -> int:
    return len(cell.samples) + sum(cell.absent.values())


def reasons(cell: Cell) -> str:
    """``failed``, ``running 2``, ``failed, pending 2``; a single run's reason goes without 1."""
    return ", ".join(
        reason if count == 1 else f"{reason} {count}"
        for reason, count in cell.absent.items()
        if count
    )


def _remarks(cell: Cell, strict: bool) -> list[str]:
    """Footnotes of a measured number."""
    remarks = ["; ".join(cell.tags)] if cell.samples and cell.tags else []
    if not cell.samples or _hidden(cell, strict):
        return remarks
    n, planned = len(cell.samples), _planned(cell)
    if n < planned:
        remarks.append(f"{n} of {planned} planned runs; the others: {reasons(cell)}")
    if cell.mismatch:
        remarks.append(f"not compared, the attack differs: {'; '.join(cell.mismatch)}")
    return remarks


def _published_remarks(cell: Cell) -> list[str]:
    published = cell.published
    return [f"published: {published.note}"] if published and published.note else []


def footnotes(remarks: Iterable[str]) -> dict[str, str]:
    """A letter for each distinct text, in the order of the first use."""
    return {text: _letter(number) for number, text in enumerate(dict.fromkeys(remarks))}


def _letter(number: int) -> str:
    """``a`` to ``z``, then ``aa``."""
    more, rest = divmod(number, 26)
    return (_letter(more - 1) if more else "") + chr(ord("a") + rest)


def letters(remarks: Iterable[str], marks: Mapping[str, str]) -> str:
    """The letters of some footnotes: ``a,c``."""
    return ",".join(marks[remark] for remark in remarks)


def _contrast_table(
    comparison: Comparison, strict: bool, contrasts: Sequence[Contrast], against: str
) -> Table:
    rows = {row.key: row for row in comparison.rows}
    pairs = [(rows[c.key], rows[against], c) for c in contrasts]
    remarks = [pair_remarks(row, base, contrast.column) for row, base, contrast in pairs]
    marks = footnotes(remark for found in remarks for remark in found)
    stub = tuple(
        (Text(row.label), Text(contrast.column, letters(found, marks)))
        for (row, _, contrast), found in zip(pairs, remarks, strict=True)
    )
    by_seed = tuple((_contrast(*pair, pair[2].by_seed, strict),) for pair in pairs)
    by_example = tuple((_contrast(*pair, pair[2].by_example, strict),) for pair in pairs)
    return Table(
        f"{comparison.title}: difference from {rows[against].label}",
        PAIRED,
        f"{comparison.name}:{against}",
        Group("row", ("row", "column"), stub, words=True),
        (Group("by seed", ("",), by_seed), Group("by example", ("",), by_example)),
        {letter: text for text, letter in marks.items()},
    )


def _contrast(
    row: Row, base: Row, contrast: Contrast, interval: Interval | None, strict: bool
) -> Text:
    ours, theirs = row.cells[contrast.column], base.cells[contrast.column]
    if _hidden(ours, strict) or _hidden(theirs, strict):
        return Text(HIDDEN)
    if interval is None:
        return Text("-")
    decimals = min(decimals_of(ours), decimals_of(theirs))
    apart = interval.half is not None and abs(interval.mean) > interval.half
    return Text(interval_text(interval, decimals, str(interval.n), "+") + (" *" if apart else ""))


def pair_remarks(row: Row, base: Row, column: str) -> list[str]:
    """Tags of both cells, with the row's label unless they are the same; why there is no number."""
    ours, theirs = row.cells[column], base.cells[column]
    if ours.tags == theirs.tags:
        remarks = ["; ".join(ours.tags)] if ours.tags else []
    else:
        remarks = [
            f"{each.label}: {'; '.join(each.cells[column].tags)}"
            for each in (row, base)
            if each.cells[column].tags
        ]
    if set(ours.mismatch) != set(theirs.mismatch):
        remarks.append("not compared, the two rows' attacks differ")
    elif not {s.axis for s in ours.samples} & {s.axis for s in theirs.samples}:
        remarks.append("no repetition in common")
    return remarks


def between_banners(comparison: Comparison, parts: Sequence[str], banner: str) -> str:
    """A whole text; a smoke comparison has the banner first and last."""
    around = [banner] if comparison.scale == "smoke" else []
    return "\n\n".join([*around, *parts, *around]) + "\n"


def in_blocks(table: Table, width: int) -> list[list[Group]]:
    """Groups that fit beside the stub in so many characters; at least one in each block."""
    left = width - _width(table.stub)
    blocks: list[list[Group]] = [[]]
    room = left
    for group in table.groups:
        need = _width(group) + 2 * GAP
        if blocks[-1] and need > room:
            blocks.append([])
            room = left
        blocks[-1].append(group)
        room -= need
    return blocks


def _width(group: Group) -> int:
    columns = zip(group.header, *_padded(group), strict=True)
    return sum(max(map(len, column)) + GAP for column in columns) - GAP


def _padded(group: Group) -> list[tuple[str, ...]]:
    """Plain texts; the decimal points of a column of numbers stand below each other."""
    rows = [tuple(f"{each.text} {each.marks}".rstrip() for each in row) for row in group.rows]
    if group.words:
        return rows
    return list(zip(*map(_on_points, zip(*rows, strict=True)), strict=True))


def _on_points(column: Sequence[str]) -> list[str]:
    points = [len(found[0]) if (found := NUMBER.match(text)) else 0 for text in column]
    return [
        " " * (max(points) - point) + text if point else text
        for text, point in zip(column, points, strict=True)
    ]


def as_terminal(table: Table, width: int) -> str:
    """Aligned plain text, in blocks of so many characters."""
    blocks: list[str] = []
    between = Group("", ("",), ((Text(""),),) * len(table.stub.rows), words=True)
    for block in in_blocks(table, width):
        groups = [table.stub, *(each for group in block for each in (between, group))]
        header = [name for group in groups for name in group.header]
        rows = across(map(_padded, groups))
        blocks.append(summary_table("" if blocks else table.title, rows, header, left=True))
    notes = [f"{letter}: {text}" for letter, text in table.footnotes.items()]
    return "\n\n".join([*blocks, "\n".join([table.legend, *notes, *table.notes])])


def across(parts: Iterable[Sequence[tuple[T, ...]]]) -> list[tuple[T, ...]]:
    """Rows of a whole table from the rows of its groups."""
    return [tuple(chain.from_iterable(row)) for row in zip(*parts, strict=True)]


def as_markdown(table: Table) -> str:
    """GitHub's Markdown, in one block."""
    groups = [table.stub, *table.groups]
    header = [markdown_text(name) for group in groups for name in group.header]
    rule = ["---" if group.words else "---:" for group in groups for _ in group.names]
    rows = [map(_markdown_cell, row) for row in across(group.rows for group in groups)]
    lines = [f"| {' | '.join(line)} |" for line in (header, rule, *rows)]
    notes = [
        f"<sup>{letter}</sup> {markdown_text(text)}" for letter, text in table.footnotes.items()
    ]
    notes += [markdown_text(note) for note in table.notes]
    below = [f"- {note}" for note in (markdown_text(table.legend), *notes)]
    return "\n".join([f"### {markdown_text(table.title)}", "", *lines, "", *below])


def _markdown_cell(cell: Text) -> str:
    mark = f" <sup>{cell.marks}</sup>" if cell.marks else ""
    return markdown_text(cell.text) + mark


def markdown_text(text: str) -> str:
    """Escaped; one line."""
    return re.sub(r"([\\`*|<\[\]~])", r"\\\1", " ".join(text.split()))
