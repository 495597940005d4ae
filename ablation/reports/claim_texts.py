"""Judged claims as text: terminal, Markdown, LaTeX and JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ablation.reports.claim_files import Pair
from ablation.reports.comparison import Cell, Interval
from ablation.reports.latex import as_latex, latex_text
from ablation.reports.statistics import cell_interval
from ablation.reports.text_tables import (
    Group,
    Table,
    Text,
    as_markdown,
    as_terminal,
    decimals_of,
    footnotes,
    interval_text,
    letters,
    markdown_text,
    measured_text,
)
from ablation.reports.verdicts import VERDICTS, JudgedClaim, JudgedPair

MINIATURE = "judged on {title}, which is not the paper's setting"
"""Marks what is judged on a table in miniature."""
LEGEND = (
    "diff: the first minus the other; by seed, by example: paired mean ± half-width of its 95% t "
    "interval (pairs of runs; examples, for these networks as they are), not corrected for the "
    "number of claims. A claim holds where each interval of each of its pairs bears it out"
)
INDENT = " " * 4
WORDS = {"higher": "above", "lower": "below", "equal": "equal to"}


@dataclass(frozen=True)
class Ruling:
    """All that is printed of a paper's claims.

    Attributes:
        paper: its short name.
        title: for people.
        claims: judged.
        miniature: title of the table in miniature they are judged on, or empty.
        table: the one table asked for; ``None`` means the paper's own.
        notes: below everything.
        strict: hide measured numbers with tags.
    """

    paper: str
    title: str
    claims: tuple[JudgedClaim, ...]
    miniature: str = ""
    table: str | None = None
    notes: tuple[str, ...] = ()
    strict: bool = False

    @property
    def name(self) -> str:
        """For folders and labels: ``claims_lma``, ``claims_lma_lma_small``."""
        return "_".join(filter(None, ["claims", self.paper, self.table]))

    @property
    def heading(self) -> str:
        """The title, and what is judged."""
        marked = MINIATURE.format(title=self.miniature)
        return f"{self.title}, {marked}" if self.miniature else self.title

    @property
    def counts(self) -> str:
        """``holds 2, untested 13``."""
        every = [each.verdict for each in self.claims]
        counted = [(every.count(verdict), verdict) for verdict in reversed(VERDICTS)]
        return ", ".join(f"{verdict} {count}" for count, verdict in counted if count)

    @property
    def marks(self) -> Mapping[str, str]:
        """Letters of the footnotes of claims and pairs."""
        return footnotes(
            remark
            for claim in self.claims
            for remark in (*claim.claim.footnotes, *(r for p in claim.pairs for r in remarks(p)))
        )


def remarks(pair: JudgedPair) -> list[str]:
    """Footnotes of a pair; where its printed numbers say otherwise, that comes first."""
    gainsaid = ["the printed numbers do not bear this out"] if pair.printed_so is False else []
    return [*gainsaid, *pair.remarks]


def terminal(ruling: Ruling) -> str:
    """Plain text as wide as the terminal (120 without one)."""
    width = max(40, shutil.get_terminal_size(fallback=(120, 24)).columns)
    lines = [ruling.heading, ruling.counts, ""]
    for claim in ruling.claims:
        head, says, pairs = _told(claim, ruling.marks)
        lines.append(f"{claim.claim.id}: {head}")
        for text in (says, *pairs):
            lines += textwrap.wrap(
                text, width, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False
            )
    return "\n".join([*lines, "", as_terminal(_table(ruling), width)]) + "\n"


def markdown(ruling: Ruling) -> str:
    """GitHub's Markdown: a list of the claims, then a table of their pairs."""
    lines = [f"## {markdown_text(ruling.heading)}", "", f"{ruling.counts}.", ""]
    for claim in ruling.claims:
        head, says, pairs = _told(claim, ruling.marks, "<sup>{}</sup>", markdown_text)
        lines.append(f"- **{markdown_text(claim.claim.id)}: {head}.** {says}")
        lines += [f"  - {pair}" for pair in pairs]
    return "\n".join([*lines, "", as_markdown(_table(ruling))]) + "\n"


def latex(ruling: Ruling) -> str:
    r"""A ``description`` of the claims and floats of their pairs; needs ``booktabs``."""
    lines = [f"% {ruling.heading}", rf"\paragraph{{{latex_text(ruling.heading)}.}}", ""]
    lines += [f"{latex_text(ruling.counts)}.", "", r"\begin{description}"]
    for claim in ruling.claims:
        head, says, pairs = _told(claim, ruling.marks, r"\textsuperscript{{{}}}", latex_text)
        lines.append(rf"\item[{latex_text(claim.claim.id)}] \textbf{{{head}.}} {says}")
        lines += [rf"\\ {pair}" for pair in pairs]
    return "\n".join([*lines, r"\end{description}", "", as_latex(_table(ruling), "")]) + "\n"


def as_json(ruling: Ruling) -> str:
    """Everything that the other formats say, for programs."""
    record = {
        "paper": ruling.paper,
        "title": ruling.title,
        "table": ruling.table,
        "miniature": bool(ruling.miniature),
        "claims": [_claim_record(claim) for claim in ruling.claims],
        "notes": list(ruling.notes),
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _claim_record(claim: JudgedClaim) -> dict[str, Any]:
    return {
        "id": claim.claim.id,
        "says": claim.claim.says,
        "place": claim.claim.place,
        "verdict": claim.verdict,
        "why": claim.why,
        "footnotes": claim.claim.footnotes,
        "pairs": [_pair_record(pair) for pair in claim.pairs],
    }


def _pair_record(judged: JudgedPair) -> dict[str, Any]:
    pair = judged.pair
    arm, against = ({} if p is None else {"printed": p.printed, "ci": p.ci} for p in judged.printed)
    measured = [None if cell is None else cell_interval(cell) for cell in judged.cells]
    return {
        "table": pair.table,
        "arm": pair.arm,
        "against": pair.against,
        "metric": pair.metric,
        "direction": pair.direction,
        "within": pair.within,
        "confounded": pair.confounded,
        "published": {
            "table": judged.source.table,
            "arm": arm,
            "against": against,
            "difference": judged.printed_difference,
            "bears_out": judged.printed_so,
        },
        "measured": {
            "arm": _interval_record(measured[0]),
            "against": _interval_record(measured[1]),
        },
        "difference": {
            "by_seed": _interval_record(judged.by_seed),
            "by_example": _interval_record(judged.by_example),
        },
        "verdict": judged.verdict,
        "why": list(judged.why),
        "remarks": list(judged.remarks),
    }


def _interval_record(interval: Interval | None) -> dict[str, float | int | None] | None:
    if interval is None:
        return None
    return {"mean": interval.mean, "half_width": interval.half, "n": interval.n}


def _told(
    claim: JudgedClaim,
    marks: Mapping[str, str],
    mark: str = "({})",
    escape: Callable[[str], str] = str,
) -> tuple[str, str, list[str]]:
    """A claim's verdict, its sentence with its place and footnotes, and a line for each pair."""
    own = claim.claim
    head = f"{claim.verdict} ({claim.why})" if claim.why else claim.verdict
    at = f" {mark.format(letters(own.footnotes, marks))}" if own.footnotes else ""
    pairs = [escape(_pair_told(each)) for each in claim.pairs]
    return escape(head), f"{escape(f'{own.says} [{own.place}]')}{at}", pairs


def _pair_told(judged: JudgedPair) -> str:
    """``dose_table1, aa: dyart above elsayed``; of a miniature also what it stands for."""
    pair, source = judged.pair, judged.source
    text = f"{pair.table}, {pair.metric}: {pair.arm} {_relation(pair)} {pair.against}"
    return (
        text
        if source == pair
        else f"{text}, for {source.table}'s {source.arm} and {source.against}"
    )


def _relation(pair: Pair) -> str:
    if pair.within is None:
        return WORDS[pair.direction]
    bound = f"within {pair.within:g} of"
    return bound if pair.direction == "equal" else f"{WORDS[pair.direction]}, {bound}"


def _table(ruling: Ruling) -> Table:
    """Numbers and verdicts, a row per pair."""
    marks = ruling.marks
    lines = [(claim, pair) for claim in ruling.claims for pair in claim.pairs]
    stub = tuple(
        (
            Text(claim.claim.id, letters(remarks(pair), marks)),
            Text(pair.pair.table),
            Text(pair.pair.metric),
            Text(pair.verdict),
        )
        for claim, pair in lines
    )
    printed = tuple(
        (
            *(Text("-" if number is None else number.printed) for number in pair.printed),
            Text(pair.printed_difference or "-"),
        )
        for _, pair in lines
    )
    measured = tuple(
        tuple(_measured(cell, ruling.strict) for cell in pair.cells) for _, pair in lines
    )
    by_seed = tuple((_interval(pair, pair.by_seed),) for _, pair in lines)
    by_example = tuple((_interval(pair, pair.by_example),) for _, pair in lines)
    return Table(
        f"{ruling.heading}: the pairs of rows",
        LEGEND,
        ruling.name,
        Group("claim", ("claim", "table", "metric", "verdict"), stub, words=True),
        (
            Group("printed", ("arm", "other", "diff"), printed),
            Group("measured", ("arm", "other"), measured),
            Group("by seed", ("",), by_seed),
            Group("by example", ("",), by_example),
        ),
        {letter: text for text, letter in marks.items()},
        ruling.notes,
    )


def _measured(cell: Cell | None, strict: bool) -> Text:
    return Text("-" if cell is None else measured_text(cell, strict))


def _interval(judged: JudgedPair, interval: Interval | None) -> Text:
    if interval is None:
        return Text("-")
    decimals = min(decimals_of(cell) for cell in judged.cells if cell is not None)
    return Text(interval_text(interval, decimals, str(interval.n), "+"))
