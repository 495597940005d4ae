"""How much the loss of an image rises under attack, by its clean loss (MWPB, Theorem 1)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablation.numerics.ranks import pair_share, rank_correlation
from ablation.reports.comparison import Cell, Comparison
from ablation.reports.curves import (
    DECADES,
    LINE_HEIGHT,
    SPLITS,
    band_key,
    grid_for,
    panels_height,
)
from ablation.reports.plots import row_titles
from ablation.reports.style import COLOURS, STEPS, Array, add_note, new_figure
from ablation.runs.columns import recorded_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10
"""Of images by their clean loss, each with as many as the others."""

STYLES: Mapping[str, tuple[str, str]] = {
    "train": (COLOURS[1], "--"),
    "val": (COLOURS[2], ":"),
    "test": (COLOURS[0], "-"),
}
"""Colour and line by split."""

NOTE = (
    "r: Spearman's correlation of clean loss and rise; %: pairs of images whose higher clean loss "
    "rises more"
)


@dataclass(frozen=True)
class Rises:
    """A row's rises of the loss on the images of one split, averaged over its runs.

    Attributes:
        row: key of the row.
        split: ``train``, ``val`` or ``test``.
        bins: [4, B], by rising clean loss: mean clean loss of a bin, mean rise, its quartiles.
        correlation: Spearman's.
        share: of the pairs that the clean loss tells apart, those whose higher one rises more.
    """

    row: str
    split: str
    bins: Array
    correlation: float
    share: float


def rises(comparison: Comparison, strict: bool = False) -> list[Rises]:
    """Read the rises of all rows from their runs' records.

    Args:
        comparison: the table.
        strict: leave out measured numbers with tags.
    """
    found = []
    for row in comparison.rows:
        for column, cell in row.cells.items():
            if cell.params.get("measure") != "loss_rise" or (strict and cell.tags):
                continue
            runs = _runs(column, cell)
            if runs:
                least = min(min(BINS, rise.size) for _, rise in runs)
                bins = np.mean([_binned(loss, rise, least) for loss, rise in runs], axis=0)
                correlation, share = (
                    float(np.mean([relation(loss, rise) for loss, rise in runs]))
                    for relation in (rank_correlation, pair_share)
                )
                split = str(cell.params["split"])
                found.append(Rises(row.key, split, bins, correlation, share))
    return found


def figure(comparison: Comparison, found: Sequence[Rises]) -> Figure | None:
    """Mean and middle half of the rise over the clean loss, a panel per row, a colour per split.

    Both in nats. ``None`` without rises.

    Args:
        comparison: the table.
        found: what ``rises`` read.
    """
    if not found:
        return None
    titles = dict(zip((row.key for row in comparison.rows), row_titles(comparison), strict=True))
    panels = {
        key: [each for split in STYLES for each in found if (each.row, each.split) == (key, split)]
        for key in dict.fromkeys(each.row for each in found)
    }
    labels = [titles[key] for key in panels]
    rows, columns, width = grid_for(len(panels))
    more = rows * (0.15 + LINE_HEIGHT * max(map(len, panels.values())))
    splits = [split for split in STYLES if any(each.split == split for each in found)]
    with new_figure(comparison, panels_height(labels, NOTE) + more) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, label, mine in zip(grid, labels, panels.values(), strict=False):
            title = [textwrap.fill(label, width - 2), *map(_told, mine)]
            axes.set_title("\n".join(title), fontsize=7, pad=2, parse_math=False)
            _draw(axes, mine, 6 - columns)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("clean loss", fontsize=8)
        figure.supylabel("rise of the loss under attack (nats)", fontsize=9)
        entries = [(*STYLES[split], f"{SPLITS[split]} images") for split in splits]
        band_key(figure, entries, title="mean and middle half of the images, by clean loss")
        add_note(figure, NOTE)
    return figure


def _runs(column: str, cell: Cell) -> list[tuple[Array, Array]]:
    """Clean losses and rises of each run, [N] both; without runs whose record lacks them."""
    every = [_read(file, column) for file in cell.example_files]
    return [each for each in every if each is not None]


def _read(path: Path, column: str) -> tuple[Array, Array] | None:
    import pyarrow.parquet as parquet  # most reports do without

    file = parquet.ParquetFile(path)
    metric = recorded_metric(column, file.schema_arrow.names)
    if metric is None:
        return None
    table = file.read(columns=[f"{metric}_clean_loss", metric]).to_pandas().dropna()
    return table.iloc[:, 0].to_numpy(), table.iloc[:, 1].to_numpy()


def _binned(loss: Array, rise: Array, count: int) -> Array:
    """``Rises.bins`` of one run."""
    parts = np.array_split(np.argsort(loss, kind="stable"), count)
    return np.array(
        [
            [loss[part].mean(), rise[part].mean(), *np.quantile(rise[part], (0.25, 0.75))]
            for part in parts
        ]
    ).T


def _told(each: Rises) -> str:
    return f"{each.split} r {each.correlation:.2f}, {100 * each.share:.0f}%".replace("-", "\u2212")


def _draw(axes: Axes, mine: Sequence[Rises], ticks: int) -> None:
    """The rises of one row; logarithmic in the clean loss where that spans decades.

    Args:
        axes: of the row.
        mine: its rises.
        ticks: at most so many powers of ten.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    axes.axhline(0, color="0.6", linewidth=0.7, zorder=1)
    for each in mine:
        colour, line = STYLES[each.split]
        loss, mean, low, high = each.bins
        axes.fill_between(loss, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(
            loss, mean, color=colour, linestyle=line, linewidth=1.1, marker="o", markersize=2.5,
            markeredgewidth=0,
        )  # fmt: skip
    losses = np.concatenate([each.bins[0] for each in mine])
    if losses.min() > 0 and losses.max() > DECADES * losses.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=ticks))
        axes.xaxis.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
    axes.tick_params(labelsize=7)
