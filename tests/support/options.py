"""What ``conf`` offers."""

from __future__ import annotations

from ablation.config.folders import conf_dir
from ablation.testing import completed, component_options, options

__all__ = ["COMPONENTS", "CONF", "completed", "options", "refused"]

CONF = conf_dir()
COMPONENTS = component_options()
NO_ATTACK = dict.fromkeys(
    ("standard", "elsayed", "dyart"),
    (
        *("ema_logits", "gairat", "mail", "margin_loss", "margin_weighted_epsilon"),
        *("mma", "pmhr", "squeeze", "wat", "eps_ramp"),
    ),
)
REFUSED = {
    **NO_ATTACK,
    "mart": ("boosted_cross_entropy", "label_smoothing"),
    "trades": ("mma",),
    "lma_at": ("label_smoothing", "mma", "squeeze"),
    "pmhr_at": ("label_smoothing",),
    "gairat": ("mail", "mma", "squeeze", "wat"),
    "wat": ("gairat", "mail", "mma", "squeeze"),
    "mma": (
        "eps_ramp",
        "gairat",
        "mail",
        "margin_loss",
        "margin_weighted_epsilon",
        "squeeze",
        "wat",
    ),
    "st_at": ("gairat", "margin_loss", "mma", "wat"),
}
"""Components that a method refuses: it has no adversarial images, or has them already, or weighs or
makes them in another way."""


def refused(method: str, component: str) -> bool:
    """Whether the method refuses this option of a component."""
    group, _, variant = component.partition("=")
    return group.removeprefix("component/") in REFUSED.get(method, ()) and variant != "outer"
