"""The report for people: a line each, within 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from ablation.doctor.examination import Report, Section, Show
from ablation.doctor.lines import Line
from ablation.output import say
from ablation.text import duration

WIDTH, VERDICT, NAME = 100, 8, 26
"""Columns of the terminal, of a verdict and of a name."""


class Table(Show):
    """Prints sections and lines as they come."""

    def section(self, section: Section) -> None:
        """Its name and question."""
        say(f"\n{section.name}: {section.title}")

    def line(self, line: Line) -> None:
        """Its verdict, name and text."""
        say(shown(line))


def shown(line: Line) -> str:
    """A line of the table, or some where the text is long."""
    return wrapped(f"  {line.verdict:{VERDICT}}  {line.name:{NAME}}", line.text)


def wrapped(first: str, text: str) -> str:
    """A text beside what stands before it."""
    indent = " " * (len(first) + 1)
    return textwrap.fill(text, WIDTH, initial_indent=f"{first} ", subsequent_indent=indent)


def facts_text(facts: Mapping[str, Any]) -> str:
    """The facts, one a line."""
    width = max(map(len, facts))
    return "\n".join(wrapped(f"  {name:{width}}", str(value)) for name, value in facts.items())


def ending(report: Report, seconds: float, out: str) -> str:
    """How many of which verdict; what failed once more."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts().items())
    lines = [f"\n{counts}; {duration(seconds)} min; every figure in {out}"]
    lines += [wrapped(f"  FAILED {section} /", f"{line.name}: {line.text}")
              for section, line in report.failures()]  # fmt: skip
    return "\n".join(lines)
