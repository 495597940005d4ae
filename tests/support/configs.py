"""Composing a config as the command line does."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir

from ablation.config.compose import to_plain
from ablation.config.experiment import Config
from ablation.config.folders import conf_dir, register_components
from ablation.config.validation import load


def compose_plain(*overrides: str, config_name: str = "config") -> dict[str, Any]:
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return to_plain(compose(config_name, list(overrides)))


def compose_config(*overrides: str) -> Config:
    return load(compose_plain(*overrides))
