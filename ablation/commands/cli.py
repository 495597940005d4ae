"""The command line: where ``conf`` lies, composing with every problem at once, exit codes.

Imports neither torch nor wandb, so that ``--help`` and shell completion answer quickly.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from ablation.config.compose import to_plain
from ablation.config.folders import conf_dir, register_components, register_tables, sweeps_dir
from ablation.config.overrides import letting_in, sift
from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.output import lasting_output, warn
from ablation.sweeps.launchers import missing_extra, register_launchers
from ablation.sweeps.tables import table_names
from ablation.text import one_line

Job = Callable[[Mapping[str, Any]], int]
"""Runs one composed config (plain data) and returns an exit code."""

PASSIVE = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"),
    *("--shell-completion", "-sc", "--resolve", "--package", "-p"),
)
"""Flags with which nothing is run: no check before Hydra takes over."""


def run(
    config_name: str,
    job: Job,
    check: Callable[[Mapping[str, Any]], list[str]],
    planned: bool = False,
) -> None:
    """Main of a console script: compose, check, run; exits with the worst job's code.

    Args:
        config_name: the primary config in ``conf``.
        job: runs one config.
        check: problems of a composed config, one line each; called before anything starts.
        planned: multiruns go to the sweeper ``arms``, which plans and checks its jobs itself.
    """
    conf = conf_dir()
    register_components()
    if planned:
        register_launchers()
        register_tables(table_names([*own_tables(sys.argv), sweeps_dir()]))
        if sweeping(sys.argv):
            sys.argv.append("--multirun")
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        if INTERRUPTED not in codes:  # a signal stops a sweep, not only its present job
            codes.append(guarded(job, config))

    try:
        with lasting_output():
            _launch(config_name, conf, task, check, planned)
    except KeyboardInterrupt:
        warn("stopped before anything started")
        sys.exit(INTERRUPTED)
    if len(codes) == 1 or INTERRUPTED in codes:
        sys.exit(codes[-1])
    sys.exit(JOB_FAILED if any(codes) else DONE)


def own_tables(arguments: Sequence[str]) -> list[Path]:
    """The folder that ``tables_dir=`` names."""
    given = [text.partition("=")[2] for text in arguments if text.startswith("tables_dir=")]
    return [Path(given[-1]).expanduser()] if given else []


def sweeping(arguments: Sequence[str]) -> bool:
    """Check that a command line asks for a table or a plan without ``-m``."""
    asked = any(text.startswith(("table=", "hydra.sweeper.plan=")) for text in arguments)
    multirun = any(text in ("-m", "--multirun") for text in arguments)
    return asked and not multirun and not passive(arguments)


def passive(arguments: Sequence[str]) -> bool:
    """Check that Hydra will only show something, as for ``--help``."""
    return any(argument.split("=")[0] in PASSIVE for argument in arguments)


def _launch(
    config_name: str,
    conf: Path,
    task: Callable[[DictConfig], None],
    check: Callable[[Mapping[str, Any]], list[str]],
    planned: bool,
) -> None:
    arguments = sys.argv[1:]
    checked = any(argument.startswith("++launch=") for argument in arguments)  # by the sweeper
    if not passive(arguments):
        problems = [] if checked else preflight(config_name, conf, arguments, check, planned)
        if problems:
            warn(str(ConfigError(problems)))
            sys.exit(BAD_INPUT)
        sys.argv[1:] = [letting_in(argument) for argument in arguments]
    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()


def guarded(job: Job, config: DictConfig) -> int:
    """Run a job; what the user can act on becomes one message and an exit code."""
    try:
        return job(to_plain(config))
    except InputError as error:
        warn(f"error: {error}")
        return BAD_INPUT


def preflight(
    config_name: str,
    conf: Path,
    arguments: Sequence[str],
    check: Callable[[Mapping[str, Any]], list[str]],
    planned: bool = False,
) -> list[str]:
    """Everything wrong with a command line, without running it; of a sweep, every job is checked.

    Hydra stops at the first unknown key or option. Here wrong options are set aside, unknown keys
    are let in, and the schema then reports all of them together. Jobs of a planned sweep are left
    to its sweeper.
    """
    options, rest = _flags().parse_known_args(list(arguments))
    texts = [text for text in rest if not text.startswith("-")]
    extra = []
    if options.config_dir:
        extra = [f"hydra.searchpath=[file://{Path(options.config_dir).resolve()}]"]
    try:
        parsed = OverridesParser.create().parse_overrides(texts)
    except HydraException as error:
        return [one_line(error)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        loader = GlobalHydra.instance().config_loader()
        own = Path(options.config_dir) if options.config_dir else None
        problems, alternatives = sift(parsed, loader, options.multirun, own)
        problems += [
            f"tables_dir={folder}: no such folder"
            for folder in own_tables(texts)
            if not folder.is_dir()
        ]
        chosen = [t.partition("=")[2] for t in texts if t.startswith("hydra/launcher=")]
        problems += [text for text in map(missing_extra, chosen) if text]
        if planned and options.multirun:
            return problems
        jobs = list(itertools.product(*alternatives))
        found: dict[str, list[str]] = {}
        for job in jobs:
            swept = [text for text, many in zip(job, alternatives, strict=True) if len(many) > 1]
            for problem in _composed(options.config_name or config_name, [*extra, *job], check):
                found.setdefault(problem, []).append(" ".join(swept).replace("++", ""))
    return problems + [_in_jobs(problem, names, len(jobs)) for problem, names in found.items()]


def _flags() -> argparse.ArgumentParser:
    """Hydra's flags that matter here, so that their values are not taken for overrides."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--experimental-rerun")
    parser.add_argument("--multirun", "-m", action="store_true")
    return parser


def _composed(
    config_name: str, overrides: list[str], check: Callable[[Mapping[str, Any]], list[str]]
) -> list[str]:
    try:
        return check(to_plain(compose(config_name, overrides)))
    except ConfigError as error:
        return list(error.problems)
    except HydraException as error:
        return [one_line(error)]


def _in_jobs(problem: str, names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{problem} (in job {names[0]}{more})"
