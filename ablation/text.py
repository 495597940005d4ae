"""How things are said to a person: remedies, fractions, durations, aligned tables."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence


def show_fraction(value: float) -> str:
    """``8/255 = 0.0314`` where the number is a whole multiple of 1/255, else the number."""
    scaled = value * 255
    if value and abs(scaled - round(scaled)) < 1e-6:
        return f"{round(scaled)}/255 = {value:.4f}"
    return f"{value:g}"


def printable(text: str, keep: str = "") -> str:
    """Show characters that are no print, as a terminal would obey them; but for those to keep."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def class_name(label: int, names: Sequence[str], width: int, placeholder: str) -> str:
    """A class' name in so many characters; without names its number."""
    return textwrap.shorten(names[label], width, placeholder=placeholder) if names else str(label)


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """A remedy: the nearest choice, or all of them."""
    near = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices) or 'none'}"


def one_line(error: Exception) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    """An exception's kind and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary_table(
    title: str, rows: Sequence[tuple[str, ...]], header: Sequence[str], *, left: bool = False
) -> str:
    """Aligned plain text: a title, a header, a rule, and the rows; columns of numbers to the right.

    Args:
        title: the first line; empty for none.
        rows: cells, as many as in ``header``.
        header: names of the columns.
        left: numbers to the left too, for cells that were padded to their decimal points.

    Raises:
        ValueError: a row has another number of cells.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {row} has {len(row)} cells, the header has {len(header)}")
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [bool(rows) and not left and all(_is_number(cell) for cell in c[1:]) for c in columns]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join([title, *lines] if title else lines)


def _is_number(cell: str) -> bool:
    """``93.1``, ``93.1%``, ``93.1 ± 0.2``, ``-`` or nothing."""
    first = cell.split("±")[0].strip(" %-")
    try:
        float(first or 0)
    except ValueError:
        return False
    return True
