"""Ranks of the classes that adversarial examples fall into (LMA, Figure 1).

The false classes of an image are ranked by another network's clean logits, largest first; the true
class is left out, so the likeliest false class is at position 2 always. Each image that an attack
broke counts at the position of the class it was taken for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.reports.comparison import Comparison, Row
from ablation.reports.statistics import row_of
from ablation.reports.style import COLOURS, new_figure, paper_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST, NEAR = 2, 5
"""Positions of the likeliest false classes, whose share is told."""
BEYOND = 11
"""Position of every class that is not among those that a record keeps."""


@dataclass(frozen=True)
class Ranks:
    """Where one attack's examples on the networks of one row fell.

    Attributes:
        label: of the row.
        column: of the attack.
        counts: position -> images, over all runs.
    """

    label: str
    column: str
    counts: Mapping[int, int]

    @property
    def near(self) -> float:
        """Share of the broken images in positions 2 to 5, in percent."""
        near = sum(count for place, count in self.counts.items() if FIRST <= place <= NEAR)
        return 100 * near / sum(self.counts.values())

    def told(self) -> str:
        """The share, in a line."""
        total = sum(self.counts.values())
        return (
            f"{self.label}: of {total} examples of {paper_name(self.column)}, {self.near:.1f}% "
            f"fall into the classes at positions {FIRST} to {NEAR}"
        )


def position(top: Sequence[int], label: int, became: int) -> int:
    """Give the position of a false class among the false classes.

    Args:
        top: classes by falling clean logit, the true one among them or not.
        label: the true class.
        became: the class that an adversarial example was taken for.
    """
    false = [value for value in top if value != label]
    return false.index(became) + FIRST if became in false else BEYOND


def class_ranks(comparison: Comparison, against: str) -> list[Ranks]:
    """Rank what every other row's attacks led to by the clean logits of one row's networks.

    Args:
        comparison: a table of rows on the same images.
        against: key of the row that ranks: of a network trained without attacks in the paper.

    Returns:
        One entry per row and attack whose records say what broken images were taken for.
    """
    base = row_of(comparison.rows, against)
    rankings = {axis: _read(path, "top_classes") for axis, path in _records(base, "clean").items()}
    found = []
    for row in comparison.rows:
        if row is base or row.data != base.data:
            continue
        for column in comparison.columns:
            counts = Counter[int]()
            for axis, path in _records(row, column).items():
                if axis in rankings:
                    counts.update(_positions(rankings[axis], _read(path, f"{column}_class")))
            if counts:
                found.append(Ranks(row.label, column, dict(sorted(counts.items()))))
    return found


def _records(row: Row, column: str) -> dict[str, Path]:
    """The files of a cell's samples by axis."""
    cell = row.cells.get(column)
    samples = () if cell is None else cell.samples
    return {each.axis: each.examples for each in samples if each.examples is not None}


def _read(path: Path, column: str) -> dict[int, tuple[int, Any]]:
    """Label and a column's value by index; empty where the record lacks the column."""
    import pyarrow.parquet as parquet  # most reports do without

    file = parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
        return {}
    table = file.read(columns=["index", "label", column]).to_pydict()
    return {
        index: (label, value)
        for index, label, value in zip(table["index"], table["label"], table[column], strict=True)
        if value is not None
    }


def _positions(
    ranking: Mapping[int, tuple[int, Sequence[int]]], fallen: Mapping[int, tuple[int, int]]
) -> Iterator[int]:
    for index in ranking.keys() & fallen.keys():
        label, became = fallen[index]
        yield position(ranking[index][1], label, became)


def figure(comparison: Comparison, ranks: Sequence[Ranks]) -> Figure | None:
    """Draw a panel of bars per row, a colour per attack; ``None`` without ranks."""
    if not ranks:
        return None
    labels = list(dict.fromkeys(each.label for each in ranks))
    places = sorted({place for each in ranks for place in each.counts})
    with new_figure(comparison, 0.8 + 1.5 * len(labels)) as figure:
        grid = figure.subplots(len(labels), 1, squeeze=False, sharex=True).ravel()
        for axes, label in zip(grid, labels, strict=True):
            mine = [each for each in ranks if each.label == label]
            width = 0.8 / len(mine)
            for turn, each in enumerate(mine):
                total = sum(each.counts.values())
                axes.bar(
                    [place + (turn - (len(mine) - 1) / 2) * width for place in places],
                    [100 * each.counts.get(place, 0) / total for place in places],
                    width,
                    color=COLOURS[turn % len(COLOURS)],
                    label=paper_name(each.column),
                )
            axes.set_title(label, fontsize=8)
            axes.set_ylabel("share in %")
            axes.legend(fontsize=7)
        names = [f">{BEYOND - 1}" if place == BEYOND else str(place) for place in places]
        grid[-1].set_xticks(places, names)
        grid[-1].set_xlabel("position of its class among the false ones, by clean logits")
    return figure
