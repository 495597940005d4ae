"""A paper's claims to the terminal and to files: which tables to look at, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ablation.errors import ConfigError, InputError
from ablation.output import say
from ablation.reports import claim_texts
from ablation.reports.claim_files import ALL, Paper, load_paper, paper_names, unfounded
from ablation.reports.claim_texts import Ruling
from ablation.reports.comparison import Comparison
from ablation.reports.table import compare_table
from ablation.reports.verdicts import in_miniature, judge, judge_in_miniature
from ablation.runs.directory import find_runs
from ablation.sweeps.planning import choose_rows
from ablation.sweeps.published import PublishedTable, load_published, published_path
from ablation.sweeps.request import open_table, table_folders
from ablation.sweeps.tables import table_path


def publish_claims(
    names: Sequence[str],
    table: str | None,
    runs_dir: Path,
    out: str,
    cli: Sequence[str] = (),
    tables_dir: str | None = None,
    strict: bool = False,
) -> None:
    """Judge the claims of papers, print the verdicts, and write them to ``<out>/claims_<paper>``.

    Args:
        names: of papers, or ``all``.
        table: the one table to judge by; ``None`` means those that the claims rest on.
        runs_dir: where the runs are.
        out: folder of the folders.
        cli: overrides that the runs were launched with.
        tables_dir: the user's own table files.
        strict: numbers that depart from a table's recipe count as missing.

    Raises:
        InputError: there is no such paper or table, or the folder cannot be written.
        ConfigError: a claim file, or a table with these overrides, has problems.
    """
    folders = table_folders(tables_dir)
    wanted = paper_names(folders) if ALL in names else list(dict.fromkeys(names))
    papers = {name: load_paper(name, folders) for name in wanted}
    if table is not None:
        _check_table(table, papers)
    for name, paper in papers.items():
        bench = _Bench(paper, runs_dir, tuple(cli), tables_dir, strict)
        ruling = bench.ruling(name, table)
        say(claim_texts.terminal(ruling))
        _write(ruling, out)


def _check_table(table: str, papers: dict[str, Paper]) -> None:
    """Refuse a table that one of the papers has no claim on.

    Raises:
        InputError: it is such a table.
    """
    for name, paper in papers.items():
        known = [*paper.tables(), *paper.miniatures]
        if table not in known:
            raise InputError(
                f"table={table}: no claim of {name} rests on it; choose from {', '.join(known)}"
            )


def _write(ruling: Ruling, out: str) -> None:
    folder = Path(out).expanduser() / ruling.name
    texts = {
        "claims.md": claim_texts.markdown(ruling),
        "claims.tex": claim_texts.latex(ruling),
        "claims.json": claim_texts.as_json(ruling),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
    except OSError as error:
        raise InputError(
            f"out={out}: {folder} cannot be written ({error.strerror or error}); "
            f"set out=<another folder>"
        ) from error
    say(f"written to {folder}: {', '.join(texts)}")


class _Bench:
    """Judges one paper.

    Args:
        paper: its claims.
        runs_dir: where the runs are.
        cli: overrides that the runs were launched with.
        tables_dir: the user's own table files.
        strict: numbers that depart from a table's recipe count as missing.

    Raises:
        ConfigError: the claims name what their tables do not have.
    """

    def __init__(
        self,
        paper: Paper,
        runs_dir: Path,
        cli: tuple[str, ...],
        tables_dir: str | None,
        strict: bool,
    ) -> None:
        self._paper, self._runs_dir, self._cli = paper, runs_dir, cli
        self._tables_dir, self._strict = tables_dir, strict
        self._ran = any(True for _ in find_runs(runs_dir))
        numbers = {name: self._published(name) for name in paper.tables()}
        if problems := unfounded(paper, numbers):
            raise ConfigError(problems)
        self._numbers = {name: each for name, each in numbers.items() if each is not None}

    def ruling(self, name: str, table: str | None) -> Ruling:
        """Judge its claims: all, those on one table, or those that a miniature asks."""
        if table in self._paper.miniatures:
            return self._in_miniature(name, str(table))
        tables = self._paper.tables() if table is None else [table]
        runs = {each: self._compared(each, self._rows(each)) for each in tables}
        claims = judge(self._paper, self._numbers, runs, self._strict)
        how = [
            f"in miniature: ablation-report claims={name} table={small}"
            for small in self._paper.miniatures
            if table is None
        ]
        notes = (*self._paper.notes, *self._notes(runs), *how)
        return Ruling(name, self._paper.title, tuple(claims), "", table, notes, self._strict)

    def _in_miniature(self, name: str, table: str) -> Ruling:
        small = open_table(table, self._tables_dir)
        keys = [row.key for row in small.lines()]
        pairs = [
            pair
            for claim in self._paper.claims
            for pair, _ in in_miniature(self._paper.miniatures[table], table, claim, self._numbers)
        ]
        asked = {row for pair in pairs for row in (pair.arm, pair.against)} & {*keys}
        runs = {table: self._compared(table, sorted(asked))}
        claims = judge_in_miniature(
            self._paper, table, self._numbers, runs[table], keys, self._strict
        )
        left = [each.id for each in self._paper.claims if each not in [c.claim for c in claims]]
        notes = (*self._paper.notes, *self._notes(runs))
        notes += (f"not asked in {table}: {', '.join(left)}",) if left else ()
        title = self._paper.title
        return Ruling(name, title, tuple(claims), small.title, table, notes, self._strict)

    def _published(self, table: str) -> PublishedTable | None:
        open_table(table, self._tables_dir)
        source = published_path(table_path(table, table_folders(self._tables_dir)))
        return None if source is None else load_published(source)

    def _rows(self, table: str) -> list[str]:
        """Rows of a table that claims name."""
        pairs = [pair for claim in self._paper.claims for pair in claim.pairs]
        named = [row for p in pairs if p.table == table for row in (p.arm, p.against)]
        return list(dict.fromkeys(named))

    def _compared(self, name: str, rows: Sequence[str]) -> Comparison | None:
        """Some rows of a table; ``None`` without any run, as planning takes seconds."""
        if not self._ran:
            return None
        table = open_table(name, self._tables_dir)
        numbers = self._numbers.get(name)
        arms = choose_rows(table, [row for row in rows if row not in table.unavailable])
        return compare_table(name, table, numbers, self._runs_dir, self._cli, arms)

    def _notes(self, runs: dict[str, Comparison | None]) -> Iterator[str]:
        """Which runs are looked at, by table."""
        if not self._ran:
            yield f"no runs in {self._runs_dir}"
        for name, comparison in runs.items():
            yield from (f"{name}: {note}" for note in (comparison.notes if comparison else ()))
