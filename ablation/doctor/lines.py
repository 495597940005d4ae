"""What a check found: a line with a verdict, its threshold, and the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ablation.errors import out_of_memory
from ablation.text import first_line

Verdict = Literal["ok", "FAILED", "skipped", "measured"]
Figure = float | str | bool | None


@dataclass(frozen=True)
class Line:
    """One check.

    Attributes:
        name: what was looked at, within its section.
        verdict: ``measured`` where there is nothing to hold a number to.
        text: what was found and, but for ``measured``, what was asked for.
        figures: the numbers by name, for the JSON.
    """

    name: str
    verdict: Verdict
    text: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


def below(name: str, values: Mapping[str, float], limit: float) -> Line:
    """Whether all of some errors are below one limit; NaN is not.

    Args:
        name: of the line.
        values: errors by what they are of.
        limit: they must stay below it.
    """
    held = all(value < limit for value in values.values())
    text = ", ".join(f"{what} {value:.1e}" for what, value in values.items())
    return judged(name, held, f"{text} (below {limit:.0e})", values)


def judged(name: str, held: bool, text: str, figures: Mapping[str, Figure] | None = None) -> Line:
    """A line that is ``ok`` if something held, else ``FAILED``."""
    return Line(name, "ok" if held else "FAILED", text, figures or {})


def measured(name: str, text: str, figures: Mapping[str, Figure] | None = None) -> Line:
    """A line without a verdict."""
    return Line(name, "measured", text, figures or {})


def skipped(name: str, why: str) -> Line:
    """A line of what was not looked at."""
    return Line(name, "skipped", why)


def failed(name: str, error: Exception) -> Line:
    """A line of a check that ended in an error; where memory ran out nothing was checked."""
    if out_of_memory(error):
        return skipped(name, "memory ran out")
    return Line(name, "FAILED", first_line(error), {"error": first_line(error)})


def plain(value: Figure) -> Figure:
    """A figure as strict JSON has it: numbers that are not finite are text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
