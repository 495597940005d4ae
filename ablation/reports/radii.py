"""Histograms of the radii that training used, a panel per row (MWPB, Figures 2 to 4)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablation.reports.comparison import Comparison
from ablation.reports.curves import LINE_HEIGHT, PANEL_HEIGHT
from ablation.reports.plots import row_titles
from ablation.reports.style import COLOURS, Array, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = "mean_radius"
"""The runs that have it have a file of radii, a line per image."""

BINS = 50

PRINTED = (0.015, 0.06)
"""Range of the paper's figures, where all radii lie in it: in pixels in [0, 1]."""

BULK = (0.005, 0.995)
"""Quantiles that bound the axis where the few images beyond would take more than half of it."""


@dataclass(frozen=True)
class Radii:
    """The radii of a row.

    Attributes:
        title: of the row.
        eps: the runs' own radius.
        runs: per run the radius of each image [N] in the epoch whose weights were kept.
    """

    title: str
    eps: float
    runs: tuple[Array, ...]

    @property
    def pooled(self) -> Array:
        """Those of all runs."""
        return np.concatenate(self.runs)

    def told(self, edges: Array) -> list[str]:
        """Mean, least and largest of all runs; the share below eps; that beyond the edges."""
        every = self.pooled
        below = 100 * np.mean(every < every.dtype.type(self.eps))
        runs = f", {len(self.runs)} runs" if len(self.runs) > 1 else ""
        beyond = 100 * np.mean((every < edges[0]) | (every > edges[-1]))
        return [
            f"mean {every.mean():.4f} ({every.min():.4f} to {every.max():.4f})",
            f"{below:.1f}% below {self.eps:.4f}{runs}",
            *([f"{beyond:.2g}% beyond the axis"] if beyond else []),
        ]


def radii_of(comparison: Comparison, strict: bool = False) -> list[Radii]:
    """Read the radii of each row whose runs recorded them in training.

    Args:
        comparison: the table.
        strict: leave out rows whose numbers have tags.
    """
    found = []
    for title, row in zip(row_titles(comparison), comparison.rows, strict=True):
        cell = row.cells.get(COLUMN)
        if cell is None or (strict and cell.tags):
            continue
        runs = tuple(_read(file) for file in cell.example_files)
        if runs:
            found.append(Radii(title, float(cell.params["eps"]), runs))
    return found


def _read(file: Path) -> Array:
    import pyarrow.parquet as parquet  # most reports do without

    radii: Array = parquet.read_table(file, columns=["radius"]).column("radius").to_numpy()
    return radii


def radius_histogram(comparison: Comparison, radii: Sequence[Radii]) -> Figure | None:
    """Draw images over radius, the same bins in every panel; ``None`` without radii.

    Of several runs the mean number of images, and each run's as a line.
    """
    if not radii:
        return None
    from matplotlib.lines import Line2D

    columns, width = (1, 60) if len(radii) == 1 else (2, 27)
    rows = -(-len(radii) // columns)
    edges = _edges([each.pooled for each in radii])
    titles = [[*textwrap.wrap(each.title, width), *each.told(edges)] for each in radii]
    lines = [max(map(len, titles[at : at + columns])) for at in range(0, len(titles), columns)]
    height = 0.9 + max(1.5, sum(PANEL_HEIGHT + LINE_HEIGHT * count for count in lines))
    with new_figure(comparison, height) as figure:
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axes, each, title in zip(grid, radii, titles, strict=False):
            _draw(axes, each, edges)
            axes.set_title("\n".join(title), fontsize=6.5, pad=2, parse_math=False)
            axes.yaxis.get_major_locator().set_params(nbins=4)
        for axes in grid[len(radii) :]:
            axes.remove()
        for axes in grid[max(0, len(radii) - columns) : len(radii)]:
            axes.tick_params(labelbottom=True)
        line = Line2D([], [], color=COLOURS[1], linestyle="--", linewidth=0.9, label="eps")
        figure.legend(handles=[line], loc="outside upper center")
        figure.supylabel("training images", fontsize=9)
        figure.supxlabel("radius in the epoch of the weights (pixels in [0, 1])", fontsize=9)
    return figure


def _edges(every: Sequence[Array]) -> Array:
    """Edges of the bins: over all radii or their bulk, or the paper's where those hold them."""
    low = float(min(each.min() for each in every))
    high = float(max(each.max() for each in every))
    bulk = np.array([np.quantile(each, BULK) for each in every])
    inner = float(bulk[:, 0].min()), float(bulk[:, 1].max())
    if 0 < inner[1] - inner[0] < (high - low) / 2:
        low, high = inner
    if PRINTED[0] <= low and high <= PRINTED[1]:
        low, high = PRINTED
    elif low == high:
        low, high = 0.9 * low, 1.1 * high or 1.0
    return np.linspace(low, high, BINS + 1)


def _draw(axes: Axes, radii: Radii, edges: Array) -> None:
    # In double, like the edges: the largest radius lies in the last bin.
    counts = [np.histogram(run.astype(np.float64), edges)[0] for run in radii.runs]
    axes.stairs(np.mean(counts, axis=0), edges, fill=True, color=COLOURS[0], alpha=0.6)
    if len(counts) > 1:
        for count in counts:
            axes.stairs(count, edges, color="0.25", linewidth=0.4)
    axes.axvline(radii.eps, color=COLOURS[1], linestyle="--", linewidth=0.9)
