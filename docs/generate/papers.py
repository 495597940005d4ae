"""A page for each paper, and one for the tables that no paper has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ablation.config.folders import sweeps_dir
from ablation.reports.claim_files import Paper, load_paper
from ablation.sweeps.published import PublishedTable, load_published, published_path
from ablation.sweeps.tables import Table
from docs.generate import cost, facts
from docs.generate.markdown import (
    block,
    code,
    comment,
    escaped,
    joined,
    page,
    prose,
    section,
    table,
)
from docs.generate.parts import paper_of

ROOT = Path(__file__).parents[2]
PAPERS = ("dose", "emr", "lma", "mwpb")
OWN = "own"
COST = (
    "Hours are those of a table from scratch on one H100, counted from FLOPs: right to about a "
    "factor of three. Tables share runs, which are trained once. `ablation-report` has the hours "
    "on your machine, and what is done."
)


@cache
def references() -> Mapping[str, Any]:
    """The papers of the citation file by page."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    return {entry["abbreviation"].lower(): entry for entry in citation["references"]}


def paper_page(name: str) -> str:
    """The page of a paper."""
    entry = references()[name]
    authors = [
        each.get("name") or f"{each['given-names']} {each['family-names']}"
        for each in entry["authors"]
    ]
    names = tables_of(name)
    return page(
        entry["abbreviation"],
        f"*{escaped(entry['title'])}*, {', '.join(authors)}. {entry.get('notes', '')}".strip(),
        section("Tables", _tables(names), COST),
        section("Measured", _measured(name)),
        section("Claims", *_claims(name)),
        *(_table(each, facts.tables()[each]) for each in names),
    )


def own_page() -> str:
    """The page of the tables that belong to no paper."""
    names = tables_of(OWN)
    return page(
        "Tables of no paper",
        section("Tables", _tables(names), COST),
        *(_table(each, facts.tables()[each]) for each in names),
    )


def tables_of(paper: str) -> list[str]:
    """Its table files: the printed ones in order, then the controls."""
    names = [name for name in facts.tables() if paper_of(name) == paper]
    return sorted(names, key=lambda name: (not _number(name), _number(name), name))


def _number(name: str) -> int:
    """12 of ``lma_table12``; 0 of a table that is not printed."""
    digits = name.partition("_table")[2]
    return int(digits) if digits else 0


def _tables(names: Sequence[str]) -> str:
    estimates = cost.recorded()
    rows = [
        [
            f"[{code(name)}](#{name})",
            escaped(facts.tables()[name].title),
            str(len(facts.tables()[name].lines())),
            str(estimates[name].runs),
            f"{estimates[name].hours:g}",
        ]
        for name in names
    ]
    return table(["table", "is", "rows", "runs", "hours on an H100"], rows)


def _measured(name: str) -> str:
    if not (ROOT / "docs" / "results" / f"{name}.md").exists():
        return "Nothing yet."
    return f"What was run, what came out and what differs: [results](../results/{name}.md)."


def _claims(name: str) -> Iterator[str]:
    """The claims of a paper, each with the pairs that decide it."""
    paper: Paper = load_paper(name, [sweeps_dir()])
    yield "Each is judged on pairs of rows by paired intervals: [how](../claims.md)."
    yield block(f"ablation-report claims={name}")
    rows = [
        [
            code(claim.id.removeprefix(f"{name}_")),
            escaped(claim.says),
            escaped(claim.place),
            "; ".join(
                f"[{code(pair.table)}](#{pair.table}): {code(pair.arm)} {pair.direction} than "
                f"{code(pair.against)}, {pair.metric}".replace("equal than", "equal to")
                for pair in claim.pairs
            ),
        ]
        for claim in paper.claims
    ]
    yield table(["claim", "says", "where", "pairs"], rows)
    yield "\n".join(f"- {escaped(note)}" for note in paper.notes)


def _table(name: str, found: Table) -> str:
    """A table file: why it is as it is, how to run it, its rows beside the printed numbers."""
    path = sweeps_dir() / f"{name}.yaml"
    source = published_path(path)
    commands = [f"ablation-train table={name}", f"ablation-report table={name}"]
    common = " ".join(code(text) for text in found.set) or "nothing"
    seeds = ", ".join(f"{key} {', '.join(map(str, values))}" for key, values in found.axes.items())
    return section(
        f"{escaped(found.title)} {{: #{name} }}",
        prose(comment(path)),
        block(*commands),
        f"Every row sets {common}" + (f"; each is run with {seeds}." if seeds else "."),
        _rows(found),
        *([] if source is None else _printed(load_published(source))),
        _unavailable(found),
    )


def _rows(found: Table) -> str:
    rows = []
    for name, arm in found.arms.items():
        sets = " ".join(code(text) for text in arm.set)
        if arm.source is not None:
            sets = f"the best {arm.source.top} of {code(arm.source.arm)}, then {sets}"
        rows.append([code(name), escaped(arm.label or name), sets])
    return table(["row", "is", "sets"], rows)


def _printed(numbers: PublishedTable) -> Iterator[str]:
    """The numbers of the paper."""
    yield "As printed:"
    rows = []
    for key, cells in numbers.cells.items():
        texts = [
            "" if metric not in cells
            else cells[metric].printed + (f" ±{cells[metric].ci}" if cells[metric].ci else "")
            for metric in numbers.columns
        ]  # fmt: skip
        rows.append([code(key), *texts])
    yield table(["row", *map(escaped, numbers.columns)], rows)


def _unavailable(found: Table) -> str:
    rows = [[code(name), joined(why)] for name, why in found.unavailable.items()]
    return table(["row that cannot be trained", "because"], rows) if rows else ""


def pages() -> dict[str, str]:
    """Every page of this module by its place in the site."""
    found = {f"papers/{name}.md": paper_page(name) for name in PAPERS}
    rows = [
        [f"[{references()[name]['abbreviation']}]({name}.md)", escaped(references()[name]["title"])]
        for name in PAPERS
    ]
    rows.append([f"[others]({OWN}.md)", "tables of no paper"])
    listed = table(["paper", "title"], rows)
    return found | {
        f"papers/{OWN}.md": own_page(),
        "papers/index.md": page("Papers", "Their tables, rows and claims.", listed),
    }
