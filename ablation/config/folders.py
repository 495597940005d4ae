"""Where ``conf`` and the table files lie, and what Hydra's store is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ablation.errors import ConfigError


def conf_dir() -> Path:
    """``conf/`` beside the package in a checkout, or inside it in an installed wheel."""
    return beside("conf", "_conf", "config.yaml")


def sweeps_dir() -> Path:
    """``multirun_sweeps/`` beside the package, or its copy in an installed wheel."""
    return beside("multirun_sweeps", "_sweeps", "README.md")


def beside(checkout: str, installed: str, witness: str) -> Path:
    """A folder of the checkout if its witness is there, else its copy in the package."""
    package = Path(__file__).resolve().parents[1]
    found = package.parent / checkout
    return found if (found / witness).is_file() else package / installed


@lru_cache(maxsize=1)
def component_names() -> list[str]:
    """Every component that ``conf/component`` has a folder for."""
    return sorted(path.name for path in (conf_dir() / "component").iterdir() if path.is_dir())


def register_components() -> None:
    """Make ``component: defaults`` list every folder of ``conf/component``, disabled.

    So a new component is one class and its YAML options; no list is edited.
    """
    node = {"defaults": [{name: "disabled"} for name in component_names()]}
    ConfigStore.instance().store(group="component", name="defaults", node=node)


def register_tables(names: Sequence[str]) -> None:
    """Make every table an option of ``table=``, so that help, completion and typos know it."""
    for name in names:
        node = {"table": name}
        ConfigStore.instance().store(group="table", name=name, node=node, package="_global_")


def read_yaml(path: Path) -> Any:
    """A YAML file as Hydra reads its own, which refuses a key that is there twice.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error
