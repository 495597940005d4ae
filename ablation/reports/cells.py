"""From the numbers of several runs to a cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ablation.reports.comparison import Absence, Cell, Sample
from ablation.reports.deviations import attack_key
from ablation.reports.records import Measurement
from ablation.sweeps.published import Published


@dataclass(frozen=True)
class Number:
    """A run's number on its way into a cell."""

    measurement: Measurement
    sample: Sample
    tags: tuple[str, ...]
    mismatch: tuple[str, ...]


def one_attack(numbers: Sequence[Number]) -> list[Number]:
    """Numbers that may be averaged: of the attack nearest to the wanted one, then most frequent."""
    groups: dict[str, list[Number]] = {}
    for number in numbers:
        groups.setdefault(attack_key(number.measurement.params), []).append(number)
    return min(groups.values(), key=lambda g: (len(g[0].mismatch), -len(g)), default=[])


def filled(
    column: str,
    numbers: Sequence[Number],
    absent: Mapping[Absence, int],
    published: Published | None = None,
) -> tuple[Cell, tuple[str, ...]]:
    """A cell and the warnings of its evaluations."""
    kept = one_attack(numbers)
    without = Counter(absent)
    without["not evaluated"] += len(numbers) - len(kept)
    cell = Cell(
        column,
        kept[0].measurement.unit if kept else "percent",
        tuple(number.sample for number in kept),
        {reason: count for reason, count in without.items() if count},
        published,
        unique(number.tags for number in kept),
        unique(number.mismatch for number in kept),
        {**kept[0].measurement.params, "split": kept[0].measurement.split} if kept else {},
    )
    return cell, unique(number.measurement.flags for number in kept)


def unique(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All texts in order, each once."""
    return tuple(dict.fromkeys(text for texts in lists for text in texts))


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
