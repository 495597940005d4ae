"""Composing configs from ``conf`` with Hydra: one at a time, or many that differ in a few keys.

Imports neither torch nor wandb, so that ``--help`` and shell completion answer quickly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ablation.config.parser import did_you_mean
from ablation.errors import ConfigError


def conf_dir() -> Path:
    """``conf/`` beside the package in a checkout, or inside it in an installed wheel."""
    return beside("conf", "_conf", "config.yaml")


def sweeps_dir() -> Path:
    """``multirun_sweeps/`` likewise."""
    return beside("multirun_sweeps", "_sweeps", "README.md")


def beside(checkout: str, installed: str, witness: str) -> Path:
    """A folder of the checkout if its witness is there, else its copy in the package."""
    package = Path(__file__).resolve().parents[1]
    found = package.parent / checkout
    return found if (found / witness).is_file() else package / installed


def register_components(conf: Path) -> None:
    """Make ``component: defaults`` list every folder of ``conf/component``, disabled.

    So a new component is one class and its YAML options; no list is edited.
    """
    names = sorted(path.name for path in (conf / "component").iterdir() if path.is_dir())
    node = {"defaults": [{name: "disabled"} for name in names]}
    ConfigStore.instance().store(group="component", name="defaults", node=node)


def register_tables(names: Sequence[str]) -> None:
    """Make every table an option of ``table=``, so that help, completion and typos know it."""
    for name in names:
        node = {"table": name}
        ConfigStore.instance().store(group="table", name=name, node=node, package="_global_")


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve interpolations.

    Raises:
        ConfigError: one of them leads nowhere.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([one_line(error)]) from error
    assert isinstance(container, dict)  # noqa: S101
    return {str(key): value for key, value in container.items() if key != "hydra"}


def read_yaml(path: Path) -> Any:
    """A YAML file as Hydra reads its own, which refuses a key that is there twice.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error


@lru_cache(maxsize=4096)
def parsed(text: str) -> Override:
    """One override.

    Raises:
        HydraException: it is not in Hydra's grammar.
    """
    return OverridesParser.create().parse_override(text)


def key_of(text: str) -> str:
    """``lr`` of ``++lr=0.1``, ``component/awp`` of ``component/awp=enabled``."""
    return str(parsed(text).key_or_group)


class Composer:
    """Composes configs that share most of their groups: Hydra is asked once per choice of groups.

    Needs an initialised ``GlobalHydra``.

    Args:
        config_name: the primary config in ``conf``.
    """

    def __init__(self, config_name: str = "config") -> None:
        self._name = config_name
        self._groups = set(groups(GlobalHydra.instance().config_loader()))
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def is_group(self, text: str) -> bool:
        """Does the override choose an option of a group?"""
        return key_of(text) in self._groups

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The composed config as plain data.

        Args:
            overrides: in Hydra's grammar, none of them a sweep; later ones win.

        Raises:
            ConfigError: they cannot be composed.
        """
        try:
            choices = tuple(text for text in overrides if self.is_group(text))
            if choices not in self._bases:
                self._bases[choices] = compose(self._name, list(choices))
            config = copy.deepcopy(self._bases[choices])
            rest = [parsed(letting_in(text)) for text in overrides if not self.is_group(text)]
            with open_dict(config):
                # What compose() itself does with them, without reading the YAML files again.
                ConfigLoaderImpl._apply_overrides_to_config(rest, config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([one_line(error)]) from error
        return to_plain(config)


def letting_in(argument: str) -> str:
    """``a.b=c`` as ``++a.b=c``: the schema, not the YAML, says which keys exist."""
    if argument[:1] in ("+", "~", "-") or "=" not in argument or argument.startswith("hydra"):
        return argument
    key = argument.split("=")[0]
    is_group = (conf_dir() / key).is_dir() or key == "table" or "/" in key or "@" in key
    return argument if is_group else f"++{argument}"


def alternatives(text: str) -> list[str]:
    """``lr=0.1,0.2`` as ``lr=0.1`` and ``lr=0.2``; anything else as it is.

    Raises:
        HydraException: it is not in Hydra's grammar.
    """
    override = parsed(text)
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        raise HydraException(f"{text}: interval() is no list of values; write {text[:8]}...=1,2")
    key = text.split("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def sift(
    overrides: Sequence[Override], loader: ConfigLoader, multirun: bool, own: Path | None
) -> tuple[list[str], list[list[str]]]:
    """Problems of the overrides themselves; for each usable one its alternatives in a sweep."""
    known_groups = set(groups(loader))
    problems, usable = [], []
    for override in overrides:
        key, text = override.key_or_group, str(override.input_line)
        if override.is_sweep_override() and not multirun:
            problems.append(f"{text}: several values need --multirun (-m)")
            continue
        try:
            many = alternatives(text)
        except HydraException as error:
            problems.append(one_line(error))
            continue
        mine = sorted(path.stem for path in own.glob(f"{key}/*.yaml")) if own else []
        if (key in known_groups or mine) and not override.is_delete():
            known = loader.get_group_options(key) if key in known_groups else []
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


def groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    """Every config group, nested ones included."""
    found = []
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}".lstrip("/")
        found += [path, *groups(loader, path)]
    return found


def one_line(error: Exception) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())
