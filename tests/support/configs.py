"""Composing a config as the command line does."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.config.folders import conf_dir, register_components
from ablation.config.hydra_node import reads_other_files
from ablation.config.validation import load


@cache
def _shared(config_name: str) -> Composer:
    return Composer(config_name)


def composer(config_name: str = "config") -> Composer:
    """One a process, which knows what was composed; a new one where others' files are read."""
    foreign = reads_other_files(GlobalHydra.instance().config_loader())
    return Composer(config_name) if foreign else _shared(config_name)


def compose_plain(*overrides: str, config_name: str = "config") -> dict[str, Any]:
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return composer(config_name).plain(overrides)


def compose_config(*overrides: str) -> Config:
    return load(compose_plain(*overrides))
