"""All sections in turn: each has its seconds, and the whole an end; what fails ends only itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ablation.doctor import (
    agreement,
    attacks,
    facts,
    precision,
    ratios,
    resume,
    speed,
    verdicts,
    waits,
    ways,
)
from ablation.doctor.lines import Line, Verdict, failed, plain, skipped
from ablation.doctor.setting import Setting
from ablation.runs.files import atomic_write_text
from ablation.runs.status import utc_now

FORMAT = 1
"""Of the JSON."""


@dataclass(frozen=True)
class Section:
    """A question, and what answers it.

    Attributes:
        name: by which ``only=`` asks for it.
        title: the question.
        seconds: that it may take; it begins where half of them are left.
        examine: makes its lines.
        gpu: why a CPU does without; ``None``: it does not.
    """

    name: str
    title: str
    seconds: float
    examine: Callable[[Setting], Iterator[Line]]
    gpu: str | None = None


SECTIONS = (
    Section("machine", "peaks that other numbers are held against", 15, facts.examine),
    Section(
        "same_step",
        "three steps of every method in float64, the CPU's draws: what the CPU computes?",
        60,
        agreement.examine,
        "a GPU is compared with the CPU",
    ),
    Section(
        "verdicts",
        "a trained network under every attack: the CPU's verdicts?",
        60,
        verdicts.examine,
        "a GPU is compared with the CPU",
    ),
    Section(
        "waits",
        "does the host wait for the GPU within a step?",
        30,
        waits.examine,
        "a host does not wait for itself",
    ),
    Section("precision", "against float64 on the CPU: relative errors", 15, precision.examine),
    Section("bits", "the same run twice, and interrupted: the same bits?", 60, resume.examine),
    Section("ways", "captured and compiled: the eager step?", 100, ways.examine),
    Section(
        "ratios",
        "beside a plain reference step: the same, and how much faster?",
        60,
        ratios.examine,
    ),
    Section(
        "speed",
        "a training step in bf16: how fast, and what an epoch takes",
        90,
        speed.examine,
    ),
    Section("attacks", "long attacks and EMR (ResNet-18)", 50, attacks.examine),
)
"""In order of worth: what is right comes before what is fast."""
SECONDS = sum(section.seconds for section in SECTIONS)


@dataclass
class Report:
    """What was found so far.

    Attributes:
        head: what was examined, and how.
        facts: of the machine.
        sections: those that ended, with their lines.
        finished: all of them have.
    """

    head: Mapping[str, Any]
    facts: Mapping[str, Any]
    sections: list[tuple[Section, float, list[Line]]] = field(default_factory=list)
    finished: bool = False

    def counts(self) -> dict[Verdict, int]:
        """Lines by verdict."""
        verdicts = [line.verdict for _, _, lines in self.sections for line in lines]
        return {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)}

    def failures(self) -> list[tuple[str, Line]]:
        """Failed lines, each with the name of its section."""
        return [
            (section.name, line)
            for section, _, lines in self.sections
            for line in lines
            if line.verdict == "FAILED"
        ]

    def plain(self) -> dict[str, Any]:
        """As strict JSON has it."""
        return {
            "format": FORMAT,
            **self.head,
            "finished": self.finished,
            "counts": self.counts(),
            "facts": {name: plain(value) for name, value in self.facts.items()},
            "sections": [
                {
                    "name": section.name,
                    "title": section.title,
                    "seconds": round(seconds, 2),
                    "lines": [_plain_line(line) for line in lines],
                }
                for section, seconds, lines in self.sections
            ],
        }

    def write(self, path: Path) -> None:
        """Write the JSON, its old or its new content whatever happens.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        atomic_write_text(path, json.dumps(self.plain(), indent=1, allow_nan=False) + "\n")


def _plain_line(line: Line) -> dict[str, Any]:
    figures = {name: plain(value) for name, value in line.figures.items()}
    return {"name": line.name, "verdict": line.verdict, "text": line.text, "figures": figures}


class Show:
    """Shows what is found, as it is found; this one shows nothing."""

    def section(self, section: Section) -> None:
        """A section begins."""

    def line(self, line: Line) -> None:
        """A line was found."""


def examine(
    setting: Setting,
    sections: Sequence[Section],
    seconds: float,
    out: Path,
    show: Show | None = None,
) -> Report:
    """Go through sections, and write the report after each.

    Args:
        setting: the device and how it is examined.
        sections: in order.
        seconds: for all; where it is more than they need, each has more in proportion.
        out: file of the report.
        show: shows it meanwhile.

    Raises:
        InputError: the report cannot be written.
    """
    show, end = show or Show(), time.perf_counter() + seconds
    head = {
        "began": utc_now(),
        "device": str(setting.device),
        "tiny": setting.tiny,
        "seconds": seconds,
    }
    report = Report(head, setting.facts)
    report.write(out)
    scale = max(1.0, seconds / SECONDS)
    for section in sections:
        show.section(section)
        begun, lines = time.perf_counter(), list[Line]()
        for line in lines_within(section, setting, end, section.seconds * scale):
            lines.append(line)
            show.line(line)
        report.sections.append((section, time.perf_counter() - begun, lines))
        report.write(out)
    report.finished = True
    report.write(out)
    return report


def lines_within(section: Section, setting: Setting, end: float, seconds: float) -> Iterator[Line]:
    """The lines of a section; an error, a missing GPU or too little time is a line, too."""
    now = time.perf_counter()
    if section.gpu is not None and not setting.cuda:
        yield skipped(section.name, f"this is a CPU: {section.gpu}")
    elif end - now < seconds / 2:
        yield skipped(section.name, f"{max(0, end - now):.0f} s are left, it takes {seconds:.0f}")
    else:
        setting.until = min(end, now + seconds)
        try:
            yield from section.examine(setting)
        except Exception as error:  # the next section begins all the same
            yield failed(section.name, error)
