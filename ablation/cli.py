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
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.schema import did_you_mean

Job = Callable[[Mapping[str, Any]], int]
"""Runs one composed config (plain data) and returns an exit code."""

PASSIVE = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"),
    *("--shell-completion", "-sc", "--resolve", "--package", "-p"),
)
"""Flags with which nothing is run: no check before Hydra takes over."""


def conf_dir() -> Path:
    """``conf/`` beside the package in a checkout, or inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "_conf"


def register_components(conf: Path) -> None:
    """Make ``component: defaults`` list every folder of ``conf/component``, disabled.

    So a new component is one class and its YAML options; no list is edited.
    """
    names = sorted(path.name for path in (conf / "component").iterdir() if path.is_dir())
    node = {"defaults": [{name: "disabled"} for name in names]}
    ConfigStore.instance().store(group="component", name="defaults", node=node)


def run(config_name: str, job: Job, check: Callable[[Mapping[str, Any]], list[str]]) -> None:
    """Main of a console script: compose, check, run; exits with the worst job's code.

    Args:
        config_name: the primary config in ``conf``.
        job: runs one config.
        check: problems of a composed config, one line each; called before anything starts.
    """
    conf = conf_dir()
    register_components(conf)
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        if INTERRUPTED not in codes:  # a signal stops a sweep, not only its present job
            codes.append(guarded(job, config))

    try:
        _launch(config_name, conf, task, check)
    except KeyboardInterrupt:
        sys.stderr.write("stopped before anything started\n")
        sys.exit(INTERRUPTED)
    if len(codes) == 1 or INTERRUPTED in codes:
        sys.exit(codes[-1])
    sys.exit(JOB_FAILED if any(codes) else DONE)


def _launch(
    config_name: str,
    conf: Path,
    task: Callable[[DictConfig], None],
    check: Callable[[Mapping[str, Any]], list[str]],
) -> None:
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] in PASSIVE for argument in arguments):
        problems = preflight(config_name, conf, arguments, check)
        if problems:
            sys.stderr.write(f"{ConfigError(problems)}\n")
            sys.exit(BAD_INPUT)
        sys.argv[1:] = [letting_in(argument) for argument in arguments]
    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()


def letting_in(argument: str) -> str:
    """``a.b=c`` as ``++a.b=c``: the schema, not the YAML, says which keys exist."""
    if argument[:1] in ("+", "~", "-") or "=" not in argument or argument.startswith("hydra"):
        return argument
    key = argument.split("=")[0]
    is_group = (conf_dir() / key).is_dir() or "/" in key or "@" in key
    return argument if is_group else f"++{argument}"


def guarded(job: Job, config: DictConfig) -> int:
    """Run a job; what the user can act on becomes one message and an exit code."""
    try:
        return job(to_plain(config))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve interpolations.

    Raises:
        ConfigError: one of them leads nowhere.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([_one_line(error)]) from error
    assert isinstance(container, dict)  # noqa: S101
    return {str(key): value for key, value in container.items() if key != "hydra"}


def preflight(
    config_name: str,
    conf: Path,
    arguments: Sequence[str],
    check: Callable[[Mapping[str, Any]], list[str]],
) -> list[str]:
    """Everything wrong with a command line, without running it; of a sweep, every job is checked.

    Hydra stops at the first unknown key or option. Here wrong options are set aside, unknown keys
    are let in, and the schema then reports all of them together.
    """
    options, rest = _flags().parse_known_args(list(arguments))
    texts = [text for text in rest if not text.startswith("-")]
    extra = []
    if options.config_dir:
        extra = [f"hydra.searchpath=[file://{Path(options.config_dir).resolve()}]"]
    try:
        parsed = OverridesParser.create().parse_overrides(texts)
    except HydraException as error:
        return [_one_line(error)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        loader = GlobalHydra.instance().config_loader()
        own = Path(options.config_dir) if options.config_dir else None
        problems, alternatives = _sift(parsed, loader, options.multirun, own)
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
        return [_one_line(error)]


def _in_jobs(problem: str, names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{problem} (in job {names[0]}{more})"


def _sift(
    overrides: Sequence[Override], loader: ConfigLoader, multirun: bool, own: Path | None
) -> tuple[list[str], list[list[str]]]:
    """Problems of the overrides themselves; for each usable one its alternatives in a sweep."""
    groups = set(_groups(loader))
    problems, usable = [], []
    for override in overrides:
        key, text = override.key_or_group, str(override.input_line)
        if override.is_sweep_override() and not multirun:
            problems.append(f"{text}: several values need --multirun (-m)")
            continue
        many = [text]
        if override.is_sweep_override():
            name = text.split("=")[0]
            many = [f"{name}={value}" for value in override.sweep_string_iterator()]
        mine = sorted(path.stem for path in own.glob(f"{key}/*.yaml")) if own else []
        if (key in groups or mine) and not override.is_delete():
            known = loader.get_group_options(key) if key in groups else []
            wrong = _unknown_options(override, [*known, *mine])
            problems += [f"{key}={option}: no such option; {remedy}" for option, remedy in wrong]
            if not wrong:
                usable.append(many)
        elif text[0] in "+~" or key.startswith("hydra"):
            usable.append(many)
        else:
            usable.append([f"++{one}" for one in many])
    return problems, usable


def _unknown_options(override: Override, choices: list[str]) -> list[tuple[str, str]]:
    if override.is_sweep_override():
        chosen = [str(value) for value in override.sweep_string_iterator()]
    else:
        value = override.value()
        chosen = [str(entry) for entry in (value if isinstance(value, list) else [value])]
    return [(name, did_you_mean(name, choices)) for name in chosen if name not in choices]


def _groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    found = []
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}".lstrip("/")
        found += [path, *_groups(loader, path)]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
