"""A comparison's figures, one text column wide; smoke comparisons carry a watermark.

Tables are drawn from their cells, curves from what the runs wrote down after each epoch.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ablation.reports.comparison import Cell, Comparison, Interval, Row
from ablation.reports.statistics import cell_interval
from ablation.runs.columns import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

WIDTH = 3.4
"""Inches: a column of a two-column paper."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's palette, its yellow replaced by grey: markers in yellow are too light."""
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":")
"""Of rows whose colour and marker another row has already."""
FAINT = 0.35
"""Opacity of numbers with tags or with another attack."""
LABELLED = 4
"""How many of the largest deviations get a label."""
RADII = (3, 7, 12, 18, 25, 33, 42)
"""Distances between a point and its label that are tried, in points."""
NEAR = 7
"""Labels farther than this get a line to their point."""
LINK = 8
"""Parts of a line between a measured and a published point, for keeping labels off it."""
STYLE: dict[Any, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # both come with matplotlib
    "font.size": 8.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handletextpad": 0.2,
    "legend.columnspacing": 1.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}
PANELS = ((1, 1, 40), (8, 2, 27), (math.inf, 3, 17))
"""Up to so many panels: how many stand side by side, and characters per line of their titles."""
PANEL_HEIGHT, LINE_HEIGHT = 0.85, 0.13
"""Inches of a row of panels, and of a line of its titles."""
LEGEND_LINE = 0.17
"""Inches of a line of a legend."""
SHORT = 24
"""Characters of a label of which two stand side by side in a legend."""
FEW = 3
"""Curves with up to so many points get markers: a line through one point cannot be seen."""
NORMS = {"linf": r"$L_\infty$", "l2": "$L_2$"}
SPLITS = {"val": "validation", "train": "training", "test": "test"}
STRONGEST = ("aa", "apgd_ce", r"pgd(\d+)", "cw", "fab", "square", "spsa", "fgsm")
"""Patterns of robust metrics, the preferred first; among PGDs the one with most steps."""


def choose_robust_metric(columns: Sequence[str]) -> str | None:
    """The strongest attack's column; ``None`` if there is none at the table's own radius.

    Args:
        columns: names of metrics, for example ``("clean", "pgd20", "aa")``.
    """
    ranked = [
        (rank, -int(found[1]) if found.groups() else 0, column)
        for rank, pattern in enumerate(STRONGEST)
        for column in columns
        if (found := re.fullmatch(pattern, column))
    ]
    return min(ranked)[2] if ranked else None


def measured_against_published(comparison: Comparison, strict: bool = False) -> Figure | None:
    """Measured over published numbers, and their differences below, with 95% intervals over runs.

    ``None`` if no cell has both numbers from the same attack. Percentages are drawn if there are
    any, else margins, else radii. Faint points depart from the table's recipe.

    Args:
        comparison: the table.
        strict: leave out measured numbers with tags.
    """
    pairs = [
        _Pair(row.label, cell, measured, cell.published.value)
        for row in comparison.rows
        for cell in row.cells.values()
        if (measured := _shown(cell, strict)) and cell.published and not cell.mismatch
    ]
    units = {pair.cell.unit for pair in pairs}
    unit = next((unit for unit in ("percent", "margin", "radius") if unit in units), None)
    if unit is None:
        return None
    pairs = [pair for pair in pairs if pair.cell.unit == unit]
    with _figure(comparison, height=4.3) as figure:
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (1.9, 1.0)})
        handles = [
            _series(above, below, index, [pair for pair in pairs if pair.cell.column == column])
            for index, column in enumerate(comparison.columns)
        ]
        _frame_pair(above, below, pairs, unit)
        _legend(figure, [h for h in handles if h], any(pair.cell.tags for pair in pairs))
        _label_deviations(figure, below, pairs)
    return figure


def clean_against_robust(
    comparison: Comparison, metric: str, strict: bool = False
) -> Figure | None:
    """Robust over clean accuracy, a point per row, with 95% intervals over runs both ways.

    ``None`` if no row has both numbers. The paper's points are hollow, and linked to the measured
    ones. Faint points depart from the table's recipe, or were attacked in another way.

    Args:
        comparison: the table.
        metric: the robust accuracy's column.
        strict: leave out measured numbers with tags.
    """
    points = [_point(row, metric, strict) for row in comparison.rows]
    points = [point for point in points if point.measured or point.published]
    if not any(point.measured for point in points):
        return None
    with _figure(comparison, height=3.0) as figure:
        axes = figure.subplots()
        for point in points:
            _draw_point(axes, point)
        axes.margins(x=0.18, y=0.12)
        # An interval over few runs may reach beyond what an accuracy can be.
        axes.set_xlim(right=min(axes.get_xlim()[1], 101))
        axes.set_ylim(max(axes.get_ylim()[0], -1), min(axes.get_ylim()[1], 101))
        axes.set_xlabel("clean accuracy (%)")
        axes.set_ylabel(f"{_name(metric)} accuracy (%)")
        handles = [_marker("o", COLOURS[0], "measured")]
        if any(point.published for point in points):
            handles.append(_marker("o", COLOURS[1], "published", hollow=True))
        _legend(figure, handles, any(point.faint and point.measured for point in points))
        _label_points(figure, axes, points)
    return figure


@dataclass(frozen=True)
class Sweep:
    """One attack at several radii.

    Attributes:
        metric: its name without a radius, for example ``aa``.
        norm: of the ball.
        eps: radius in pixels, by the row's key and the column; cells that are not there were
            attacked otherwise, or not at all.
    """

    metric: str
    norm: str
    eps: Mapping[tuple[str, str], float]


def robust_over_eps(
    comparison: Comparison, sweeps: Sequence[Sweep], strict: bool = False
) -> Figure | None:
    """Accuracy over the attack's radius, a line per row, with 95% intervals (EMR, Figure 3).

    Every attack has a panel; clean accuracy, if it is of as many images, is radius 0. Rows with a
    single radius are left out, and with them attacks that are left without a row: ``None`` if that
    leaves nothing. Faint points depart from the table's recipe.

    Args:
        comparison: the table.
        sweeps: its attacks.
        strict: leave out measured numbers with tags.
    """
    panels = [(sweep, _lines(comparison, sweep, strict)) for sweep in sweeps]
    panels = [(sweep, lines) for sweep, lines in panels if lines]
    if not panels:
        return None
    keys = [row.key for row in comparison.rows]
    titles = dict(zip(keys, row_titles(comparison), strict=True))
    drawn = [key for key in titles if any(key in lines for _, lines in panels)]
    columns = 2 if all(len(titles[key]) <= SHORT for key in drawn) else 1
    handles = [_dash(place, textwrap.fill(titles[key], 56)) for place, key in enumerate(drawn)]
    height = 0.4 + 1.9 * len(panels) + LEGEND_LINE * -(-len(drawn) // columns)
    with _figure(comparison, height) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False).ravel()
        for axes, (sweep, lines) in zip(grid, panels, strict=True):
            _draw_sweep(axes, sweep, {drawn.index(key): line for key, line in lines.items()})
        faint = any(dot.faint for _, lines in panels for line in lines.values() for dot in line)
        handles += [_marker("o", "0.2", "off the recipe", alpha=FAINT)] if faint else []
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def row_titles(comparison: Comparison) -> list[str]:
    """A row's label, and which grid point it is where several rows have that label."""
    count = Counter(row.label for row in comparison.rows)
    return [
        row.label if count[row.label] == 1 else f"{row.label} {row.chosen}"
        for row in comparison.rows
    ]


@dataclass(frozen=True)
class History:
    """What the runs of a row wrote down.

    Attributes:
        label: of the row.
        runs: of each run the lines of ``metrics.jsonl``, one per epoch, as plain data.
    """

    label: str
    runs: tuple[Sequence[Mapping[str, Any]], ...]


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
    with _figure(comparison, _panels_height([label for label, _ in panels])) as figure:
        _draw_panels(figure, panels, f"{norms} margin of {images} images (1/255)")
        _key(figure, [(COLOURS[0], "-", "median and middle half of the images")])
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
    with _figure(comparison, _panels_height([label for label, _ in panels])) as figure:
        _draw_panels(figure, panels, "effective margin ($L_2$, pixels in [0, 1])")
        entries = [(*style, f"{SPLITS[split]} images") for split, style in styles.items()]
        _key(figure, entries, title="mean ± standard deviation, correct images only")
    return figure


def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure as PDF and as PNG (300 dots per inch); the same figure gives the same bytes.

    Args:
        figure: of this module.
        path: without a suffix; its folder is made.
    """
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    pdf, png = (path.with_name(f"{path.name}.{kind}") for kind in ("pdf", "png"))
    with rc_context(STYLE):
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.savefig(png, dpi=300, metadata={"Software": None})
    return pdf, png


@dataclass(frozen=True)
class _Pair:
    """A measured number and the published one."""

    label: str
    cell: Cell
    measured: Interval
    published: float

    @property
    def deviation(self) -> float:
        return self.measured.mean - self.published


@dataclass(frozen=True)
class _Point:
    """A row's clean and robust accuracy, measured and published; ``None`` without both."""

    label: str
    measured: tuple[Interval, Interval] | None
    published: tuple[float, float] | None
    faint: bool


@dataclass(frozen=True)
class _Dot:
    """A row's accuracy at a radius in pixels."""

    eps: float
    value: Interval
    faint: bool


@dataclass(frozen=True)
class _Band:
    """A line with the area around it: ``epochs`` [E], ``values`` [3, E] (middle, low, high)."""

    epochs: Array
    values: Array
    colour: str
    line: str


def _curve(history: History, names: Sequence[str]) -> tuple[Array, Array]:
    """Epochs [E], from 1, and the means over runs [len(names), E] of what was measured then."""
    found: dict[int, list[list[float]]] = {}
    for row in (row for run in history.runs for row in run):
        values = [row.get(name) for name in names]
        numbers = [float(value) for value in values if value is not None]
        if len(numbers) == len(names):
            found.setdefault(int(row["epoch"]) + 1, []).append(numbers)
    epochs = sorted(found)
    means = [np.mean(found[epoch], axis=0) for epoch in epochs]
    return np.array(epochs, dtype=np.float64), np.array(means).reshape(-1, len(names)).T


def _distinct(histories: Sequence[History], key: str, names: Mapping[str, str]) -> str:
    """What all rows say of a key, as papers write it."""
    rows = (row for history in histories for run in history.runs for row in run)
    return "/".join(names[value] for value in dict.fromkeys(r[key] for r in rows if key in r))


def _grid(count: int) -> tuple[int, int, int]:
    """Rows and columns for so many panels, and characters per line of a title."""
    columns, width = next((c, w) for most, c, w in PANELS if count <= most)
    return -(-count // columns), columns, width


def _panels_height(labels: Sequence[str]) -> float:
    """Inches; rows with longer titles are higher."""
    _, columns, width = _grid(len(labels))
    lines = [len(textwrap.wrap(label, width)) for label in labels]
    most = [max(lines[at : at + columns]) for at in range(0, len(lines), columns)]
    return 0.9 + max(1.5, sum(PANEL_HEIGHT + LINE_HEIGHT * count for count in most))


def _draw_panels(
    figure: Figure, panels: Sequence[tuple[str, Sequence[_Band]]], ylabel: str
) -> None:
    """One panel per row of the table, all with the same axes."""
    rows, columns, width = _grid(len(panels))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (label, bands) in zip(grid, panels, strict=False):
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=1)
        for band in bands:
            middle, low, high = band.values
            axes.fill_between(band.epochs, low, high, color=band.colour, alpha=0.25, linewidth=0)
            marker = "o" if len(band.epochs) <= FEW else ""
            axes.plot(
                band.epochs, middle, color=band.colour, linestyle=band.line, linewidth=1.1,
                marker=marker, markersize=2.5,
            )  # fmt: skip
        axes.set_title(textwrap.fill(label, width), fontsize=7.5, pad=2, parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)


def _key(figure: Figure, entries: Sequence[tuple[str, str, str]], title: str | None = None) -> None:
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


def _shown(cell: Cell, strict: bool) -> Interval | None:
    return None if strict and cell.tags else cell_interval(cell)


def _point(row: Row, metric: str, strict: bool) -> _Point:
    clean, robust = (row.cells.get(column, Cell(column)) for column in ("clean", metric))
    x, y = _shown(clean, strict), _shown(robust, strict)
    comparable = not (clean.mismatch or robust.mismatch)
    published = (
        (clean.published.value, robust.published.value)
        if clean.published and robust.published and comparable
        else None
    )
    faint = bool(clean.tags or robust.tags) or not comparable
    return _Point(row.label, (x, y) if x and y else None, published, faint)


def _lines(comparison: Comparison, sweep: Sweep, strict: bool) -> dict[str, list[_Dot]]:
    """Accuracies by radius of each row that has two; of a radius the first column's."""
    found = {}
    for row in comparison.rows:
        dots: dict[float, _Dot] = {}
        sizes: set[int] = set()
        for column in comparison.columns:
            cell, eps = row.cells.get(column), sweep.eps.get((row.key, column))
            value = _shown(cell, strict) if cell and eps is not None else None
            if cell and value and eps is not None:
                dots.setdefault(eps, _Dot(eps, value, bool(cell.tags or cell.mismatch)))
                sizes |= _sizes(cell)
        if len(dots) > 1:
            clean = row.cells.get("clean")
            # Clean accuracy of other images than the attacked ones would be a step in the line.
            if clean and _sizes(clean) == sizes and (value := _shown(clean, strict)):
                dots.setdefault(0.0, _Dot(0.0, value, bool(clean.tags or clean.mismatch)))
            found[row.key] = [dots[eps] for eps in sorted(dots)]
    return found


def _sizes(cell: Cell) -> set[int]:
    return {sample.n for sample in cell.samples}


def _draw_sweep(axes: Axes, sweep: Sweep, lines: Mapping[int, Sequence[_Dot]]) -> None:
    """One attack's lines, by the place of their row among those drawn."""
    radii = [255 * dot.eps for line in lines.values() for dot in line]
    whole = all(abs(eps - round(eps)) < 1e-6 for eps in radii)
    unit, scale = ("1/255", 255.0) if whole else ("pixels in [0, 1]", 1.0)
    for place, line in lines.items():
        colour, marker, dash = _look(place)
        at = [scale * dot.eps for dot in line]
        means = [dot.value.mean for dot in line]
        axes.plot(at, means, color=colour, linestyle=dash, linewidth=1.0, zorder=2)
        for x, dot in zip(at, line, strict=True):
            alpha = FAINT if dot.faint else 1.0
            half = (None, dot.value.half)
            _bars(axes, (x, dot.value.mean), half, marker=marker, color=colour, alpha=alpha)
    # An interval over few runs may reach beyond what an accuracy can be.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
    axes.set_xlabel(f"{NORMS.get(sweep.norm, sweep.norm)} radius ({unit})")
    axes.set_ylabel(f"{_name(sweep.metric)} accuracy (%)")


def _look(place: int) -> tuple[str, str, Any]:
    """Colour, marker and line of a row."""
    turn = place // len(COLOURS) % len(LINES)
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], LINES[turn]


def _dash(place: int, label: str) -> Any:
    """A row's handle in a legend."""
    from matplotlib.lines import Line2D

    colour, marker, line = _look(place)
    return Line2D(
        [], [], color=colour, marker=marker, linestyle=line, linewidth=1.0, markersize=4,
        markeredgewidth=0, label=label or " ",
    )  # fmt: skip


def _name(column: str) -> str:
    """As papers write it: ``PGD-20``, ``AutoAttack``; others as they are."""
    place = Column.parse(column)
    known = {"aa": "AutoAttack", "apgd_ce": "APGD-CE", "clean": "clean"}
    known |= {name: name.upper() for name in ("cw", "fgsm", "spsa", "fab")}
    steps = re.fullmatch(r"pgd(\d+)", place.metric)
    metric = f"PGD-{steps[1]}" if steps else known.get(place.metric)
    if metric is None:
        return column
    return metric + {"val": " (val.)", "train": " (train)"}.get(place.split, "")


@contextmanager
def _figure(comparison: Comparison, height: float) -> Iterator[Figure]:
    """A figure drawn in the module's style; its layout is fixed at the end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        if comparison.scale == "smoke":
            figure.text(
                0.55, 0.5, "SMOKE", fontsize=54, color="#D00000", alpha=0.3, rotation=30,
                ha="center", va="center", weight="bold", zorder=10,
            )  # fmt: skip


def _marker(marker: str, colour: str, label: str, hollow: bool = False, alpha: float = 1.0) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", marker=marker, markersize=4, markeredgewidth=0.8, color=colour,
        markerfacecolor="white" if hollow else colour, alpha=alpha, label=label,
    )  # fmt: skip


def _bars(
    axes: Axes,
    at: tuple[float, float],
    half: tuple[float | None, float | None],
    **style: Any,
) -> None:
    """A marker with error bars both ways, of half-widths in the axes' units."""
    axes.errorbar(
        *at, xerr=half[0], yerr=half[1], elinewidth=0.7, linestyle="", markersize=4,
        markeredgewidth=0, zorder=3, **style,
    )  # fmt: skip


def _series(above: Axes, below: Axes, index: int, pairs: Sequence[_Pair]) -> Any:
    """One metric's points in both panels; returns its legend's handle, ``None`` without points."""
    if not pairs:
        return None
    marker, colour = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
    for pair in pairs:
        alpha = FAINT if pair.cell.tags else 1.0
        for axes, y in ((above, pair.measured.mean), (below, pair.deviation)):
            at, half = (pair.published, y), (None, pair.measured.half)
            _bars(axes, at, half, marker=marker, color=colour, alpha=alpha)
    return _marker(marker, colour, _name(pairs[0].cell.column))


def _frame_pair(above: Axes, below: Axes, pairs: Sequence[_Pair], unit: str) -> None:
    """Same limits both ways, the identity, and the axes' names."""
    reach = [
        value
        for pair in pairs
        for half in [pair.measured.half or 0.0]
        for value in (pair.published, pair.measured.mean - half, pair.measured.mean + half)
    ]
    margin = 0.06 * ((max(reach) - min(reach)) or abs(reach[0]) or 1.0)
    limits = (min(reach) - margin, max(reach) + margin)
    above.set_xlim(limits)
    above.set_ylim(limits)
    above.axline((limits[0], limits[0]), slope=1, color="0.6", linewidth=0.7, zorder=1)
    below.axhline(0, color="0.6", linewidth=0.7, zorder=1)
    below.margins(y=0.3)
    shown = "%" if unit == "percent" else unit
    above.set_ylabel(f"measured ({shown})")
    below.set_ylabel(f"difference ({'points' if unit == 'percent' else unit})")
    below.set_xlabel(f"published ({shown})")


def _draw_point(axes: Axes, point: _Point) -> None:
    if point.published:
        if point.measured:
            ends = zip(point.published, (each.mean for each in point.measured), strict=True)
            axes.plot(*ends, color="0.6", linewidth=0.6, zorder=1)
        axes.plot(
            *point.published, marker="o", markersize=4, markeredgewidth=0.8,
            markerfacecolor="white", color=COLOURS[1], linestyle="", zorder=2,
        )  # fmt: skip
    if point.measured:
        x, y = point.measured
        alpha = FAINT if point.faint else 1.0
        _bars(axes, (x.mean, y.mean), (x.half, y.half), marker="o", color=COLOURS[0], alpha=alpha)


def _legend(figure: Figure, handles: list[Any], faint: bool) -> None:
    if faint:
        handles = [*handles, _marker("o", "0.2", "off the recipe", alpha=FAINT)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)))


def _label_deviations(figure: Figure, axes: Axes, pairs: Sequence[_Pair]) -> None:
    """Name the largest differences from the published numbers."""
    obstacles = [(pair.published, pair.deviation, 0.0, pair.measured.half or 0.0) for pair in pairs]
    left, right = axes.get_xlim()
    obstacles.append(((left + right) / 2, 0.0, (right - left) / 2, 0.0))
    largest = sorted(pairs, key=lambda pair: -abs(pair.deviation))[:LABELLED]
    labels = [
        (pair.published, pair.deviation, f"{pair.label}, {_name(pair.cell.column)}")
        for pair in largest
    ]
    _label(figure, axes, labels, obstacles)


def _label_points(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    """Name every row, at its measured point if it has one."""
    labels, obstacles = [], []
    for point in points:
        ends = [point.published] if point.published else []
        if point.measured:
            x, y = point.measured
            obstacles.append((x.mean, y.mean, x.half or 0.0, y.half or 0.0))
            ends.insert(0, (x.mean, y.mean))
        labels.append((*ends[0], point.label))
        (x0, y0), (x1, y1) = ends[0], ends[-1]
        along = [step / LINK for step in range(LINK + 1)]
        obstacles += [(x0 + t * (x1 - x0), y0 + t * (y1 - y0), 0.0, 0.0) for t in along]
    _label(figure, axes, labels, obstacles)


def _label(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[float, float, str]],
    obstacles: Sequence[tuple[float, float, float, float]],
) -> None:
    """Write labels beside their points, each where it covers least of what is already there.

    Args:
        figure: complete but for its labels.
        axes: where the points are.
        labels: x, y and text.
        obstacles: x, y and the half-widths of error bars, in the axes' units.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    figure.draw_without_rendering()  # the layout decides where points are
    point = figure.dpi / 72
    inside = np.array(axes.get_window_extent().extents) + NEAR / 2 * point * np.array(
        [1, 1, -1, -1]
    )
    taken = [box for obstacle in obstacles for box in _boxes(axes, obstacle, point)]
    for x, y, text in labels:
        drawn = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=7,
            parse_math=False, annotation_clip=False, zorder=4,
        )  # fmt: skip
        size = np.array(drawn.get_window_extent(renderer).size)
        at = np.array(axes.transData.transform((x, y)))
        box, radius = _free_place(at, size, np.array(taken), inside, point)
        drawn.set_position(tuple((box[:2] - at) / point))
        taken.append(box)
        if radius > NEAR:
            _leader(axes, (x, y), at, box, point)


def _boxes(
    axes: Axes, obstacle: tuple[float, float, float, float], point: float
) -> Iterator[Array]:
    """Left, low, right, high in pixels of a marker and of its two error bars."""
    x, y, across, up = obstacle
    at = axes.transData.transform((x, y))
    yield np.concatenate([at - 2.5 * point, at + 2.5 * point])
    for half, bar in ((across, (across, 0)), (up, (0, up))):
        if half:
            ends = axes.transData.transform([np.subtract((x, y), bar), np.add((x, y), bar)])
            yield np.concatenate([ends[0] - 1.5 * point, ends[1] + 1.5 * point])


def _free_place(
    at: Array, size: Array, taken: Array, inside: Array, point: float
) -> tuple[Array, float]:
    """The best box of a size around a position, all in pixels, and its distance in points.

    Covering something costs its area; leaving the axes costs four times the area that is out; and
    distance breaks ties.
    """
    choices = []
    for radius, (across, up) in product(RADII, product((1, 0, -1), repeat=2)):
        if across or up:
            way = np.array([across, up])
            low = at + point * radius * way / np.hypot(across, up) + size * (way - 1) / 2
            box = np.concatenate([low, low + size])
            outside = size.prod() - _overlap(box, inside[None])
            cost = _overlap(box, taken) + 4 * outside + 2 * radius * point
            choices.append((float(cost), radius, box))
    _, radius, box = min(choices, key=lambda choice: choice[0])
    return box, radius


def _overlap(box: Array, others: Array) -> float:
    """Area that a box has in common with others, summed."""
    high = np.minimum(box[2:], others[:, 2:])
    low = np.maximum(box[:2], others[:, :2])
    return float((high - low).clip(0).prod(axis=1).sum())


def _leader(axes: Axes, xy: tuple[float, float], at: Array, box: Array, point: float) -> None:
    """A thin line from a point to the nearest place of its label's box."""
    end = at.clip(box[:2], box[2:])
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.4", "shrinkA": 0, "shrinkB": 2}
    axes.annotate(
        "", xy, xytext=tuple((end - at) / point), textcoords="offset points",
        annotation_clip=False, arrowprops=line,
    )  # fmt: skip
