"""What measured runs say of a paper's claims.

A claim is judged by the paired difference of two rows, over seeds and over examples
(``statistics.contrasts``), against the differences that would bear it out: above 0, below 0, or
within so much of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from ablation.reports.cells import unique
from ablation.reports.claim_files import Claim, Miniature, Pair, Paper
from ablation.reports.comparison import Cell, Comparison, Contrast, Interval, Row
from ablation.reports.statistics import cell_interval, contrasts, row_of
from ablation.reports.text_tables import alike, pair_remarks, reasons
from ablation.sweeps.published import Published, PublishedTable

Verdict = Literal["does not hold", "not decidable", "untested", "undecided", "holds"]
VERDICTS: tuple[Verdict, ...] = (
    *("does not hold", "not decidable", "untested", "undecided", "holds"),
)
"""The first of these that a pair of a claim has is the claim's: it holds where all pairs hold."""
NOTHING = 1.0
"""Percent of the images: AutoAttack leaves nothing where it leaves less."""


@dataclass(frozen=True)
class Tested:
    """A table's measured and published numbers.

    Attributes:
        comparison: its runs; ``None`` where there is no run at all.
        published: its CSV; ``None`` for a miniature.
    """

    comparison: Comparison | None
    published: PublishedTable | None = None


@dataclass(frozen=True)
class JudgedPair:
    """A pair of rows and what the runs say.

    Attributes:
        pair: as the table that was run names it.
        source: as the published table names it; equal but in a miniature.
        printed: the arm's number and the other's; ``None`` where the CSV has none.
        cells: the arm's and the other's measured ones; ``None`` where no run is.
        contrast: the paired difference; ``None`` where it cannot be taken.
        verdict: of this pair alone.
        why: what the verdict rests on where that is no interval.
        remarks: tags and warnings of the measured numbers.
    """

    pair: Pair
    source: Pair
    printed: tuple[Published | None, Published | None]
    cells: tuple[Cell | None, Cell | None]
    contrast: Contrast | None
    verdict: Verdict
    why: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def by_seed(self) -> Interval | None:
        """The paired difference over seeds."""
        return None if self.contrast is None else self.contrast.by_seed

    @property
    def by_example(self) -> Interval | None:
        """The paired difference over examples, in percentage points."""
        return None if self.contrast is None else self.contrast.by_example

    @property
    def printed_difference(self) -> str | None:
        """Of the printed numbers, to their digits; ``None`` without both."""
        arm, against = self.printed
        if arm is None or against is None:
            return None
        return f"{Decimal(arm.printed) - Decimal(against.printed):+}"

    @property
    def printed_so(self) -> bool | None:
        """Whether the printed numbers bear the claim out; ``None`` without both."""
        text = self.printed_difference
        return None if text is None else borne_out(self.source, float(text))


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, its pairs, and the verdict that follows from theirs.

    Attributes:
        claim: of the paper.
        pairs: at least one.
    """

    claim: Claim
    pairs: tuple[JudgedPair, ...]

    @property
    def verdict(self) -> Verdict:
        """The first in the order of ``VERDICTS`` that one of its pairs has."""
        return min((each.verdict for each in self.pairs), key=VERDICTS.index)

    @property
    def why(self) -> str:
        """What the verdict rests on, where that is not an interval of all pairs."""
        deciding = [each for each in self.pairs if each.verdict == self.verdict]
        several = len(self.pairs) > 1 and self.verdict != "holds"
        count = [f"{len(deciding)} of {len(self.pairs)} pairs"] if several else []
        return "; ".join([*count, *unique(each.why for each in deciding)])


def borne_out(pair: Pair, difference: float) -> bool:
    """Tell whether a difference without an interval is what a pair claims."""
    near = pair.within is None or abs(difference) <= pair.within
    return near and {"higher": difference > 0, "lower": difference < 0}.get(pair.direction, True)


def side(pair: Pair, interval: Interval) -> Verdict:
    """Hold an interval against the differences that bear a pair out.

    Those are an interval themselves, from 0 or minus ``within`` to 0, ``within`` or any number.
    Wholly inside, without its end at 0: "holds". Wholly outside: "does not hold". Else "undecided".
    """
    half = interval.half
    if half is None:
        return "undecided"
    low, high = interval.mean - half, interval.mean + half
    most = float("inf") if pair.within is None else pair.within
    floor = 0.0 if pair.direction == "higher" else -most
    ceiling = 0.0 if pair.direction == "lower" else most
    if high < floor or low > ceiling:
        return "does not hold"
    if pair.direction == "equal":
        inside = floor <= low and high <= ceiling
    else:
        inside = floor <= low and high <= ceiling and not low <= 0 <= high
    return "holds" if inside else "undecided"


def judge(
    paper: Paper,
    published: Mapping[str, PublishedTable],
    runs: Mapping[str, Comparison | None],
    strict: bool = False,
) -> list[JudgedClaim]:
    """Judge the claims whose tables have been looked at.

    Args:
        paper: its claims.
        published: the numbers of each of its tables.
        runs: the measured tables, by name; a claim with a pair of another table is left out.
        strict: numbers that depart from the table's recipe count as missing.

    Raises:
        InputError: a pair names a row that its table has not.
    """
    found = []
    for claim in paper.claims:
        pairs = [(pair, pair) for pair in claim.pairs]
        if all(pair.table in runs for pair, _ in pairs):
            found.append(_judged(claim, pairs, published, runs, strict))
    return found


def judge_in_miniature(
    paper: Paper,
    name: str,
    published: Mapping[str, PublishedTable],
    comparison: Comparison | None,
    rows: Sequence[str],
    strict: bool = False,
) -> list[JudgedClaim]:
    """Judge the claims that a table in miniature asks: on its data, and with rows of its own.

    Args:
        paper: its claims.
        name: of the miniature.
        published: the numbers of each of the paper's tables.
        comparison: the miniature's runs.
        rows: the miniature's.
        strict: numbers that depart from the miniature's recipe count as missing.
    """
    found = []
    for claim in paper.claims:
        pairs = in_miniature(paper.miniatures[name], name, claim, published)
        if all(row in rows for pair, _ in pairs for row in (pair.arm, pair.against)) and pairs:
            found.append(_judged(claim, pairs, published, {name: comparison}, strict))
    return found


def in_miniature(
    miniature: Miniature, name: str, claim: Claim, published: Mapping[str, PublishedTable]
) -> list[tuple[Pair, Pair]]:
    """A claim's pairs as a miniature names them, each with the published one.

    None where one of them is on other data than the miniature's.
    """
    change = claim.miniature.get(name)
    pairs = []
    for source in claim.pairs:
        if published[source.table].datasets[source.arm] != miniature.data:
            return []
        arm, against = (miniature.rows.get(row, row) for row in (source.arm, source.against))
        pair = Pair(
            *(name, arm, against, source.metric, source.direction),
            within=source.within,
            confounded=source.confounded,
        )
        pairs.append((pair if change is None else pair.changed(change), source))
    return pairs


def _judged(
    claim: Claim,
    pairs: Sequence[tuple[Pair, Pair]],
    published: Mapping[str, PublishedTable],
    runs: Mapping[str, Comparison | None],
    strict: bool,
) -> JudgedClaim:
    judged = []
    for pair, source in pairs:
        cells = published[source.table].cells
        printed = (cells[source.arm][source.metric], cells[source.against][source.metric])
        judged.append(_judged_pair(pair, source, printed, runs[pair.table], strict))
    return JudgedClaim(claim, tuple(judged))


def _judged_pair(
    pair: Pair,
    source: Pair,
    printed: tuple[Published, Published],
    comparison: Comparison | None,
    strict: bool,
) -> JudgedPair:
    if comparison is None:
        confounded = _confounded(pair)
        verdict, why = confounded or ("untested", ("missing",))
        return JudgedPair(pair, source, printed, (None, None), None, verdict, why)
    arm, against = (row_of(comparison.rows, row) for row in (pair.arm, pair.against))
    cells = arm.cells.get(pair.metric), against.cells.get(pair.metric)
    contrast = _contrast(comparison, arm, against, pair.metric)
    verdict, why = _verdict(pair, comparison, (arm, against), contrast, strict)
    notes = [f"published: {each.note}" for each in printed if each.note]
    remarks = unique([notes, _remarks(arm, against, pair.metric, contrast)])
    return JudgedPair(pair, source, printed, cells, contrast, verdict, why, remarks)


def _contrast(comparison: Comparison, arm: Row, against: Row, metric: str) -> Contrast | None:
    """The arm minus the other in one column; ``None`` where one has no sample."""
    two = replace(comparison, columns=(metric,), rows=(arm, against))
    return next(iter(contrasts(two, against.key)), None)


def _verdict(
    pair: Pair,
    comparison: Comparison,
    rows: tuple[Row, Row],
    contrast: Contrast | None,
    strict: bool,
) -> tuple[Verdict, tuple[str, ...]]:
    if confounded := _confounded(pair):
        return confounded
    if comparison.scale == "smoke":
        return "untested", ("smoke runs only",)
    if lacking := _lacking(rows, pair.metric, strict):
        return "untested", lacking
    if contrast is None or contrast.by_seed is None:
        return "untested", ("no two runs that can be paired",)
    if masked := _masked(pair, rows):
        return "not decidable", (masked,)
    intervals = [each for each in (contrast.by_seed, contrast.by_example) if _has_width(each)]
    if not intervals:
        return "undecided", ("a single pair of runs and no record per example: no interval",)
    sides = {side(pair, each) for each in intervals if each is not None}
    return (sides.pop() if len(sides) == 1 else "undecided"), ()


def _confounded(pair: Pair) -> tuple[Verdict, tuple[str, ...]] | None:
    why = (f"confounded: {pair.confounded}",)
    return ("not decidable", why) if pair.confounded else None


def _has_width(interval: Interval | None) -> bool:
    return interval is not None and interval.half is not None


def _lacking(rows: Sequence[Row], metric: str, strict: bool) -> tuple[str, ...]:
    """Which of the rows has no number, and why; nothing if both have."""
    found = []
    for row in rows:
        cell = row.cells.get(metric)
        if cell is None or not cell.samples:
            why = "not evaluated" if cell is None else reasons(cell)
            found.append(f"{row.label}: {why or 'not available'}")
        elif strict and cell.tags:
            found.append(f"{row.label}: hidden ({'; '.join(cell.tags)})")
    return tuple(found)


def _masked(pair: Pair, rows: Sequence[Row]) -> str:
    """Why an APGD-CE accuracy is not to be believed: AutoAttack has the last word on it."""
    if pair.metric != "apgd_ce":
        return ""
    for row in rows:
        apgd = cell_interval(row.cells["apgd_ce"])
        aa = cell_interval(row.cells.get("aa", Cell("aa")))
        if aa is None:
            return f"rests on APGD-CE, and {row.label} has no AutoAttack accuracy beside it"
        if apgd is not None and aa.mean < NOTHING <= apgd.mean:
            return (
                f"rests on APGD-CE, of which AutoAttack leaves nothing in {row.label} "
                f"({apgd.mean:.1f}, {aa.mean:.1f})"
            )
    return ""


def _remarks(arm: Row, against: Row, metric: str, contrast: Contrast | None) -> tuple[str, ...]:
    """Tags, warnings and a single seed."""
    if metric not in arm.cells or metric not in against.cells:
        return ()
    found = [] if contrast is None else pair_remarks(arm, against, metric)
    for row in (arm, against):
        if row.cells[metric].samples:
            found += [f"warning: {row.label}: {flag}" for flag in alike(row.flags)]
    if contrast is not None and contrast.by_seed is not None and contrast.by_seed.n == 1:
        found.append(
            "one seed: the interval is over examples alone, for these networks as they are"
        )
    return tuple(found)
