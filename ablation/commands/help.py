"""``--help``: the command's own text, the groups with their options, and every key.

Hydra would copy all it knows for each of two hundred questions, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ablation.config.compose import without_hydra
from ablation.config.overrides import alternatives, groups, repository


def help_text(config_name: str, overrides: Sequence[str], resolve: bool) -> str:
    """What ``--help`` shows: the template of ``conf/hydra/help``, filled in.

    Needs an initialised ``GlobalHydra``.

    Args:
        config_name: the primary config in ``conf``.
        overrides: of the command line, valid; the keys are shown with their values, of a sweep
            those of the first job.
        resolve: interpolations are shown as what they yield.
    """
    first = [alternatives(text)[0] for text in overrides]
    composed = compose(config_name, first, return_hydra_config=True)
    shown = OmegaConf.to_yaml(without_hydra(composed), resolve=resolve)
    return Template(composed.hydra.help.template).substitute(
        APP_CONFIG_GROUPS=_options(), CONFIG=shown
    )


def _options() -> str:
    """``method: at, dyart, ...``: a line for each group that has options, without Hydra's own."""
    loader = GlobalHydra.instance().config_loader()
    known = repository(loader)
    found = {group: known.get_group_options(group) for group in sorted(groups(loader))}
    return "".join(
        f"{group}: {', '.join(names)}\n"
        for group, names in found.items()
        if names and group.split("/")[0] != "hydra"
    )
