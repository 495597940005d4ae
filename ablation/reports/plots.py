"""A comparison's figures: measured against published, clean against robust, accuracy over radii."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation.reports.comparison import Cell, Comparison, Interval, Row
from ablation.reports.statistics import cell_interval, difference
from ablation.reports.style import (
    COLOURS,
    FAINT,
    LEGEND_LINE,
    MARKERS,
    NORMS,
    NOTE_LINE,
    STEPS,
    Array,
    add_legend,
    add_note,
    error_bars,
    fences,
    legend_line,
    legend_marker,
    look,
    new_figure,
    note_lines,
    paper_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED = 4
"""How many points get a label: of deviations the largest; of more rows a legend says the names."""

TAIL, REACH = 0.25, 3.0
"""Points beyond Tukey's outer fences are far from the others."""

BREAK = 10
"""Points of accuracy of a gap between them and the others where an axis is broken."""

WIDEST = 5.0
"""Points of accuracy that intervals may reach beyond all points; wider ones are cut."""

INSET = 0.06
"""A metric whose points take up less of the axes than this is magnified."""

RADII = (3, 7, 12, 18, 25, 33, 42, 54, 70)
"""Distances between a point and its label that are tried, in points."""

NEAR = 7
"""Labels farther than this get a line to their point."""

COVERED = 0.03
"""Share of a label's area that may be over something else."""

CROSSING = 5
"""A line across a label costs so many times its area, for it is thin."""

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
        if (measured := _shown(cell, strict)) and cell.published and difference(cell) is not None
    ]
    units = {pair.cell.unit for pair in pairs}
    unit = next((unit for unit in ("percent", "margin", "radius") if unit in units), None)
    if unit is None:
        return None
    pairs = [pair for pair in pairs if pair.cell.unit == unit]
    with new_figure(comparison, height=4.3) as figure:
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (1.7, 1.2)})
        handles = [
            _series(above, below, index, [pair for pair in pairs if pair.cell.column == column])
            for index, column in enumerate(comparison.columns)
        ]
        _frame_pair(above, below, pairs, unit)
        add_legend(figure, [h for h in handles if h], any(pair.cell.tags for pair in pairs))
        _label_deviations(figure, below, pairs)
        for index, column in enumerate(comparison.columns):
            _magnify(above, index, pairs, [pair for pair in pairs if pair.cell.column == column])
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
    across, up = (_parts(points, way) for way in (0, 1))
    if len(points) <= LABELLED and len(across) == len(up) == 1:
        with new_figure(comparison, height=3.0) as figure:
            axes = _draw_points(figure, points, metric, across, up)
            _add_kinds(figure, points)
            if _label_points(figure, axes, points):
                return figure
    columns = 2 if all(len(point.label) <= SHORT for point in points) else 1
    height = 3.0 + LEGEND_LINE * -(-len(points) // columns)
    with new_figure(comparison, height) as figure:
        _draw_points(figure, points, metric, across, up)
        _add_kinds(figure, points)
        handles = [
            legend_marker(marker, colour, textwrap.fill(point.label, 56) or " ", not point.measured)
            for place, point in enumerate(points)
            for colour, marker, _ in [look(place)]
        ]
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
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

    Every attack has a panel; clean accuracy, if it is of as many images, is radius 0. Measured rows
    without two radii are named in a note; attacks that are left without a row have no panel:
    ``None`` if that leaves nothing. Faint points depart from the table's recipe.

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
    note = _without_line(comparison, panels)
    height = 0.4 + 1.9 * len(panels) + LEGEND_LINE * -(-len(drawn) // columns)
    with new_figure(comparison, height + NOTE_LINE * len(note_lines(note))) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False).ravel()
        for axes, (sweep, lines) in zip(grid, panels, strict=True):
            _draw_sweep(axes, sweep, {drawn.index(key): line for key, line in lines.items()})
        faint = any(dot.faint for _, lines in panels for line in lines.values() for dot in line)
        handles += [legend_marker("o", "0.2", "off the recipe", alpha=FAINT)] if faint else []
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
        add_note(figure, note)
    return figure


def _without_line(
    comparison: Comparison, panels: Sequence[tuple[Sweep, Mapping[str, Sequence[_Dot]]]]
) -> str:
    """Which measured rows each panel lacks."""
    measured = {
        row.key: title
        for title, row in zip(row_titles(comparison), comparison.rows, strict=True)
        if any(cell.samples for cell in row.cells.values())
    }
    texts = []
    for sweep, lines in panels:
        absent = [title for key, title in measured.items() if key not in lines]
        if absent:
            texts.append(f"{paper_name(sweep.metric)} not at two radii: {', '.join(absent)}")
    return "; ".join(texts)


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


def _series(above: Axes, below: Axes | None, index: int, pairs: Sequence[_Pair]) -> Any:
    """One metric's points in both panels; returns its legend's handle, ``None`` without points."""
    if not pairs:
        return None
    marker, colour = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
    for pair in pairs:
        alpha = FAINT if pair.cell.tags else 1.0
        for axes, y in ((above, pair.measured.mean), (below, pair.deviation)):
            at, half = (pair.published, y), (None, pair.measured.half)
            if axes is not None:
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
    if not any(pair.deviation or pair.measured.half for pair in pairs):
        below.set_ylim(-1, 1)
    shown = "%" if unit == "percent" else unit
    above.set_ylabel(f"measured ({shown})")
    below.set_ylabel(f"difference ({'points' if unit == 'percent' else unit})")
    below.set_xlabel(f"published ({shown})")


@dataclass(frozen=True)
class _Part:
    """A stretch of an axis that may be broken: its limits, and whether it holds the bulk."""

    low: float
    high: float
    bulk: bool = True


def _parts(points: Sequence[_Point], way: int) -> list[_Part]:
    """An axis, clean (0) or robust (1); in several parts where points are far from the others."""
    measured = [point.measured[way] for point in points if point.measured]
    means = np.array(
        [value.mean for value in measured]
        + [point.published[way] for point in points if point.published]
    )
    low, high = fences(means, TAIL, REACH)
    bulk = means[(means >= low) & (means <= high)]
    groups = [group for group in (means[means < low], bulk, means[means > high]) if group.size]
    gaps = [after.min() - before.max() for before, after in pairwise(groups)]
    if max(gaps, default=0) < BREAK:
        return [_part(means, measured)]
    return [_part(group, measured, group is bulk) for group in groups]


def _part(means: Array, measured: Sequence[Interval], bulk: bool = True) -> _Part:
    """Room for some means and their intervals, which few runs make wider than all else."""
    low, high = float(means.min()), float(means.max())
    beyond = max(high - low, WIDEST)
    mine = [value for value in measured if low <= value.mean <= high]
    ends = [value.mean + sign * (value.half or 0) for value in mine for sign in (1, -1)]
    left = max(min([*ends, low]), low - beyond)
    right = min(max([*ends, high]), high + beyond)
    room = 0.15 * max(right - left, 2.0 if bulk else 10.0)
    # No accuracy is beyond these, whatever its interval.
    return _Part(max(-2.0, left - room), min(102.0, right + room), bulk)


def _magnify(axes: Axes, index: int, pairs: Sequence[_Pair], mine: Sequence[_Pair]) -> None:
    """An inset of a metric whose points are on top of each other, where there are no others."""
    low, high = axes.get_xlim()
    ends = [value for pair in mine for value in (pair.published, pair.measured.mean)]
    crowded = len(mine) > 2 and 0 < np.ptp(ends) < INSET * (high - low)
    if not crowded or axes.child_axes:
        return
    for left, bottom in ((0.7, 0.1), (0.12, 0.68)):
        corner = [low + (high - low) * share for share in (left - 0.1, bottom - 0.1)]
        side = 0.4 * (high - low)
        if not any(
            0 <= pair.published - corner[0] <= side
            and -(pair.measured.half or 0)
            <= pair.measured.mean - corner[1]
            <= side + (pair.measured.half or 0)
            for pair in pairs
        ):
            inset = axes.inset_axes((left, bottom, 0.28, 0.28))
            _series(inset, None, index, mine)
            room = 0.15 * (float(np.ptp(ends)) or 1.0)
            limits = (min(ends) - room, max(ends) + room)
            inset.set(xlim=limits, ylim=limits)
            inset.axline((limits[0], limits[0]), slope=1, color="0.6", linewidth=0.7, zorder=1)
            inset.tick_params(labelsize=6.5, length=2, pad=1.5)
            inset.locator_params(nbins=3)
            return


def _draw_points(
    figure: Figure, points: Sequence[_Point], metric: str, across: list[_Part], up: list[_Part]
) -> Axes:
    """Every point, on axes in one or more parts each way; returns those of the bulk."""
    from matplotlib.ticker import MaxNLocator

    up = up[::-1]  # from the top, as subplots are
    grid = figure.subplots(
        len(up), len(across), sharex="col", sharey="row", squeeze=False,
        width_ratios=[3 if part.bulk else 1 for part in across],
        height_ratios=[3 if part.bulk else 1 for part in up],
    )  # fmt: skip
    for axes, (y, x) in zip(grid.flat, product(up, across), strict=True):
        for place, point in enumerate(points):
            _draw_point(axes, point, place)
        axes.set(xlim=(x.low, x.high), ylim=(y.low, y.high))
        axes.xaxis.set_major_locator(MaxNLocator(5 if x.bulk else 2, steps=STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(6 if y.bulk else 2, steps=STEPS))
        left, lowest = x is across[0], y is up[-1]
        axes.spines[["left"]].set_visible(left)
        axes.spines[["bottom"]].set_visible(lowest)
        axes.tick_params(left=left, bottom=lowest)
    _mark_breaks(grid)
    column, line = ([part.bulk for part in parts].index(True) for parts in (across, up))
    grid[-1, column].set_xlabel("clean accuracy (%)")
    grid[line, 0].set_ylabel(f"{paper_name(metric)} accuracy (%)")
    bulk: Axes = grid[line, column]
    return bulk


def _mark_breaks(grid: Any) -> None:
    """Slashes where an axis is broken."""
    slash: dict[str, Any] = {
        "marker": [(-0.5, -1), (0.5, 1)], "markersize": 6, "linestyle": "", "color": "k",
        "markeredgewidth": 0.6, "clip_on": False,
    }  # fmt: skip
    for before, after in pairwise(grid[-1]):
        before.plot([1], [0], transform=before.transAxes, **slash)
        after.plot([0], [0], transform=after.transAxes, **slash)
    slash["marker"] = [(-1, -0.5), (1, 0.5)]
    for upper, lower in pairwise(grid[:, 0]):
        upper.plot([0], [0], transform=upper.transAxes, **slash)
        lower.plot([0], [1], transform=lower.transAxes, **slash)


def _add_kinds(figure: Figure, points: Sequence[_Point]) -> None:
    """A legend of what is filled, hollow and faint."""
    halves = [each.half for point in points if point.measured for each in point.measured]
    interval = ", 95% interval over runs" if any(halves) else ""
    handles = [legend_marker("o", "0.2", f"measured{interval}")]
    if any(point.published for point in points):
        handles.append(legend_marker("o", "0.2", "published", hollow=True))
    add_legend(figure, handles, any(point.faint and point.measured for point in points))


def _draw_point(axes: Axes, point: _Point, place: int) -> None:
    colour, marker, _ = look(place)
    if point.published:
        if point.measured:
            ends = zip(point.published, (each.mean for each in point.measured), strict=True)
            axes.plot(*ends, color="0.6", linewidth=0.6, zorder=1)
        axes.plot(
            *point.published, marker=marker, markersize=4, markeredgewidth=0.8,
            markerfacecolor="white", color=colour, linestyle="", zorder=2,
        )  # fmt: skip
    if point.measured:
        x, y = point.measured
        alpha = FAINT if point.faint else 1.0
        error_bars(
            axes, (x.mean, y.mean), (x.half, y.half), marker=marker, color=colour, alpha=alpha
        )


def _label_deviations(figure: Figure, axes: Axes, pairs: Sequence[_Pair]) -> None:
    """Name the largest differences from the published numbers, where there is room."""
    obstacles = [(pair.published, pair.deviation, 0.0, pair.measured.half or 0.0) for pair in pairs]
    left, right = axes.get_xlim()
    obstacles.append(((left + right) / 2, 0.0, (right - left) / 2, 0.0))
    largest = sorted(pairs, key=lambda pair: -abs(pair.deviation))[:LABELLED]
    labels = [
        (pair.published, pair.deviation, f"{pair.label}, {paper_name(pair.cell.column)}")
        for pair in largest
    ]
    _label(figure, axes, labels, obstacles)


def _label_points(figure: Figure, axes: Axes, points: Sequence[_Point]) -> bool:
    """Name every row, at its measured point if it has one; tell whether that covers nothing."""
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
    return _label(figure, axes, labels, obstacles)


def _label(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[float, float, str]],
    obstacles: Sequence[tuple[float, float, float, float]],
) -> bool:
    """Write labels beside their points, each where it covers least of what is already there.

    Those that would cover something are not written; tells whether all are.

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
    words: list[Array] = []
    for x, y, text in labels:
        drawn = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=7,
            parse_math=False, annotation_clip=False, zorder=4,
        )  # fmt: skip
        size = np.array(drawn.get_window_extent(renderer).size)
        at = np.array(axes.transData.transform((x, y)))
        before = np.array(words).reshape(-1, 4)
        box, radius, covered = _free_place(at, size, np.array(taken), before, inside, point)
        if covered > COVERED * size.prod():
            drawn.remove()
            continue
        drawn.set_position(tuple((box[:2] - at) / point))
        taken.append(box)
        words.append(box)
        if radius > NEAR:
            taken += list(_leader_boxes(at, box, point))
            _leader(axes, (x, y), at, box, point)
    return len(words) == len(labels)


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
    at: Array, size: Array, taken: Array, words: Array, inside: Array, point: float
) -> tuple[Array, float, float]:
    """The best box of a size around a position, in pixels; its distance in points; its cost.

    Covering what is ``taken`` costs its area, a line to the point across ``words`` several times
    that; leaving the axes costs four times the area that is out; and distance breaks ties.
    """
    choices = []
    for radius, (across, up) in product(RADII, product((1, 0, -1), repeat=2)):
        if across or up:
            way = np.array([across, up])
            low = at + point * radius * way / np.hypot(across, up) + size * (way - 1) / 2
            box = np.concatenate([low, low + size])
            outside = size.prod() - _overlap(box, inside[None])
            cost = _overlap(box, taken) + 4 * float(outside)
            if radius > NEAR:
                crossed = [_overlap(part, words) for part in _leader_boxes(at, box, point)]
                cost += CROSSING * sum(crossed)
            choices.append((cost + 2 * radius * point, cost, radius, box))
    _, cost, radius, box = min(choices, key=lambda choice: choice[0])
    return box, radius, cost


def _leader_boxes(at: Array, box: Array, point: float) -> Iterator[Array]:
    """Small boxes along a line from a position to its label's box, but for the position's own."""
    end = at.clip(box[:2], box[2:])
    for step in np.linspace(0, 1, 3 * LINK):
        middle = at + step * (end - at)
        if np.hypot(*(middle - at)) > 4 * point and step < 1:
            yield np.concatenate([middle - point, middle + point])


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
