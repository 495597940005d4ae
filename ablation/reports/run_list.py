"""List run directories: state, epochs, size, age, table; and choose among them."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from ablation.config import validation
from ablation.config.parser import TARGET, Parser
from ablation.errors import InputError
from ablation.reports.deviations import absent_as_none
from ablation.reports.records import saved_config, value_at
from ablation.runs.archive import size_of
from ablation.runs.directory import Run, find_runs
from ablation.runs.launches import recorded_launches
from ablation.runs.status import seconds_since
from ablation.sweeps.cost import size
from ablation.text import did_you_mean, summary_table
from ablation.types import Fraction

Condition = Literal[
    "running",
    "elsewhere",
    "evaluating",
    "done",
    "failed",
    "interrupted",
    "damaged",
    "unreadable",
]
"""``running`` here, or ``elsewhere`` on another machine; ``evaluating``: trained, and at work."""
AT_WORK = ("running", "elsewhere", "evaluating")
SPANS: Mapping[str, float] = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
BYTES: Mapping[str, float] = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
HEADER = ("run", "state", "epochs", "size", "age", "table")


@dataclass(frozen=True)
class Listed:
    """A run directory as a line of the list.

    Attributes:
        run: the directory.
        state: see ``Condition``.
        config: as saved; empty if it cannot be read.
        launches: ``<table>/<arm>`` of each that asked for it.
        epochs: done, and of the whole training; ``None`` is not known.
        bytes: on the disk.
        age: seconds since its last sign of life.
        needs: name of the run whose weights it started from, that the same command asks for again.
        parent: name of the run that it went on from.
        problem: why a file of it cannot be used.
    """

    run: Run
    state: Condition
    config: Mapping[str, Any]
    launches: tuple[str, ...]
    epochs: tuple[int | None, int | None]
    bytes: int
    age: float
    needs: str | None = None
    parent: str | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.run.path.name

    def plain(self) -> dict[str, Any]:
        """For JSON: bytes and seconds as numbers."""
        return {
            "run": self.name,
            "path": str(self.run.path),
            "state": self.state,
            "epochs": self.epochs[0],
            "of": self.epochs[1],
            "bytes": self.bytes,
            "age_seconds": round(self.age),
            "tables": list(self.launches),
            "problem": self.problem,
        }

    def line(self) -> tuple[str, ...]:
        """For a person."""
        done, total = ("?" if count is None else str(count) for count in self.epochs)
        tables = " ".join(self.launches) or "-"
        return (self.name, self.state, f"{done}/{total}", size(self.bytes), span(self.age), tables)


@dataclass(frozen=True)
class Choice:
    """Which runs are meant; what is ``None`` or empty leaves all.

    Attributes:
        names: patterns of names, as ``digits-*``.
        states: any of these.
        tables: any of these tables asked for it; ``table/arm`` names an arm.
        older: seconds since the last sign of life, at least.
        larger: bytes, at least.
        settings: keys of the config and the values that they may have.
    """

    names: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    older: float | None = None
    larger: float | None = None
    settings: Mapping[str, tuple[str, ...]] | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing was said."""
        return self == Choice(settings=self.settings) and not self.settings


def listed(runs_dir: Path) -> list[Listed]:
    """Every run of a folder; what is damaged or somebody else's is a line, not an end.

    Raises:
        InputError: the folder cannot be listed.
    """
    return [_look(run) for run in find_runs(runs_dir, damaged=True)]


def choose(runs: Sequence[Listed], choice: Choice) -> list[Listed]:
    """The runs that are meant.

    Raises:
        InputError: no run has such a key, so that a slip does not pass for an empty list.
    """
    for key in choice.settings or {}:
        if runs and not any(_has(each.config, key) for each in runs):
            known = sorted({key for each in runs for key in _keys(each.config)})
            raise InputError(f"{key}=: no run there has this key; {did_you_mean(key, known)}")
    return [each for each in runs if _is_meant(each, choice)]


def table_of(runs: Sequence[Listed]) -> str:
    """The list as aligned text, with the total."""
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    total = f"{count}, {size(sum(each.bytes for each in runs))}"
    return "\n".join([summary_table("", [each.line() for each in runs], HEADER), total])


def orphans(runs: Sequence[Listed], gone: Iterable[Listed]) -> Iterator[tuple[Listed, Listed]]:
    """Runs that would stay behind, each with the run among the others that it needs."""
    leaving = {each.name: each for each in gone}
    for each in runs:
        if each.needs in leaving and each.name not in leaving:
            yield each, leaving[each.needs]


def seconds_of(text: str) -> float:
    """``30d`` in seconds; minutes, hours, days, weeks.

    Raises:
        ValueError: it is no such text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip().lower())
    if found is None:
        raise ValueError("write a number with m, h, d or w, for example 30d")
    return float(found[1]) * SPANS[found[2]]


def bytes_of(text: str) -> float:
    """``1GB`` in bytes, a thousand to the step.

    Raises:
        ValueError: it is no such text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if found is None:
        raise ValueError("write a number with kB, MB, GB or TB, for example 1GB")
    return float(found[1]) * BYTES[found[2]]


def span(seconds: float) -> str:
    """``3d``, ``5h``, ``2m``: how long ago, in one figure."""
    for unit, length in sorted(SPANS.items(), key=lambda each: -each[1]):
        if unit != "w" and seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


def _look(run: Run) -> Listed:
    bytes_, age = size_of(run.path), _age(run)
    if not os.access(run.path, os.R_OK | os.X_OK):
        return Listed(run, "unreadable", {}, (), (None, None), bytes_, age)
    problem = None
    try:
        config = saved_config(run)
    except InputError as error:
        config, problem = {}, str(error)
    status = run.status()
    facts = {} if status is None else status.facts
    try:
        rows = run.read_metrics()
    except InputError as error:
        rows, problem = [], problem or str(error)
    parent, source = facts.get("parent"), config.get("init_from")
    return Listed(
        run,
        "damaged" if not config else _state(run),
        config,
        tuple(_launches(run)),
        (_epochs_done(rows), _epochs_asked(config, rows, bool(facts.get("trained")))),
        bytes_,
        age,
        Path(str(source)).name if source else None,
        Path(str(parent)).name if parent else None,
        problem,
    )


def _state(run: Run) -> Condition:
    status = run.status()
    if status is None:
        return "interrupted"
    if status.state == "running":
        return "running" if status.host == socket.gethostname() else "elsewhere"
    return "evaluating" if run.worker() else status.state


def _launches(run: Run) -> Iterator[str]:
    for entry in recorded_launches(run):
        for arm in entry.get("arms") or [""]:
            yield f"{entry.get('table')}/{arm}".rstrip("/")


def _epochs_done(rows: Sequence[Mapping[str, Any]]) -> int:
    return max((int(row["epoch"]) + 1 for row in rows if "epoch" in row), default=0)


def _epochs_asked(
    config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], trained: bool
) -> int | None:
    """Of all phases; a trained run has them in its rows, others are composed for it."""
    if trained and rows:
        return _epochs_done(rows)
    found = validation.check(config)[0] if config else None
    return None if found is None else sum(phase.epochs for phase in found.phases)


def _age(run: Run) -> float:
    """Seconds since its last sign of life; of one without, since its folder changed."""
    status = run.status()
    if status is not None and status.heartbeat:
        return seconds_since(status.finished or status.heartbeat)
    return time.time() - run.path.stat().st_mtime


def _is_meant(run: Listed, choice: Choice) -> bool:
    tables = {each.partition("/")[0] for each in run.launches} | set(run.launches)
    return (
        (not choice.names or any(fnmatchcase(run.name, each) for each in choice.names))
        and (not choice.states or run.state in choice.states)
        and (not choice.tables or bool(tables & set(choice.tables)))
        and (choice.older is None or run.age >= choice.older)
        and (choice.larger is None or run.bytes >= choice.larger)
        and all(_is(run.config, key, many) for key, many in (choice.settings or {}).items())
    )


def _is(config: Mapping[str, Any], key: str, many: Sequence[str]) -> bool:
    return _has(config, key) and any(_equal(value_at(config, key), text) for text in many)


def _equal(value: Any, text: str) -> bool:
    """Whether a value is what a person wrote: a name, a class, a number, enabled, null."""
    value = absent_as_none(value)
    if isinstance(value, Mapping):
        kind = str(value.get(TARGET, "")).rpartition(".")[2].lower()
        return text in ("enabled", value.get("name"), kind, kind.replace("_", ""))
    if value is None:
        return text in ("null", "none", "disabled")
    if isinstance(value, bool):
        return text == str(value).lower()
    if isinstance(value, int | float):
        wanted = Parser().parse(Fraction, text, "")
        return isinstance(wanted, float) and abs(wanted - value) <= 1e-9 * abs(value)
    return text == str(value)


def _has(config: Mapping[str, Any], key: str) -> bool:
    *path, name = key.split(".")
    holder: Any = value_at(config, ".".join(path)) if path else config
    return isinstance(holder, Mapping) and name in holder


def _keys(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, entry in node.items():
            path = f"{key}.{name}" if key else str(name)
            yield path
            yield from _keys(entry, path)
