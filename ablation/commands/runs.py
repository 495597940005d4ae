"""``ablation-runs``: list, compare, archive and delete runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ablation.commands import cli
from ablation.config.overrides import bare, quoted
from ablation.errors import BAD_INPUT, DONE, JOB_FAILED, InputError
from ablation.output import say, warn
from ablation.text import did_you_mean

if TYPE_CHECKING:
    from ablation.reports.run_list import Choice, Listed
    from ablation.runs.directory import Run

OWN = (
    *("runs_dir", "run", "state", "table", "older", "larger", "where", "diff", "archive"),
    *("delete", "yes", "format", "hydra"),
)
"""Keys of ``conf/runs.yaml``; every other one is a setting of the runs that are meant."""
LISTS = ("run", "state", "table", "diff")
"""Of these, the ones that may be given as ``a,b``, which Hydra would take for a sweep."""


@dataclass(frozen=True)
class RunsConfig:
    """The keys of ``conf/runs.yaml``; see there."""

    runs_dir: str
    run: list[str] | str | None
    state: list[str] | str | None
    table: list[str] | str | None
    older: str | None
    larger: str | None
    where: list[str]
    diff: list[str] | str | None
    archive: str | None
    delete: bool
    yes: bool
    format: Literal["text", "json"]


def parse(container: Mapping[str, Any]) -> tuple[RunsConfig | None, list[str]]:
    """The typed request and every problem in it."""
    from ablation.config.parser import Parser

    parser = Parser()
    found = parser.parse(RunsConfig, dict(container), "")
    if not isinstance(found, RunsConfig):
        return None, parser.problems
    return found, [*parser.problems, *_problems(found)]


def _problems(found: RunsConfig) -> Iterator[str]:
    from ablation.reports.run_list import Condition

    states = get_args(Condition)
    for state in cli.listed(found.state):
        if state not in states:
            yield f"state={state}: no such state; {did_you_mean(state, states)}"
    yield from _choice(found)[1]
    acts = found.delete or found.archive is not None
    if found.diff is not None:
        if len(cli.listed(found.diff)) != 2:
            yield "diff=: give two runs, as diff=<name>,<name>"
        if acts or not _choice(found)[0].is_all:
            yield "diff=: goes with runs_dir= and format= alone"
    elif acts:
        if _choice(found)[0].is_all:
            kind = "delete=true" if found.delete else f"archive={found.archive}"
            yield f"{kind}: say of which runs: state=failed, method=at, run=<name>; run='*' is all"
        if found.format == "json":
            yield "format=json: for lists and diff="
    elif found.yes:
        yield "yes=true: only with delete=true or archive=<place>"


def _choice(found: RunsConfig) -> tuple[Choice, list[str]]:
    """Which runs are meant, and what is wrong with saying so."""
    from ablation.reports.run_list import Choice, bytes_of, seconds_of

    problems, limits = [], dict[str, float | None]()
    for key, read in (("older", seconds_of), ("larger", bytes_of)):
        text = getattr(found, key)
        try:
            limits[key] = None if text is None else read(text)
        except ValueError as error:
            problems.append(f"{key}={text}: {error}")
    settings: dict[str, tuple[str, ...]] = {}
    for text in found.where:
        key, _, value = text.partition("=")
        settings[key.replace("/", ".")] = tuple(cli.listed(value))
    names = tuple(Path(text).name if "/" in text else text for text in cli.listed(found.run))
    choice = Choice(
        names,
        tuple(cli.listed(found.state)),
        tuple(cli.listed(found.table)),
        settings=settings,
        **limits,
    )
    return choice, problems


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return parse(container)[1]


def run(container: Mapping[str, Any]) -> int:
    """List, compare, archive or delete; returns an exit code.

    Raises:
        InputError: something the user gave cannot be used.
    """
    config = cli.sound(parse(container))
    if config.diff is not None:
        return _diff(config)
    from ablation.reports.run_list import choose, listed, table_of

    place = Path(config.runs_dir).expanduser()
    if not place.is_dir():
        raise InputError(f"runs_dir={config.runs_dir}: no such folder")
    every = listed(place)
    meant = choose(every, _choice(config)[0])
    for each in meant:
        if each.problem is not None:
            warn(f"warning: {each.problem}")
    if config.delete or config.archive is not None:
        return _act(config, every, meant)
    if config.format == "json":
        say(json.dumps([each.plain() for each in meant], indent=1))
    else:
        say(table_of(meant) if meant else f"no run in {place} is meant ({len(every)} are there)")
    return DONE


def _diff(config: RunsConfig) -> int:
    from ablation.reports.run_diff import compare

    a, b = (_named(config, text) for text in cli.listed(config.diff))
    found = compare(a, b)
    say(json.dumps(found.plain(), indent=1) if config.format == "json" else found.text())
    return DONE


def _named(config: RunsConfig, text: str) -> Run:
    """A run by its path, its name, or the end of its name.

    Raises:
        InputError: it stands for none, or for several.
    """
    from ablation.runs.directory import Run, find_runs

    path = Path(text).expanduser()
    if (path / "config.yaml").is_file():
        return Run.at(path.resolve())
    runs = list(find_runs(Path(config.runs_dir).expanduser()))
    found = [each for each in runs if each.path.name == text or each.train_id == text]
    if len(found) != 1:
        remedy = did_you_mean(text, [each.path.name for each in runs][:20])
        raise InputError(f"diff={text}: no run in runs_dir={config.runs_dir} is named so; {remedy}")
    return found[0]


def _act(config: RunsConfig, every: Sequence[Listed], meant: Sequence[Listed]) -> int:
    """Archive and delete what may be; the rest is named, with the reason."""
    from ablation.reports.run_list import table_of
    from ablation.runs.archive import archive

    left_out = _kept(every, meant, config.delete)
    chosen = [each for each in meant if each.name not in left_out]
    for name, why in left_out.items():
        warn(f"left out: {name}: {why}")
    if not chosen:
        say("no run is meant that may be touched; nothing was done")
        return DONE if not left_out else JOB_FAILED
    doing = " and then ".join(
        [f"archive to {config.archive}"] * (config.archive is not None) + ["delete"] * config.delete
    )
    say(f"{table_of(chosen)}\nto {doing}")
    if not config.yes and not _agreed(doing):
        return DONE if sys.stdin.isatty() else BAD_INPUT
    kept = None
    if config.archive is not None:
        target = Path(config.archive).expanduser()
        kept = archive([each.run for each in chosen], target)
        say(f"archived {len(chosen)} to {target}, every file verified")
    failed = _delete(chosen, kept) if config.delete else 0
    return JOB_FAILED if failed or left_out else DONE


def _kept(every: Sequence[Listed], meant: Sequence[Listed], delete: bool) -> dict[str, str]:
    """Why runs that are meant stay as they are, by name."""
    from ablation.reports.run_list import AT_WORK, orphans

    why: dict[str, str] = {}
    for each in meant:
        if each.run.path.is_symlink():
            why[each.name] = "a link, which is not followed"
        elif each.state in AT_WORK:
            why[each.name] = f"{each.state}: {each.run.worker() or 'at work'}"
        elif each.state == "unreadable":
            why[each.name] = "it cannot be read; it is somebody else's"
    while delete:
        gone = [each for each in meant if each.name not in why]
        found = {parent.name: child.name for child, parent in orphans(every, gone)}
        if not found:
            break
        why |= {p: f"{c} starts from it (init_from); name that too" for p, c in found.items()}
    if delete:
        names = {each.name for each in meant} - why.keys()
        for each in every:
            if each.parent in names and each.name not in names:
                say(f"note: {each.name} went on from {each.parent}, and does not need it any more")
    return why


def _agreed(doing: str) -> bool:
    """Ask on a terminal."""
    if not sys.stdin.isatty():
        warn("error: nothing was done; add yes=true to do it without being asked")
        return False
    say(f"{doing}? [y/N]")
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("nothing was done")
    return False


def _delete(chosen: Sequence[Listed], kept: Mapping[str, str] | None) -> int:
    """Remove runs; how many stay."""
    from ablation.runs.archive import remove

    failed = 0
    for each in chosen:
        try:
            remove(each.run, kept)
        except InputError as error:
            failed += 1
            warn(f"not deleted: {error}")
    say(f"deleted {len(chosen) - failed} of {len(chosen)}")
    return failed


def take_in(arguments: Sequence[str]) -> list[str]:
    """A command line with the settings of the runs gathered under ``where``."""
    own: list[str] = []
    theirs: list[str] = []
    for text in arguments:
        foreign = cli.foreign(text, OWN) and not text.startswith("~")
        (theirs if foreign else own).append(bare(text) if foreign else cli.as_list(text, LISTS))
    return [*own, f"where={quoted(theirs)}"] if theirs else own


def main() -> None:
    """Console script."""
    sys.argv[1:] = take_in(sys.argv[1:])
    cli.run("runs", run, check)


if __name__ == "__main__":
    main()
