"""The settings of ``hydra/launcher=...``: the YAML files beside this one, and extras they need.

Imports no torch: it runs before every command.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

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
    """
    Plugins.instance()  # plugins store theirs now, not later
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        node = OmegaConf.load(path)
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
