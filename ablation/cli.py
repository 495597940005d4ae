"""The command line: where ``conf`` lies, composing with every problem at once, exit codes.

Imports neither torch nor wandb, so that ``--help`` and shell completion answer quickly.
"""

from __future__ import annotations

import argparse
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

from ablation.errors import BAD_INPUT, DONE, JOB_FAILED, ConfigError, InputError

Job = Callable[[Mapping[str, Any]], int]
"""Runs one composed config (plain data) and returns an exit code."""

PASSIVE = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"),
    *("--shell-completion", "-sc", "--multirun", "-m", "--resolve", "--package", "-p"),
)
"""Flags with which nothing is run at once, or many jobs are: no check before Hydra takes over."""


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
        codes.append(guarded(job, config))

    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] in PASSIVE for argument in arguments):
        problems = preflight(config_name, conf, arguments, check)
        if problems:
            sys.stderr.write(f"{ConfigError(problems)}\n")
            sys.exit(BAD_INPUT)
    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()
    if len(codes) == 1:
        sys.exit(codes[0])
    sys.exit(JOB_FAILED if any(codes) else DONE)


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
    """Everything wrong with a command line, without running it.

    Hydra stops at the first unknown key or option. Here wrong options are set aside, unknown keys
    are let in, and the schema then reports all of them together.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    options, overrides = parser.parse_known_args(list(arguments))
    overrides = [text for text in overrides if not text.startswith("-") or "=" in text]
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        return [_one_line(error)]
    extra = []
    if options.config_dir:
        extra = [f"hydra.searchpath=[file://{Path(options.config_dir).resolve()}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            loader = GlobalHydra.instance().config_loader()
            problems, usable = _sift(parsed, loader)
            container = to_plain(compose(config_name, [*extra, *usable]))
    except ConfigError as error:
        return [*problems, *error.problems]
    except HydraException as error:
        return [*problems, _one_line(error)]
    return problems + check(container)


def _sift(overrides: Sequence[Override], loader: ConfigLoader) -> tuple[list[str], list[str]]:
    """Problems of the overrides themselves, and the usable ones with unknown keys let in."""
    groups = set(_groups(loader))
    problems, usable = [], []
    for override in overrides:
        key, text = override.key_or_group, str(override.input_line)
        if override.is_sweep_override():
            problems.append(f"{text}: several values need --multirun (-m)")
        elif key in groups and not override.is_delete():
            choices = loader.get_group_options(key)
            chosen = override.value()
            wrong = [
                c for c in (chosen if isinstance(chosen, list) else [chosen]) if c not in choices
            ]
            if wrong:
                from ablation.schema import did_you_mean  # here: cheap, but only needed on errors

                problems.append(f"{text}: no such option; {did_you_mean(str(wrong[0]), choices)}")
            else:
                usable.append(text)
        elif text[0] in "+~" or key.startswith("hydra"):
            usable.append(text)
        else:
            usable.append(f"++{text}")
    return problems, usable


def _groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    found = []
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}".lstrip("/")
        found += [path, *_groups(loader, path)]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
