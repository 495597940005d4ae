"""How figures look: a text column wide, colours for all eyes, the names that papers write.

Smoke comparisons carry a watermark.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ablation.runs.columns import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

WIDTH = 3.4
"""Inches: a column of a two-column paper."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's palette, its yellow replaced by grey: markers in yellow are too light."""

MARKERS = "osD^vP*X<>dp"
"""More than colours, so that two rows with one colour differ in shape, also in grey."""

LINES = ("-", "--", ":")
"""Of rows whose colour another row has already."""

FAINT = 0.35
"""Opacity of numbers with tags or with another attack."""

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

LEGEND_LINE = 0.17
"""Inches of a line of a legend."""

STEPS = (1, 2, 2.5, 5, 10)
"""Of ticks, times a power of ten."""

NOTE_LINE, NOTE_WIDTH = 0.13, 74
"""Of a note below a figure: inches of a line, and characters that fit in it."""

NORMS = {"linf": r"$L_\infty$", "l2": "$L_2$"}


class Scaled(Protocol):
    """What a figure shows: a comparison, or a search."""

    @property
    def scale(self) -> str:
        """``full`` or ``smoke``."""


@contextmanager
def new_figure(shown: Scaled, height: float) -> Iterator[Figure]:
    """A figure drawn in the module's style; its layout is fixed at the end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        if shown.scale == "smoke":
            figure.text(
                0.55, 0.5, "SMOKE", fontsize=54, color="#D00000", alpha=0.3, rotation=30,
                ha="center", va="center", weight="bold", zorder=10,
            )  # fmt: skip


def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure as PDF and as PNG (300 dots per inch); the same figure gives the same bytes.

    Args:
        figure: as ``new_figure`` makes it.
        path: without a suffix; its folder is made.
    """
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    pdf, png = (path.with_name(f"{path.name}.{kind}") for kind in ("pdf", "png"))
    with rc_context(STYLE):
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.savefig(png, dpi=300, metadata={"Software": None})
    return pdf, png


def paper_name(column: str) -> str:
    """As papers write it: ``PGD-20``, ``AutoAttack``; others as they are."""
    place = Column.parse(column)
    known = {"aa": "AutoAttack", "apgd_ce": "APGD-CE", "clean": "clean"}
    known |= {name: name.upper() for name in ("cw", "fgsm", "spsa", "fab")}
    steps = re.fullmatch(r"pgd(\d+)", place.metric)
    metric = f"PGD-{steps[1]}" if steps else known.get(place.metric)
    if metric is None:
        return column
    return metric + {"val": " (val.)", "train": " (train)"}.get(place.split, "")


def look(place: int) -> tuple[str, str, Any]:
    """Colour, marker and line of a row; no two of 96 share both colour and marker."""
    turn = place // len(COLOURS) % len(LINES)
    again = place // math.lcm(len(COLOURS), len(MARKERS))
    marker = MARKERS[(place + again) % len(MARKERS)]
    return COLOURS[place % len(COLOURS)], marker, LINES[turn]


def fences(values: Array, tail: float, reach: float) -> tuple[float, float]:
    """Limits of the bulk of some values, no wider than the values themselves.

    Args:
        values: at least one, all finite.
        tail: share of the values, at either end, that has no say.
        reach: how far beyond the others the limits may lie, in widths of their range; 0.25 and 3
            are Tukey's outer fences.
    """
    low, high = np.quantile(values, (tail, 1 - tail))
    beyond = reach * ((high - low) or abs(high) or 1.0)
    return max(float(values.min()), low - beyond), min(float(values.max()), high + beyond)


def legend_line(place: int, label: str) -> Any:
    """A row's handle in a legend."""
    from matplotlib.lines import Line2D

    colour, marker, line = look(place)
    return Line2D(
        [], [], color=colour, marker=marker, linestyle=line, linewidth=1.0, markersize=4,
        markeredgewidth=0, label=label or " ",
    )  # fmt: skip


def legend_marker(
    marker: str, colour: str, label: str, hollow: bool = False, alpha: float = 1.0
) -> Any:
    """A marker's handle in a legend."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", marker=marker, markersize=4, markeredgewidth=0.8, color=colour,
        markerfacecolor="white" if hollow else colour, alpha=alpha, label=label,
    )  # fmt: skip


def error_bars(
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


def note_lines(text: str) -> list[str]:
    """A note's lines, as ``add_note`` writes them."""
    return textwrap.wrap(text, NOTE_WIDTH)


def add_note(figure: Figure, text: str) -> None:
    """Write a note in small type below the axes; a legend's title, for which layouts make room."""
    if text:
        note = figure.legend(
            handles=[], loc="outside lower center", title="\n".join(note_lines(text)),
            title_fontsize=7, borderpad=0,
        )  # fmt: skip
        note.get_title().set_parse_math(False)


def add_legend(figure: Figure, handles: list[Any], faint: bool) -> None:
    """Set a legend above the axes, with a handle for faint points if there are any."""
    if faint:
        handles = [*handles, legend_marker("o", "0.2", "off the recipe", alpha=FAINT)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)))
