"""A comparison's figures: measured against published, clean against robust, accuracy over radii."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation.reports.comparison import Cell, Comparison, Interval, Row
from ablation.reports.statistics import cell_interval
from ablation.reports.style import (
    COLOURS,
    FAINT,
    LEGEND_LINE,
    MARKERS,
    NORMS,
    Array,
    add_legend,
    error_bars,
    legend_line,
    legend_marker,
    look,
    new_figure,
    paper_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED = 4
"""How many of the largest deviations get a label."""

RADII = (3, 7, 12, 18, 25, 33, 42)
"""Distances between a point and its label that are tried, in points."""

NEAR = 7
"""Labels farther than this get a line to their point."""

LINK = 8
"""Parts of a line between a measured and a published point, for keeping labels off it."""

SHORT = 24
"""Characters of a label of which two stand side by side in a legend."""

STRONGEST = ("aa", "apgd_ce", r"pgd(\d+)", "cw", "fab", "square", "spsa", "fgsm")
"""Patterns of robust metrics, the preferred first; among PGDs the one with most steps."""


def choose_robust_metric(comparison: Comparison) -> str | None:
    """The robust accuracy that most rows have beside a clean one; of several the strongest.

    ``None`` if no row has one at the table's own radius.
    """
    rows = {
        column: sum(bool(_both(row, column)[1].samples) for row in comparison.rows)
        for column in comparison.columns
    }
    ranked = [
        (-rows[column], rank, -int(found[1]) if found.groups() else 0, column)
        for rank, pattern in enumerate(STRONGEST)
        for column in comparison.columns
        if rows[column] and (found := re.fullmatch(pattern, column))
    ]
    return min(ranked)[-1] if ranked else None


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
    with new_figure(comparison, height=4.3) as figure:
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (1.9, 1.0)})
        handles = [
            _series(above, below, index, [pair for pair in pairs if pair.cell.column == column])
            for index, column in enumerate(comparison.columns)
        ]
        _frame_pair(above, below, pairs, unit)
        add_legend(figure, [h for h in handles if h], any(pair.cell.tags for pair in pairs))
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
    with new_figure(comparison, height=3.0) as figure:
        axes = figure.subplots()
        for point in points:
            _draw_point(axes, point)
        axes.margins(x=0.18, y=0.12)
        # An interval over few runs may reach beyond what an accuracy can be.
        axes.set_xlim(right=min(axes.get_xlim()[1], 101))
        axes.set_ylim(max(axes.get_ylim()[0], -1), min(axes.get_ylim()[1], 101))
        axes.set_xlabel("clean accuracy (%)")
        axes.set_ylabel(f"{paper_name(metric)} accuracy (%)")
        handles = [legend_marker("o", COLOURS[0], "measured")]
        if any(point.published for point in points):
            handles.append(legend_marker("o", COLOURS[1], "published", hollow=True))
        add_legend(figure, handles, any(point.faint and point.measured for point in points))
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
    handles = [
        legend_line(place, textwrap.fill(titles[key], 56)) for place, key in enumerate(drawn)
    ]
    height = 0.4 + 1.9 * len(panels) + LEGEND_LINE * -(-len(drawn) // columns)
    with new_figure(comparison, height) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False).ravel()
        for axes, (sweep, lines) in zip(grid, panels, strict=True):
            _draw_sweep(axes, sweep, {drawn.index(key): line for key, line in lines.items()})
        faint = any(dot.faint for _, lines in panels for line in lines.values() for dot in line)
        handles += [legend_marker("o", "0.2", "off the recipe", alpha=FAINT)] if faint else []
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


def _shown(cell: Cell, strict: bool) -> Interval | None:
    return None if strict and cell.tags else cell_interval(cell)


def _both(row: Row, metric: str) -> tuple[Cell, Cell]:
    """Clean and robust accuracy of a row, of the runs that have both."""
    clean, robust = (row.cells.get(column, Cell(column)) for column in ("clean", metric))
    common = {s.run for s in clean.samples} & {s.run for s in robust.samples}
    clean, robust = (
        replace(cell, samples=tuple(s for s in cell.samples if s.run in common))
        for cell in (clean, robust)
    )
    return clean, robust


def _point(row: Row, metric: str, strict: bool) -> _Point:
    clean, robust = _both(row, metric)
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
    lines = {}
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
            lines[row.key] = [dots[eps] for eps in sorted(dots)]
    return lines


def _sizes(cell: Cell) -> set[int]:
    return {sample.n for sample in cell.samples}


def _draw_sweep(axes: Axes, sweep: Sweep, lines: Mapping[int, Sequence[_Dot]]) -> None:
    """One attack's lines, by the place of their row among those drawn."""
    radii = [255 * dot.eps for line in lines.values() for dot in line]
    whole = all(abs(eps - round(eps)) < 1e-6 for eps in radii)
    unit, scale = ("1/255", 255.0) if whole else ("pixels in [0, 1]", 1.0)
    for place, line in lines.items():
        colour, marker, dash = look(place)
        at = [scale * dot.eps for dot in line]
        means = [dot.value.mean for dot in line]
        axes.plot(at, means, color=colour, linestyle=dash, linewidth=1.0, zorder=2)
        for x, dot in zip(at, line, strict=True):
            alpha = FAINT if dot.faint else 1.0
            half = (None, dot.value.half)
            error_bars(axes, (x, dot.value.mean), half, marker=marker, color=colour, alpha=alpha)
    # An interval over few runs may reach beyond what an accuracy can be.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
    axes.set_xlabel(f"{NORMS.get(sweep.norm, sweep.norm)} radius ({unit})")
    axes.set_ylabel(f"{paper_name(sweep.metric)} accuracy (%)")


def _series(above: Axes, below: Axes, index: int, pairs: Sequence[_Pair]) -> Any:
    """One metric's points in both panels; returns its legend's handle, ``None`` without points."""
    if not pairs:
        return None
    marker, colour = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
    for pair in pairs:
        alpha = FAINT if pair.cell.tags else 1.0
        for axes, y in ((above, pair.measured.mean), (below, pair.deviation)):
            at, half = (pair.published, y), (None, pair.measured.half)
            error_bars(axes, at, half, marker=marker, color=colour, alpha=alpha)
    return legend_marker(marker, colour, paper_name(pairs[0].cell.column))


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
        error_bars(
            axes, (x.mean, y.mean), (x.half, y.half), marker="o", color=COLOURS[0], alpha=alpha
        )


def _label_deviations(figure: Figure, axes: Axes, pairs: Sequence[_Pair]) -> None:
    """Name the largest differences from the published numbers."""
    obstacles = [(pair.published, pair.deviation, 0.0, pair.measured.half or 0.0) for pair in pairs]
    left, right = axes.get_xlim()
    obstacles.append(((left + right) / 2, 0.0, (right - left) / 2, 0.0))
    largest = sorted(pairs, key=lambda pair: -abs(pair.deviation))[:LABELLED]
    labels = [
        (pair.published, pair.deviation, f"{pair.label}, {paper_name(pair.cell.column)}")
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
