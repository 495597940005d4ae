"""Claim files: what a paper says of pairs of rows of its tables, beside the table files.

A paper's claims are ``multirun_sweeps/claims/<paper>.yaml``. They need no config of a run and
change no run's identity: they only name rows and columns of tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from ablation.config.folders import read_yaml
from ablation.config.parser import Parser
from ablation.errors import ConfigError, InputError
from ablation.sweeps.published import PublishedTable
from ablation.text import did_you_mean

Direction = Literal["higher", "lower", "equal"]
"""Of the arm's number beside the other's."""
ALL = "all"
"""Every paper."""


@dataclass(frozen=True)
class Change:
    """What differs from a claim's own pair; ``None`` keeps what that has."""

    table: str | None = None
    arm: str | None = None
    against: str | None = None
    metric: str | None = None
    direction: Direction | None = None
    within: float | None = None
    confounded: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two rows of a table and how their numbers should differ.

    Attributes:
        table: that has both.
        arm: key of a row.
        against: key of the row that is subtracted.
        metric: the column.
        direction: of the arm's number beside the other's.
        within: largest difference that still bears the claim out, in the column's unit; ``None``
            means any. "equal" needs it.
        confounded: what else differs between the two rows, so that they decide nothing; or empty.
    """

    table: str
    arm: str
    against: str
    metric: str
    direction: Direction
    within: float | None = None
    confounded: str = ""

    def __post_init__(self) -> None:
        if self.direction == "equal" and self.within is None:
            raise ValueError("direction=equal: say within=<how much>, in the metric's unit")
        if self.within is not None and self.within <= 0:
            raise ValueError(f"within={self.within}: above 0")

    def changed(self, change: Change) -> Pair:
        """The pair with what ``change`` sets."""
        values = {each.name: getattr(change, each.name) for each in fields(change)}
        return replace(self, **{key: value for key, value in values.items() if value is not None})


@dataclass(frozen=True)
class Claim(Pair):
    """A pair, the sentence of ours that it tests, and what else belongs to a claim of a paper.

    Attributes:
        id: unique in a paper.
        says: the sentence.
        place: where the paper says it.
        also: further pairs, each by what differs from the claim's own.
        miniature: by name of a table in miniature, what differs from all pairs there.
        footnotes: known oddities of the published numbers and words.
    """

    id: str = field(kw_only=True)
    says: str = field(kw_only=True)
    place: str = field(kw_only=True)
    also: list[Change] = field(default_factory=list)
    miniature: Mapping[str, Change] = field(default_factory=dict)
    footnotes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Its own pair first."""
        own = Pair(**{each.name: getattr(self, each.name) for each in fields(Pair)})
        return (own, *(own.changed(change) for change in self.also))


@dataclass(frozen=True)
class Miniature:
    """A table that asks a paper's claims in the small.

    Attributes:
        data: data set of its own recipe; pairs of rows on another are not asked there.
        rows: published row -> the miniature's row, where the names differ.
    """

    data: str
    rows: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """The claims of a paper.

    Attributes:
        title: for people.
        claims: in the paper's order.
        miniatures: tables in miniature, by name.
        notes: oddities of the paper as a whole.
    """

    title: str
    claims: list[Claim]
    miniatures: Mapping[str, Miniature] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def tables(self) -> list[str]:
        """The published tables that its claims rest on."""
        return sorted({pair.table for claim in self.claims for pair in claim.pairs})


def paper_names(folders: Sequence[Path]) -> list[str]:
    """Papers with a claim file.

    Args:
        folders: of table files.
    """
    return sorted({path.stem for folder in folders for path in (folder / "claims").glob("*.yaml")})


def load_paper(name: str, folders: Sequence[Path]) -> Paper:
    """Read and check a claim file; the first folder wins.

    Raises:
        InputError: there is none of this name.
        ConfigError: with everything that is wrong with it.
    """
    for folder in folders:
        if name in paper_names([folder]):  # a name, never a path
            return _read(folder / "claims" / f"{name}.yaml")
    raise InputError(f"claims={name}: {did_you_mean(name, [*paper_names(folders), ALL])}")


def _read(path: Path) -> Paper:
    parser = Parser()
    paper = parser.parse(Paper, read_yaml(path), "")
    problems = list(parser.problems)
    if isinstance(paper, Paper):
        problems += _contradictions(paper)
    if problems:
        raise ConfigError([f"claims/{path.name}: {problem}" for problem in problems])
    assert isinstance(paper, Paper)  # noqa: S101
    return paper


def _contradictions(paper: Paper) -> Iterator[str]:
    ids = [claim.id for claim in paper.claims]
    yield from (f"{each} is there twice" for each in sorted(set(ids)) if ids.count(each) > 1)
    for claim in paper.claims:
        for name in sorted(claim.miniature.keys() - paper.miniatures.keys()):
            yield f"{claim.id}.miniature.{name}: {did_you_mean(name, list(paper.miniatures))}"
        try:
            pairs = claim.pairs
            _ = [pair.changed(change) for pair in pairs for change in claim.miniature.values()]
        except ValueError as error:
            yield f"{claim.id}: {error}"
        texts = (claim.id, claim.says, claim.place, *claim.footnotes)
        if not all(text.isprintable() for text in texts):
            yield f"{claim.id}: it is printed in tables, so without control characters"


def unfounded(paper: Paper, published: Mapping[str, PublishedTable | None]) -> list[str]:
    """What claims name that the published tables do not have, one line each.

    Args:
        paper: its claims.
        published: the numbers of each of its tables; ``None`` for a table without a CSV.
    """
    problems = []
    for claim in paper.claims:
        for pair in claim.pairs:
            numbers = published[pair.table]
            cells = {} if numbers is None else numbers.cells
            for key, name in (("arm", pair.arm), ("against", pair.against)):
                place = f"{claim.id}.{key}={name}"
                if name not in cells:
                    remedy = did_you_mean(name, list(cells))
                    problems.append(f"{place}: {pair.table} prints no such row; {remedy}")
                elif pair.metric not in cells[name]:
                    remedy = did_you_mean(pair.metric, list(cells[name]))
                    problems.append(f"{place}: it has no printed {pair.metric}; {remedy}")
    return problems
