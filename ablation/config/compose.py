"""Composing configs from ``conf`` with Hydra: one at a time, or many that differ in a few keys.

Imports neither torch nor wandb, so that ``--help`` and shell completion answer quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ablation.config.grafts import Grafts
from ablation.config.hydra_node import option_file_problems, reads_other_files, sets_hydra
from ablation.config.overrides import (
    bare,
    groups,
    key_of,
    letting_in,
    list_problem,
    no_group,
    parsed,
    repository,
)
from ablation.errors import ConfigError
from ablation.text import one_line

OUTSIDE = "only a command line sets keys of Hydra; remove it"
"""Of overrides in table files."""


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve interpolations.

    Raises:
        ConfigError: one of them leads nowhere.
    """
    config = without_hydra(config)
    try:
        container = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([one_line(error)]) from error
    assert isinstance(container, dict)  # noqa: S101
    return {str(key): value for key, value in container.items()}


def without_hydra(config: DictConfig) -> DictConfig:
    """The config without Hydra's own node."""
    if "hydra" not in config:
        return config
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


class Composer:
    """Composes configs that share most of their groups: Hydra is asked as rarely as can be.

    Needs an initialised ``GlobalHydra``.

    Args:
        config_name: the primary config in ``conf``.
    """

    def __init__(self, config_name: str = "config") -> None:
        self._name = config_name
        loader = GlobalHydra.instance().config_loader()
        self._groups = set(groups(loader))
        self._grafts = Grafts(self._base, repository(loader).load_config)
        self._foreign = reads_other_files(loader)

    def is_group(self, text: str) -> bool:
        """Check that an override chooses an option of a group."""
        return key_of(text) in self._groups

    def options(self, group: str) -> list[str]:
        """Names of a group's options, those of plug-ins too."""
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The composed config as plain data.

        Args:
            overrides: in Hydra's grammar, none of them a sweep; later ones win.

        Raises:
            ConfigError: they cannot be composed.
        """
        try:
            choices = tuple(text for text in overrides if self.is_group(text))
            if lists := [problem for text in choices if (problem := list_problem(text))]:
                raise ConfigError(lists)
            if sets := [text for text in overrides if sets_hydra(parsed(text))]:
                raise ConfigError([f"{bare(text)}: {OUTSIDE}" for text in sets])
            if unknown := [each for text in overrides if (each := no_group(text, self._groups))]:
                raise ConfigError(unknown)
            config = self._grafts.config(choices)
            rest = [parsed(letting_in(text)) for text in overrides if not self.is_group(text)]
            with open_dict(config):
                # What compose() itself does with them, without reading the YAML files again.
                ConfigLoaderImpl._apply_overrides_to_config(rest, config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([one_line(error)]) from error
        return to_plain(config)

    @cached_property
    def _own(self) -> DictConfig:
        """The config without a choice, with Hydra's node."""
        return compose(self._name, [], return_hydra_config=True)

    def _base(self, choices: Sequence[str]) -> DictConfig:
        """The composed options; those of other folders may not reach Hydra's node.

        Raises:
            ConfigError: one of them does.
        """
        if not self._foreign:
            return compose(self._name, list(choices))
        composed = compose(self._name, list(choices), return_hydra_config=True)
        if problems := option_file_problems(composed, self._own):
            raise ConfigError(problems)
        return without_hydra(composed)
