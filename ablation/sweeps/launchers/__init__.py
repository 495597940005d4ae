"""The settings of ``hydra/launcher=...``: the YAML files beside this one and in plug-ins; extras.

Imports no torch: it runs before every command.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from ablation import plugins
from ablation.config.folders import read_yaml
from ablation.errors import ConfigError

EXTRAS = {
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_ray_launcher", "ray"),
}
"""By launcher: the plugin that has it, and our extra that installs the plugin."""


def register_launchers() -> None:
    """Register our launcher settings in place of those that Hydra and its plugins bring.

    YAML files in ``conf`` could not do that: Hydra would take what its store has under the same
    name for their schema.

    Raises:
        ConfigError: a plug-in's has the name of another, or cannot be read.
    """
    Plugins.instance()  # plugins store theirs now, not later
    ours = Path(__file__).parent
    if problems := plugins.clashes(ours, "launchers", "*.yaml"):
        raise ConfigError(problems)
    found = [ours, *plugins.folders("launchers")]
    for path in sorted(path for folder in found for path in folder.glob("*.yaml")):
        node = OmegaConf.create(read_yaml(path))
        ConfigStore.instance().store(path.stem, node, group="hydra/launcher", provider="ablation")


def missing_extra(launcher: str) -> str | None:
    """Say what to install before a launcher can be used; ``None`` if nothing.

    Args:
        launcher: the option of ``hydra/launcher=``.
    """
    plugin, extra = EXTRAS.get(launcher, ("", ""))
    if not plugin or find_spec(f"hydra_plugins.{plugin}") is not None:
        return None
    return f"hydra/launcher={launcher} is not installed: pip install 'ablation[{extra}]'"
