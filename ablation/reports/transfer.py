"""Transfer attacks between the runs of a table: accuracy by attacked row and by source.

A cell is the mean over the runs of the attacked row and the runs of the source's that were paired.
``own`` is the same attack on the network itself, which transferred points are held against.
"""

from __future__ import annotations

import io
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from csv import writer
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation.errors import InputError
from ablation.reports.comparison import Comparison, Row
from ablation.reports.deviations import attack_key
from ablation.reports.plots import row_titles
from ablation.reports.records import Measurement, read, saved_config, selected
from ablation.reports.style import NOTE_LINE, add_note, new_figure, note_lines, paper_name
from ablation.runs.columns import Column
from ablation.runs.directory import Run
from ablation.text import show_fraction, summary_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = 20
"""Characters of a line of a row's name."""
FRAME, CELL, LINE = 0.75, 0.27, 0.11
"""Inches: height around the cells, of a row of them, and of a line of its name."""
CROWDED = 9
"""Columns from which numbers have no decimals."""
DARK = 0.55
"""Share of the colours from which numbers are white."""
OWN = "own"


@dataclass(frozen=True)
class Matrix:
    """Accuracies in percent under one attack.

    Attributes:
        column: of the attack, without its source.
        facts: radius and number of images, for people.
        rows: names of the attacked rows by their key.
        sources: names of the sources by their key: a row's, or a run's that is in no row.
        own: each row's accuracy under its own examples.
        values: by attacked row and source: accuracies of the pairs of runs.
    """

    column: str
    facts: str
    rows: Mapping[str, str]
    sources: Mapping[str, str]
    own: Mapping[str, Sequence[float]]
    values: Mapping[tuple[str, str], Sequence[float]]

    def numbers(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Means [rows, 1 + sources], own first; NaN where there is none."""
        lines = [[self.own.get(row, ()), *self._line(row)] for row in self.rows]
        return np.array([[statistics.fmean(v) if v else np.nan for v in line] for line in lines])

    def _line(self, row: str) -> list[Sequence[float]]:
        return [self.values.get((row, source), ()) for source in self.sources]

    def number_of(self) -> dict[str, int]:
        """What each row and source is called in few characters: rows first, from 1."""
        keys = dict.fromkeys([*self.rows, *self.sources])
        return {key: number for number, key in enumerate(keys, 1)}

    def strangers(self) -> list[str]:
        """Sources that are no row, with their numbers."""
        numbers = self.number_of()
        return [f"{numbers[k]} {name}" for k, name in self.sources.items() if k not in self.rows]

    def text(self) -> str:
        """The matrix for a terminal."""
        numbers = self.number_of()
        lines = [
            (f"{numbers[key]} {name}", *("-" if np.isnan(v) else f"{v:.2f}" for v in values))
            for (key, name), values in zip(self.rows.items(), self.numbers(), strict=True)
        ]
        header = ("attacked", OWN, *(f"by {numbers[key]}" for key in self.sources))
        title = f"{paper_name(self.column)} accuracy by examples of other runs ({self.facts})"
        return "\n".join([summary_table(title, lines, header), *self.strangers()])


def matrices(comparison: Comparison) -> list[Matrix]:
    """A matrix per attack that runs of the comparison were attacked with by other runs' examples.

    Of an attack in several forms (radius, steps, images) the most frequent one.
    """
    titles = dict(zip((row.key for row in comparison.rows), row_titles(comparison), strict=True))
    home = {path.name: row.key for row in comparison.rows for path in row.runs}
    found = [(row.key, number) for row in comparison.rows for number in _measurements(row)]
    columns = dict.fromkeys(_column(number) for _, number in found if number.source is not None)
    every = []
    for column in columns:
        mine = [(key, number) for key, number in found if _column(number) == column]
        every.append(_matrix(column, mine, titles, home))
    return every


def _matrix(
    column: str,
    found: Sequence[tuple[str, Measurement]],
    titles: Mapping[str, str],
    home: Mapping[str, str],
) -> Matrix:
    transferred = [(key, number) for key, number in found if number.source is not None]
    ((attack, n), _), *_ = Counter((_attack(m), m.n) for _, m in transferred).most_common(1)
    values: dict[tuple[str, str], list[float]] = {}
    for key, number in transferred:
        if (_attack(number), number.n) == (attack, n):
            source = home.get(str(number.source), str(number.source))
            values.setdefault((key, source), []).append(number.value)
    own: dict[str, list[float]] = {}
    for key, number in found:
        if number.source is None and (_attack(number), number.n) == (attack, n):
            own.setdefault(key, []).append(number.value)
    eps = next(m.params["eps"] for _, m in transferred if _attack(m) == attack)
    attacked = {key for key, _ in values}
    sources = {source for _, source in values}
    order = [*titles, *sorted(sources - titles.keys())]
    return Matrix(
        column,
        f"eps {show_fraction(eps).split(' = ')[0]}, n={n}",
        {key: title for key, title in titles.items() if key in attacked},
        {key: titles.get(key, key) for key in order if key in sources},
        own,
        values,
    )


def _measurements(row: Row) -> Iterator[Measurement]:
    """Accuracies of the weights that a row's runs stand for."""
    for path in row.runs:
        try:
            place = selected(saved_config(Run.at(path)))
        except InputError:  # told where the table is made
            continue
        for number in read(path).measurements:
            if number.is_of(*place) and number.unit == "percent":
                yield number


def _column(number: Measurement) -> str:
    return Column(number.metric, number.split).name


def _attack(number: Measurement) -> str:
    """The attack, wherever its points come from."""
    return attack_key({k: v for k, v in number.params.items() if k != "attack_from"})


def csv(found: Sequence[Matrix]) -> str:
    """Every cell in a line: attack, attacked row, source, mean, number of pairs."""
    buffer = io.StringIO()
    lines = writer(buffer, lineterminator="\n")
    lines.writerow(("metric", "facts", "attacked", "source", "value", "pairs"))
    for each in found:
        cells = {(row, OWN): values for row, values in each.own.items() if row in each.rows}
        for (row, source), values in {**cells, **each.values}.items():
            name = OWN if source == OWN else each.sources[source]
            mean = f"{statistics.fmean(values):.4f}"
            lines.writerow((each.column, each.facts, each.rows[row], name, mean, len(values)))
    return buffer.getvalue()


def figure(comparison: Comparison, found: Sequence[Matrix]) -> Figure | None:
    """Draw a heat map per attack, darker where more images stay right; ``None`` without any."""
    if not found:
        return None
    names = [
        [textwrap.fill(f"{each.number_of()[key]} {name}", TITLE) for key, name in each.rows.items()]
        for each in found
    ]
    tallest = [max(1 + name.count("\n") for name in mine) for mine in names]
    heights = [
        FRAME + len(mine) * max(CELL, LINE * (lines + 0.7))
        for mine, lines in zip(names, tallest, strict=True)
    ]
    strangers = "; ".join(dict.fromkeys(text for each in found for text in each.strangers()))
    height = sum(heights) + NOTE_LINE * len(note_lines(strangers))
    with new_figure(comparison, height) as drawn:
        panels = drawn.subplots(len(found), 1, squeeze=False, height_ratios=heights).ravel()
        for axes, each, mine in zip(panels, found, names, strict=True):
            _draw(axes, each, mine)
        add_note(drawn, strangers)
    return drawn


def _draw(axes: Axes, matrix: Matrix, names: Sequence[str]) -> None:
    values = matrix.numbers()
    low, high = np.nanmin(values), np.nanmax(values)
    axes.imshow(np.ma.masked_invalid(values), cmap="Blues", aspect="auto", vmin=low, vmax=high)
    form = "{:.0f}" if values.shape[1] >= CROWDED else "{:.1f}"
    for (i, j), value in np.ndenumerate(values):
        dark = (value - low) / ((high - low) or 1.0) > DARK
        text = "-" if np.isnan(value) else form.format(value)
        colour = "white" if dark else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)
    numbers = matrix.number_of()
    ticks = [OWN, *(str(numbers[key]) for key in matrix.sources)]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.axvline(0.5, color="white", linewidth=3)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("examples of")
    axes.set_ylabel("attacked")
    axes.set_title(f"{paper_name(matrix.column)} accuracy (%), {matrix.facts}", fontsize=8.5)
