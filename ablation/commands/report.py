"""``ablation-report``: tables beside the published numbers, verdicts on claims, an overview."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.commands import cli
from ablation.config.overrides import bare, key_of
from ablation.config.parser import Parser
from ablation.errors import DONE, InputError
from ablation.reports.publish import ReportConfig, publish
from ablation.sweeps.published import load_published, published_path
from ablation.sweeps.spaces import missing_optuna
from ablation.sweeps.tables import table_path
from ablation.text import did_you_mean

if TYPE_CHECKING:
    from ablation.reports.comparison import Comparison


OWN = (
    *("table", "claims", "search", "row", "runs", "by", "against", "strict", "plots", "out"),
    "dashboard",
    *("examples", "metric"),
    *("extra", "runs_dir", "tables_dir", "overrides", "tracking", "hydra"),
)
"""Keys of ``conf/report.yaml``; every other one belongs to the runs."""
PLAIN = re.compile(r"[\w./~-]+")
"""Paths that Hydra's grammar takes without quotes."""
LISTS = ("row", "runs", "by", "extra", "examples", "claims")
"""Of these, the ones that may be given as ``a,b``, which Hydra would take for a sweep."""


def parse(container: Mapping[str, Any]) -> tuple[ReportConfig | None, list[str]]:
    """The typed request and every problem in it."""
    parser = Parser()
    found = parser.parse(ReportConfig, dict(container), "")
    if not isinstance(found, ReportConfig):
        return None, parser.problems
    problems: list[str] = []
    given = [key for key in ("table", "search", "runs") if getattr(found, key) is not None]
    if not given and found.claims is None:
        problems += _beside_the_overview(found)
    if found.claims is not None:
        problems += _beside_claims(found)
    if len(given) > 1:
        problems.append(f"{' and '.join(f'{key}=' for key in given)}: give one of them")
    if found.search is not None and (missing := missing_optuna()):
        problems.append(missing)
    if found.examples is not None and len(cli.listed(found.examples)) != 2:
        problems.append("examples=: give two rows, as examples=at,trades")
    if found.search is not None and found.examples is not None:
        problems.append("examples=: not with search=, whose trials see no test images")
    if found.metric is not None and found.examples is None:
        problems.append("metric=: only with examples=<row>,<row>, whose attack it is")
    if found.dashboard and found.table is None:
        problems.append("dashboard=true: only with table=; W&B finds the runs by the table's tag")
    if found.tracking.backend != "wandb":
        problems.append(
            f"tracking.backend={found.tracking.backend}: a report goes to W&B alone; leave it out"
        )
    if found.runs is not None and found.overrides:
        problems.append(
            f"{' '.join(found.overrides)}: not with runs=, which takes runs as they are"
        )
    return found, problems


def _beside_the_overview(found: ReportConfig) -> Iterator[str]:
    """What was given without saying of which runs."""
    for text in found.overrides:
        remedy = did_you_mean(key_of(text), OWN)
        yield f"{bare(text)}: only with table=, claims= or search=; {remedy}"
    for key in ("row", "against", "examples"):
        if getattr(found, key) is not None:
            yield f"{key}=: only with table=<name> or runs=<folder>"
    if found.strict:
        yield "strict=true: only with table=<name> or claims=<paper>"


def _beside_claims(found: ReportConfig) -> Iterator[str]:
    """What does not go with claims, which name their rows and tables themselves."""
    for key in ("search", "runs", "row", "against", "examples"):
        if getattr(found, key) is not None:
            yield f"{key}=: not with claims=, which name their rows themselves"
    if found.dashboard:
        yield "dashboard=true: not with claims="
    if found.table is not None and cli.listed(found.claims) == ["all"]:
        yield "claims=all: not with table=, on which one paper's claims rest; claims=<paper>"


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return parse(container)[1]


def run(container: Mapping[str, Any]) -> int:
    """Print and write a report; returns an exit code.

    Raises:
        InputError: something the user gave cannot be used.
    """
    config = cli.sound(parse(container))
    if config.search is not None:
        _report_search(config, config.search)
        return DONE
    if config.claims is not None:
        _report_claims(config)
        return DONE
    if config.table is None and config.runs is None:
        _report_overview(config)
        return DONE
    from ablation.reports.seconds import with_extra

    comparison = _of_runs(config) if config.table is None else _of_table(config)
    extra = config.extra if isinstance(config.extra, list) else [config.extra]
    publish(with_extra(comparison, extra), config)
    return DONE


def _of_runs(config: ReportConfig) -> Comparison:
    from ablation.reports.groups import compare_runs
    from ablation.runs.directory import find_runs

    paths: list[Path] = []
    for text in cli.listed(config.runs):
        places = [Path(found) for found in sorted(glob(str(Path(text).expanduser())))]  # noqa: PTH207 (a path may be absolute)
        if not any(place.is_dir() for place in places):
            raise InputError(f"runs={text}: no such folder")
        for place in places:
            inside = (found.path for found in find_runs(place, damaged=True))
            # A folder of runs, or a run, also one that lost its config.yaml.
            traces = ("config.yaml", "status.json", "evaluations")
            is_run = any((place / name).exists() for name in traces)
            paths += [place] if is_run else inside
    return compare_runs(
        paths, cli.listed(config.by), f"runs in {', '.join(cli.listed(config.runs))}"
    )


def _of_table(config: ReportConfig) -> Comparison:
    from ablation.reports.table import compare_table
    from ablation.sweeps.planning import choose_rows
    from ablation.sweeps.request import open_table, table_folders

    name, folders = str(config.table), table_folders(config.tables_dir)
    table = open_table(name, config.tables_dir)
    source = published_path(table_path(name, folders))
    rows = None if config.row is None else choose_rows(table, cli.listed(config.row))
    with cli.searching(None):
        published = load_published(source) if source else None
        place = Path(config.runs_dir).expanduser()
        return compare_table(name, table, published, place, config.overrides, rows)


def _report_claims(config: ReportConfig) -> None:
    from ablation.reports.claims import publish_claims

    with cli.searching(None):
        publish_claims(
            cli.listed(config.claims),
            config.table,
            Path(config.runs_dir).expanduser(),
            config.out,
            config.overrides,
            config.tables_dir,
            config.strict,
        )


def _report_overview(config: ReportConfig) -> None:
    from ablation.reports.overview import publish_overview

    with cli.searching(None):
        publish_overview(Path(config.runs_dir).expanduser(), config.tables_dir)


def _report_search(config: ReportConfig, name: str) -> None:
    from ablation.config.overrides import quoted
    from ablation.reports.search import publish_search
    from ablation.sweeps.search import read_search

    places = {"search": name, "runs_dir": config.runs_dir, "tables_dir": config.tables_dir}
    given = [
        f"{key}={value if PLAIN.fullmatch(value) else quoted(value)}"
        for key, value in places.items()
        if value is not None
    ]
    with cli.searching(None):
        publish_search(read_search([*config.overrides, *given]), config.out, config.plots)


def take_in(arguments: Sequence[str]) -> list[str]:
    """A command line with the keys that belong to the runs gathered under ``overrides``."""
    from ablation.config.overrides import quoted

    own: list[str] = []
    theirs: list[str] = []
    for text in arguments:
        foreign = cli.foreign(text, OWN)
        text = text if foreign else cli.as_list(text, LISTS)
        (theirs if foreign or text.startswith("~") else own).append(text)
    return [*own, f"overrides={quoted(theirs)}"] if theirs else own


def main() -> None:
    """Console script."""
    sys.argv[1:] = take_in(sys.argv[1:])
    cli.run("report", run, check)


if __name__ == "__main__":
    main()
