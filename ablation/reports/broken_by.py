"""Which part of AutoAttack broke what: a stacked bar per row, from the lines per example."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation.reports.comparison import Cell, Comparison
from ablation.reports.plots import row_titles
from ablation.reports.style import (
    LEGEND_LINE,
    NOTE_LINE,
    add_note,
    new_figure,
    note_lines,
    paper_name,
)
from ablation.runs.columns import Column, verdict_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROBUST, CLEAN = "robust", "clean"
"""What is neither broken nor misclassified, and what is misclassified as it is."""

NAMES: Mapping[str, str] = {
    ROBUST: "robust",
    "square": "Square",
    "fab_t": "FAB-T",
    "apgd_t": "APGD-T",
    "apgd_dlr": "APGD-DLR",
    "apgd_ce": "APGD-CE",
    CLEAN: "misclassified",
}
"""Parts of a bar from its left end: the last part of AutoAttack beside what it left robust."""

SHADES: Mapping[str, float] = {
    "square": 0.28, "fab_t": 0.52, "apgd_t": 0.76, "apgd_dlr": 0.76, "apgd_ce": 1.0
}  # fmt: skip
"""Places on the colour map viridis, whose lightness rises evenly: APGD-DLR stands in for APGD-T."""

FIXED: Mapping[str, str] = {ROBUST: "#2B0B3F", CLEAN: "#F2F2F2"}

MOST = 24
"""Bars of a figure; attacks whose bars come on top are named instead."""

BAR_LINE, LABEL_WIDTH = 0.125, 22
"""Inches of a line of a bar's label, and characters that fit in it."""

WRITTEN = 8.0
"""Percent of a bar whose part has room for its number."""


@dataclass(frozen=True)
class Shares:
    """What became of the images that one attack was run on, on the networks of one row.

    Attributes:
        title: of the row.
        column: of the attack.
        parts: percent of the images by part, averaged over runs; they add up to 100.
        runs: how many.
        tagged: whether the number departs from the table's recipe.
    """

    title: str
    column: str
    parts: Mapping[str, float]
    runs: int
    tagged: bool


def shares(comparison: Comparison, strict: bool = False) -> list[Shares]:
    """Count what each part of an ensemble of attacks broke, of each row whose runs recorded it.

    Args:
        comparison: the table.
        strict: leave out cells with tags.
    """
    found = []
    for column in comparison.columns:
        for title, row in zip(row_titles(comparison), comparison.rows, strict=True):
            cell = row.cells.get(column)
            if cell is None or (strict and cell.tags):
                continue
            runs = _runs(cell)
            if runs:
                names = {name for run in runs for name in run}
                parts = {name: sum(run.get(name, 0.0) for run in runs) / len(runs)
                         for name in sorted(names, key=_place)}  # fmt: skip
                off = bool(cell.tags or cell.mismatch)
                found.append(Shares(title, column, parts, len(runs), off))
    return found


def _runs(cell: Cell) -> list[dict[str, float]]:
    """Percent by part of each run that has a line per example."""
    return [parts for file in cell.example_files if (parts := _read(file, cell.column))]


def _read(file: Path, column: str) -> dict[str, float]:
    """Percent by part; empty where the attack is no ensemble, or the record older than its parts.

    An image that is neither robust nor broken by a part was misclassified.
    """
    import pyarrow.parquet as parquet  # most reports do without

    table = parquet.ParquetFile(file)
    for metric in Column.parse(column).metrics:
        robust, by = verdict_column(metric), f"{metric}_broken_by"
        if {robust, by} <= set(table.schema_arrow.names):
            lines = table.read(columns=[robust, by]).to_pydict()
            counts = Counter(
                ROBUST if kept else part or CLEAN
                for kept, part in zip(lines[robust], lines[by], strict=True)
                if kept is not None
            )
            return {part: 100 * count / counts.total() for part, count in counts.items()}
    return {}


def _place(part: str) -> tuple[float, str]:
    """Parts in the order of ``NAMES``; those of other ensembles beside the misclassified."""
    order = list(NAMES)
    return (order.index(part) if part in NAMES else order.index(CLEAN) - 0.5, part)


def broken_by(comparison: Comparison, found: Sequence[Shares]) -> Figure | None:
    """Draw a panel per attack and in it a bar per row; ``None`` without shares.

    Shades go from dark to light along a bar, so that they are told apart in grey, too.
    """
    if not found:
        return None
    panels, left_out = _panels(found)
    parts = sorted({part for bars in panels for bar in bars for part in bar.parts}, key=_place)
    note = _note(comparison, panels, left_out)
    lines = [[_label(bar) for bar in bars] for bars in panels]
    heights = [sum(map(_height, texts)) for texts in lines]
    legend_lines = -(-len(parts) // 3)
    height = sum(heights) + 0.25 * len(panels) + 0.55 + LEGEND_LINE * legend_lines
    with new_figure(comparison, height + NOTE_LINE * len(note_lines(note))) as figure:
        grid = figure.subplots(
            len(panels), 1, squeeze=False, sharex=True, height_ratios=heights
        ).ravel()
        for axes, bars, labels in zip(grid, panels, lines, strict=True):
            _draw(axes, bars, labels, _colours(parts))
            axes.set_title(paper_name(bars[0].column), fontsize=8.5, pad=3)
        grid[-1].set_xlabel("images (%)")
        figure.legend(handles=_handles(parts), loc="outside upper center", ncols=3)
        add_note(figure, note)
    return figure


def _panels(found: Sequence[Shares]) -> tuple[list[list[Shares]], list[str]]:
    """Bars by attack, that of most rows first, while there is room; and the other attacks."""
    groups: dict[str, list[Shares]] = {}
    for each in found:
        groups.setdefault(each.column, []).append(each)
    panels: list[list[Shares]] = []
    left_out = []
    for bars in sorted(groups.values(), key=lambda bars: -len(bars)):
        if panels and sum(map(len, panels)) + len(bars) > MOST:
            left_out.append(paper_name(bars[0].column))
        else:
            panels.append(bars)
    return panels, left_out


def _note(comparison: Comparison, panels: Sequence[Sequence[Shares]], left_out: list[str]) -> str:
    """What the bars do not say."""
    columns = {bars[0].column for bars in panels}
    collapsed = [
        title
        for title, row in zip(row_titles(comparison), comparison.rows, strict=True)
        if any("collapsed" in row.cells[name].absent for name in columns & row.cells.keys())
    ]
    texts = ["*: off the recipe"] if any(bar.tagged for bars in panels for bar in bars) else []
    texts += [f"at chance level, left out: {', '.join(collapsed)}"] if collapsed else []
    texts += [f"not drawn: {', '.join(left_out)}"] if left_out else []
    return "; ".join(texts)


def _label(bar: Shares) -> str:
    star = "*" if bar.tagged else ""
    return textwrap.fill(f"{bar.title}{star}", LABEL_WIDTH) or " "


def _height(label: str) -> float:
    """Inches of a bar with its label."""
    return 0.1 + BAR_LINE * (1 + label.count("\n"))


def _colours(parts: Sequence[str]) -> dict[str, Any]:
    """The same colour for a part in every figure, lighter from the robust to the misclassified."""
    from matplotlib import colormaps

    return {
        part: colormaps["viridis"](SHADES[part]) if part in SHADES else FIXED.get(part, "0.8")
        for part in parts
    }


def _draw(
    axes: Axes, bars: Sequence[Shares], labels: Sequence[str], colours: Mapping[str, Any]
) -> None:
    """Stacked bars, the first on top, and the numbers that have room."""
    heights = np.array([_height(label) for label in labels])
    places = heights.cumsum() - heights / 2
    left = np.zeros(len(bars))
    for part, colour in colours.items():
        width = np.array([bar.parts.get(part, 0.0) for bar in bars])
        axes.barh(
            places, width, 0.78 * _height(""), left=left, color=colour, edgecolor="0.15",
            linewidth=0.4, hatch="////" if part == CLEAN else None,
        )  # fmt: skip
        for place, start, value in zip(places, left, width, strict=True):
            if value >= WRITTEN:
                axes.text(
                    start + value / 2, place, f"{value:.1f}", ha="center", va="center",
                    fontsize=6.5, color="white" if _luminance(colour) < 0.4 else "black",
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        left += width
    axes.set_yticks(places, labels, fontsize=7, parse_math=False)
    axes.set_ylim(heights.sum(), 0)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)


def _luminance(colour: Any) -> float:
    """Relative luminance of a colour, 0 to 1 (ITU-R BT.709)."""
    from matplotlib.colors import to_rgb

    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def _handles(parts: Sequence[str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(
            facecolor=colour, edgecolor="0.15", linewidth=0.4, label=NAMES.get(part, part),
            hatch="////" if part == CLEAN else None,
        )
        for part, colour in _colours(parts).items()
    ]  # fmt: skip
