"""The command line: where ``conf`` lies, composing with every problem at once, exit codes.

Imports neither torch nor wandb, so that ``--help`` and shell completion answer quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.version import setbase
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ablation.commands import flags
from ablation.commands.help import help_text
from ablation.config.compose import to_plain
from ablation.config.folders import (
    conf_dir,
    option_files_problems,
    register_components,
    register_files,
    tables_dirs,
    unread_files,
)
from ablation.config.hydra_node import (
    command_line_problems,
    launcher_problems,
    option_file_problems,
    reads_other_files,
    sets_hydra,
    value_problems,
)
from ablation.config.overrides import crossed, groups, letting_in, readable, sift
from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.output import lasting_output, say, warn
from ablation.plugins import installed
from ablation.sweeps.launchers import missing_extra, register_launchers
from ablation.sweeps.spaces import missing_optuna, search_names
from ablation.sweeps.tables import table_names
from ablation.text import did_you_mean, one_line

T = TypeVar("T")
SWEEPS = ("table=", "search=", "hydra.sweeper.plan=")
"""Beginnings of arguments that ask for a sweep."""
Job = Callable[[Mapping[str, Any]], int]
"""Runs one composed config (plain data) and returns an exit code."""


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
    try:
        register(planned, sys.argv)
    except InputError as error:
        warn(error.told())
        sys.exit(BAD_INPUT)
    if planned and sweeping(sys.argv):
        sys.argv.append("--multirun")
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        if INTERRUPTED not in codes:  # a signal stops a sweep, not only its present job
            codes.append(guarded(job, config))

    try:
        with lasting_output():
            _launch(config_name, task, check, planned)
    except KeyboardInterrupt:
        warn("stopped before anything started")
        sys.exit(INTERRUPTED)
    if len(codes) == 1 or INTERRUPTED in codes:
        sys.exit(codes[-1])
    sys.exit(JOB_FAILED if any(codes) else DONE)


def register(planned: bool, arguments: Sequence[str]) -> None:
    """Tell Hydra of the components, launchers, tables and searches that there are.

    Args:
        planned: multiruns are planned from tables and searches.
        arguments: of the command, whose ``tables_dir=`` has some more.

    Raises:
        InputError: a plug-in is broken, or would hide what another package brings.
    """
    register_components()
    if planned:
        register_launchers()
        folders = [*own_tables(arguments), *tables_dirs()]
        register_files("table", table_names(folders))
        register_files("search", search_names(folders))


def own_tables(arguments: Sequence[str]) -> list[Path]:
    """The folder that ``tables_dir=`` names."""
    given = [text.partition("=")[2] for text in arguments if text.startswith("tables_dir=")]
    return [Path(given[-1]).expanduser()] if given else []


def as_list(text: str, keys: Sequence[str]) -> str:
    """``row=a,b`` as ``row=[a,b]`` for these keys: Hydra would take the commas for a sweep."""
    key, _, value = text.lstrip("+").partition("=")
    plain = key in keys and "," in value and not set("[]()'\"") & set(value)
    return f"{key}=[{value}]" if plain else text


def foreign(text: str, own: Sequence[str]) -> bool:
    """Whether a word of a command line sets a key that is not among the command's own."""
    key = text.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0]
    return "=" in text and key not in own and not text.startswith("-")


def listed(value: Sequence[str] | str | None) -> list[str]:
    """The entries of a key that takes ``a,b`` and ``[a,b]``; none of ``null``."""
    if value is None:
        return []
    texts = value.split(",") if isinstance(value, str) else value
    return [text.strip() for text in texts]


def sound(parsed: tuple[T | None, list[str]]) -> T:
    """The typed request, from it and every problem in it.

    Raises:
        ConfigError: there are problems.
    """
    request, problems = parsed
    if problems or request is None:
        raise ConfigError(problems)
    return request


def sweeping(arguments: Sequence[str]) -> bool:
    """Check that a command line asks for a table, a search or a plan without ``-m``."""
    given, _, _ = flags.split(arguments)
    asked = any(text.startswith(SWEEPS) for text in arguments)
    return asked and not given.multirun and not flags.passive(given)


def _launch(
    config_name: str,
    task: Callable[[DictConfig], None],
    check: Callable[[Mapping[str, Any]], list[str]],
    planned: bool,
) -> None:
    arguments = sys.argv[1:]
    given, overrides, _ = flags.split(arguments)
    if given.version:
        say(f"ablation {version('ablation')}")
        for plugin in installed():
            say(f"plug-in {plugin.distribution} {plugin.version} ({plugin.package})")
        sys.exit(DONE)
    checked = any(text.startswith("++launch=") for text in overrides)  # by the sweeper
    problems = [] if checked else preflight(config_name, arguments, check, planned)
    if problems:
        warn(str(ConfigError(problems)))
        sys.exit(BAD_INPUT)
    let_in = {text: letting_in(text) for text in overrides}
    if given.help:
        with searching(given.config_dir):
            say(help_text(given.config_name or config_name, list(let_in.values()), given.resolve))
        sys.exit(DONE)
    if given.hydra_help:  # of no config
        sys.argv[1:] = ["--hydra-help"]
    elif not given.shell_completion:  # it is about an unfinished line
        kept = [text for text in arguments if text not in let_in]
        sys.argv[1:] = [*kept, *let_in.values()]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(task)()


def guarded(job: Job, config: DictConfig) -> int:
    """Run a job; what the user can act on becomes one message and an exit code."""
    try:
        return job(to_plain(config))
    except InputError as error:
        warn(error.told())
        return BAD_INPUT


def preflight(
    config_name: str,
    arguments: Sequence[str],
    check: Callable[[Mapping[str, Any]], list[str]],
    planned: bool = False,
) -> list[str]:
    """Everything wrong with a command line, without running it; of a sweep, every job is checked.

    Hydra stops at the first unknown key or option. Here wrong options are set aside, unknown keys
    are let in, and the schema then reports all of them together. Jobs of a planned sweep are left
    to its sweeper, and what is only shown need not be right.
    """
    given, texts, problems = flags.split(arguments)
    problems += flags.problems(given, planned)
    if given.multirun and int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        problems.append("torchrun starts one run; for a sweep leave it, and set runtime.devices")
    if given.shell_completion:
        problems += flags.completion_problems(texts)
    if problems or given.hydra_help or given.shell_completion:
        return problems
    overrides, problems = readable(texts)
    problems += command_line_problems(overrides)
    overrides = [each for each in overrides if not command_line_problems([each])]
    with searching(None):
        if unknown := list(_unknown_launchers(texts)):
            return problems + unknown
        foreign = given.config_dir or reads_other_files(GlobalHydra.instance().config_loader())
        settings = [letting_in(str(each.input_line)) for each in overrides if sets_hydra(each)]
        try:
            own = compose(config_name, settings, return_hydra_config=True) if foreign else None
        except (HydraException, OmegaConfBaseException) as error:
            return [*problems, one_line(error)]
    with searching(given.config_dir):
        loader = GlobalHydra.instance().config_loader()
        if given.config_dir and (unread := _own_options(Path(given.config_dir), loader)):
            return problems + unread
        name = given.config_name or config_name
        wrong, alternatives = sift(overrides, loader, name, given.multirun)
        problems += wrong
        problems += [
            f"tables_dir={folder}: no such folder"
            for folder in own_tables(texts)
            if not folder.is_dir()
        ]
        chosen = [t.partition("=")[2] for t in texts if t.startswith("hydra/launcher=")]
        problems += [text for text in map(missing_extra, chosen) if text]
        if any(text.startswith("search=") for text in texts) and (missing := missing_optuna()):
            problems.append(missing)
        if given.multirun and planned:  # its jobs are checked when it is planned
            fixed = [many[0] for many in alternatives if len(many) == 1]
            return problems + _composed(name, fixed, own, lambda _: [])
        shown = flags.passive(given)
        return problems + _of_jobs(name, alternatives, own, (lambda _: []) if shown else check)


def _own_options(folder: Path, loader: ConfigLoader) -> list[str]:
    """What is wrong with the files of a user's config folder, one line each."""
    return option_files_problems(folder, groups(loader)) + unread_files(folder)


def _unknown_launchers(texts: Sequence[str]) -> Iterator[str]:
    known = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    for text in texts:
        group, _, name = text.partition("=")
        if group == "hydra/launcher" and name not in known and not missing_extra(name):
            yield f"{text}: {did_you_mean(name, known)}"


@contextmanager
def searching(folder: str | None) -> Iterator[None]:
    """Hydra with our options and those of a user's folder, as ``--config-dir`` gives them."""
    register_components()
    setbase("1.3")
    path = create_config_search_path(str(conf_dir()))
    if folder is not None:
        place = f"file://{Path(folder).resolve()}"
        path.prepend("command-line", place, SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("app", path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def _of_jobs(
    config_name: str,
    alternatives: Sequence[Sequence[str]],
    own: DictConfig | None,
    check: Callable[[Mapping[str, Any]], list[str]],
) -> list[str]:
    """Problems of every job of a plain sweep; each once, with the jobs that have it."""
    try:
        jobs = crossed(alternatives)
    except HydraException as error:
        return [one_line(error)]
    found: dict[str, list[str]] = {}
    for job in jobs:
        swept = [text for text, many in zip(job, alternatives, strict=True) if len(many) > 1]
        for problem in _composed(config_name, job, own, check):
            found.setdefault(problem, []).append(" ".join(swept).replace("++", ""))
    return [_in_jobs(problem, names, len(jobs)) for problem, names in found.items()]


def _composed(
    config_name: str,
    overrides: Sequence[str],
    own: DictConfig | None,
    check: Callable[[Mapping[str, Any]], list[str]],
) -> list[str]:
    """Problems of one config and of its Hydra node.

    ``own`` has that node without foreign option files, and is ``None`` where none can be read.
    """
    try:
        composed = compose(config_name, list(overrides), return_hydra_config=True)
        problems = value_problems(composed)
        problems += launcher_problems(composed, GlobalHydra.instance().config_loader())
        problems += option_file_problems(composed, own) if own is not None else []
        return problems + check(to_plain(composed))
    except ConfigError as error:
        return list(error.problems)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        return [one_line(error)]


def _in_jobs(problem: str, names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{problem} (in job {names[0]}{more})"
