"""Figures over epochs, a panel per row of a table, from what its runs wrote after each epoch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation.reports.comparison import Comparison
from ablation.reports.style import (
    COLOURS,
    NORMS,
    NOTE_LINE,
    STEPS,
    Array,
    add_note,
    fences,
    new_figure,
    note_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = ((1, 1, 40), (8, 2, 27), (math.inf, 3, 17))
"""Up to so many panels: how many stand side by side, and characters per line of their titles."""

PANEL_HEIGHT, LINE_HEIGHT = 0.85, 0.13
"""Inches of a row of panels, and of a line of its titles."""

FEW = 3
"""Curves with up to so many points get markers: a line through one point cannot be seen."""

TAIL, REACH = 0.05, 1.0
"""Of the axis' fences: a curve's steep start is seen, a single value far off is not."""

DECADES = 30
"""Margins of which the large are so many times the median are drawn on a logarithmic axis."""

SPLITS = {"val": "validation", "train": "training", "test": "test"}


@dataclass(frozen=True)
class History:
    """What the runs of a row wrote down.

    Attributes:
        label: of the row.
        runs: of each run above chance level the lines of ``metrics.jsonl``, one per epoch, as plain
            data.
        collapsed: how many runs are at chance level. Their gradients are near 0 and their margins
            have no meaning: they are named, not drawn.
    """

    label: str
    runs: tuple[Sequence[Mapping[str, Any]], ...]
    collapsed: int = 0


def margin_quantiles(comparison: Comparison, histories: Sequence[History]) -> Figure | None:
    """Median and middle half of the validation images' Taylor margins over epochs, by row.

    Quantiles are averaged over the runs of a row. ``None`` if no run has them.

    Args:
        comparison: the table.
        histories: of its rows; those without the numbers get no panel.
    """
    names = ("margin_q50", "margin_q25", "margin_q75")
    panels = [
        (history.label, [_Band(epochs, 255 * found, COLOURS[0], "-")])
        for history in histories
        for epochs, found in [_curve(history, names)]
        if len(epochs)
    ]
    if not panels:
        return None
    norms = _distinct(histories, "margin_norm", NORMS)
    images = _distinct(histories, "margin_split", SPLITS)
    note = _left_out(histories)
    with new_figure(comparison, panels_height([label for label, _ in panels], note)) as figure:
        _draw_panels(figure, panels, f"{norms} margin of {images} images (1/255)")
        band_key(figure, [(COLOURS[0], "-", "median and middle half of the images")])
        add_note(figure, note)
    return figure


def effective_margins(comparison: Comparison, histories: Sequence[History]) -> Figure | None:
    """Effective margins of training and test images over epochs, by row (EMR, Figures 1b-d, 2).

    Means and standard deviations over correctly classified images, averaged over the runs of a
    row. ``None`` if no run has them.

    Args:
        comparison: the table.
        histories: of its rows; those without the numbers get no panel.
    """
    styles = {"train": (COLOURS[1], "--"), "test": (COLOURS[0], "-")}
    panels = []
    for history in histories:
        bands = []
        for split, style in styles.items():
            epochs, found = _curve(history, (f"margin_{split}", f"margin_{split}_std"))
            if len(epochs):
                mean, std = found
                bands.append(_Band(epochs, np.stack([mean, mean - std, mean + std]), *style))
        if bands:
            panels.append((history.label, bands))
    if not panels:
        return None
    note = _left_out(histories)
    with new_figure(comparison, panels_height([label for label, _ in panels], note)) as figure:
        _draw_panels(figure, panels, "effective margin ($L_2$, pixels in [0, 1])")
        entries = [(*style, f"{SPLITS[split]} images") for split, style in styles.items()]
        band_key(figure, entries, title="mean ± standard deviation, correct images only")
        add_note(figure, note)
    return figure


@dataclass(frozen=True)
class _Band:
    """A line with the area around it: ``epochs`` [E], ``values`` [3, E] (middle, low, high)."""

    epochs: Array
    values: Array
    colour: str
    line: str


def _curve(history: History, names: Sequence[str]) -> tuple[Array, Array]:
    """Epochs [E], from 1, and the means over runs [len(names), E] of what was measured then."""
    by_epoch: dict[int, list[list[float]]] = {}
    for row in (row for run in history.runs for row in run):
        values = [row.get(name) for name in names]
        numbers = [float(value) for value in values if value is not None]
        if len(numbers) == len(names):
            by_epoch.setdefault(int(row["epoch"]) + 1, []).append(numbers)
    epochs = sorted(by_epoch)
    means = [np.mean(by_epoch[epoch], axis=0) for epoch in epochs]
    return np.array(epochs, dtype=np.float64), np.array(means).reshape(-1, len(names)).T


def _distinct(histories: Sequence[History], key: str, names: Mapping[str, str]) -> str:
    """What all rows say of a key, as papers write it."""
    rows = (row for history in histories for run in history.runs for row in run)
    return "/".join(names[value] for value in dict.fromkeys(r[key] for r in rows if key in r))


def grid_for(count: int) -> tuple[int, int, int]:
    """Rows and columns for so many panels, and characters per line of a title."""
    columns, width = next((c, w) for most, c, w in PANELS if count <= most)
    return -(-count // columns), columns, width


def _left_out(histories: Sequence[History]) -> str:
    """Name the rows with collapsed runs; empty if there is none."""
    rows = [
        f"{history.label} ({history.collapsed} of {history.collapsed + len(history.runs)} runs)"
        for history in histories
        if history.collapsed
    ]
    return f"left out, accuracy at chance level: {', '.join(rows)}" if rows else ""


def panels_height(labels: Sequence[str], note: str) -> float:
    """Inches; rows with longer titles are higher."""
    _, columns, width = grid_for(len(labels))
    lines = [len(textwrap.wrap(label, width)) for label in labels]
    most = [max(lines[at : at + columns]) for at in range(0, len(lines), columns)]
    below = NOTE_LINE * len(note_lines(note))
    return 0.9 + below + max(1.5, sum(PANEL_HEIGHT + LINE_HEIGHT * count for count in most))


def _draw_panels(
    figure: Figure, panels: Sequence[tuple[str, Sequence[_Band]]], ylabel: str
) -> None:
    """One panel per row of the table, all with the same axes."""
    rows, columns, width = grid_for(len(panels))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    values = np.concatenate([band.values for _, bands in panels for band in bands], axis=1)
    limits = _set_scale(grid[0], values)
    for axes, (label, bands) in zip(grid, panels, strict=False):
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=1)
        for band in bands:
            _draw_band(axes, band, limits)
        axes.set_title(textwrap.fill(label, width), fontsize=7.5, pad=2, parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch")
    figure.supylabel(ylabel, fontsize=9)


def _set_scale(axes: Axes, values: Array) -> tuple[float, float]:
    """Limits that show the bulk of ``values`` [3, E] and 0; logarithmic if they span decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    sizes = np.abs(values[0][np.isfinite(values[0])])
    large, usual = np.quantile(sizes, (1 - TAIL, 0.5)) if sizes.size else (0.0, 0.0)
    first = math.floor(math.log10(usual)) if usual > 0 and large > DECADES * usual else None
    if first is not None:
        axes.set_yscale("symlog", linthresh=10.0**first)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        # Not matplotlib's own, which writes a power of ten over the panel's title.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "\u2212")))
    scale = axes.yaxis.get_transform()
    low, high = fences(scale.transform(values[np.isfinite(values)]), TAIL, REACH)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * ((high - low) or 1.0)
    if first is not None:
        decades = [sign * 10.0**k for k in range(300, first, -1) for sign in (1, -1)]
        ticks: list[float] = [0.0]
        for tick in decades:
            at = scale.transform(np.array([tick, *ticks]))
            if low <= at[0] <= high and min(abs(at[1:] - at[0])) > (high - low) / 4.5:
                ticks.append(tick)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
    limits = scale.inverted().transform(np.array([low - room, high + room]))
    axes.set_ylim(*limits)
    return float(limits[0]), float(limits[1])


def _draw_band(axes: Axes, band: _Band, limits: tuple[float, float]) -> None:
    """A line and its area, and triangles at the edge where the line lies beyond the limits."""
    middle, low, high = band.values
    above, below = middle > limits[1], middle < limits[0]
    inside = ~(above | below)
    axes.fill_between(
        band.epochs, low, high, where=inside, color=band.colour, alpha=0.25, linewidth=0
    )
    axes.plot(
        band.epochs, np.where(inside, middle, np.nan), color=band.colour, linestyle=band.line,
        linewidth=1.1, marker="o" if inside.sum() <= FEW else "", markersize=2.5,
    )  # fmt: skip
    for outside, edge, marker in ((above, 1, "^"), (below, 0, "v")):
        epochs = band.epochs[outside]
        if len(epochs):
            axes.plot(
                epochs, np.full_like(epochs, edge), transform=axes.get_xaxis_transform(),
                color=band.colour, marker=marker, markersize=3.5, markeredgewidth=0,
                linestyle="", clip_on=False, zorder=4,
            )  # fmt: skip


def band_key(
    figure: Figure, entries: Sequence[tuple[str, str, str]], title: str | None = None
) -> None:
    """A legend of bands: colour, line style and label of each."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [  # a tuple is drawn on top of each other
        (
            Patch(facecolor=colour, alpha=0.25, linewidth=0),
            Line2D([], [], color=colour, ls=line, linewidth=1.1),
        )
        for colour, line, _ in entries
    ]
    labels = [label for _, _, label in entries]
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=len(entries), title=title,
        handlelength=2.4,
    )  # fmt: skip
    legend.get_title().set_fontsize(8)
