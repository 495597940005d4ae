"""Markdown of comments, docstrings and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SPECIAL = re.compile(r"([\\*_\[\]#|~])")
"""Characters that Markdown would take for its own; formulas have them."""
CODE = re.compile(r"(`+[^`]*`+)")
"""Spans that are left as they are."""


def escaped(text: str) -> str:
    """Text with formulas as it stands; spans of code stay code."""
    parts = CODE.split(text)
    plain = [SPECIAL.sub(r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    spans = [part.replace("|", r"\|") for part in parts[1::2]]
    return "".join(part for pair in zip(plain, [*spans, ""], strict=True) for part in pair)


def comment(path: Path) -> list[str]:
    """The paragraphs at the head of a YAML file, the one that is for Hydra left out."""
    lines: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines).strip().split("\n\n")


def prose(paragraphs: Iterable[str]) -> str:
    """Paragraphs of a comment: lines in a row are joined, indented ones are code, dashes items."""
    groups: list[list[str]] = []
    for paragraph in paragraphs:
        kind = ""
        for line in paragraph.splitlines():
            former, kind = kind, _kind(line, kind)
            if kind != former or line.startswith("- "):
                groups.append([])
            groups[-1].append(line)
        groups.append([])
    return "\n\n".join(_block(lines) for lines in groups if lines)


def _kind(line: str, former: str) -> str:
    """What a line is, after one of the kind ``former``."""
    if line.startswith("- "):
        return "item"
    if line.startswith("  "):
        return "item" if former == "item" else "code"
    return "text"


def _block(lines: Sequence[str]) -> str:
    if lines[0].startswith("  "):
        return block(*(line.strip() for line in lines))
    joined = " ".join(line.strip() for line in lines)
    if joined.startswith("- "):
        return "- " + escaped(joined.removeprefix("- "))
    return re.sub(r"^([-+>]|\d+\.)", r"\\\1", escaped(joined))


def joined(paragraph: str) -> str:
    """A paragraph on one line, for a cell."""
    return escaped(" ".join(paragraph.split()))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def code(text: object) -> str:
    """Text as a span of code, also in a cell of a table."""
    return f"`{text}`".replace("|", r"\|")


def block(*lines: str) -> str:
    """Commands."""
    return "\n".join(["```", *lines, "```"])


def page(title: str, *parts: str) -> str:
    """A page: its title, and the parts that are not empty."""
    return "\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n"


def section(title: str, *parts: str) -> str:
    """A headed section; empty if its parts are."""
    body = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *body]) if body else ""
