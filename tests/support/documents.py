"""The documents of the repository, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "multirun_sweeps" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]
)
LINE = re.compile(r"^ *(?:\$ )?((?:ablation-\w+|torchrun)\b.*)$", re.M)
"""A command on a line of its own, as blocks have it, with or without a prompt."""
INLINE = re.compile(r"`(ablation-(?:train|evaluate|report) [^`]+)`")
"""A command within a sentence."""


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a language; without one, those that name none."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return found


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def commands() -> list[tuple[str, ...]]:
    """Every command of the documents but the changelog, once, its words without the comment."""
    found: dict[tuple[str, ...], None] = {}
    for path in DOCUMENTS:
        if path.name == "CHANGELOG.md":
            continue
        text = re.sub(r"\\\n *", "", path.read_text("utf-8"))
        for command in [*LINE.findall(text), *INLINE.findall(without_blocks(text))]:
            if not command.rstrip().endswith("="):  # a key is meant, not a command
                found[tuple(shlex.split(command, comments=True))] = None
    return list(found)
