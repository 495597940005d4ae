"""What ``conf`` offers."""

from __future__ import annotations

import yaml

import ablation.components
from ablation.config.folders import conf_dir

CONF = conf_dir()


EVALUATED = ("torch_module",)
"""Options that ``ablation-evaluate`` alone takes."""


def options(group: str) -> list[str]:
    """Those that a training may choose."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [name for name in names if name not in EVALUATED]


COMPONENTS = [
    f"component/{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("component/*/*.yaml"))
    if path.stem != "disabled"
]


def completed(override: str) -> list[str]:
    """The override, and those that enable what its component requires."""
    if not override.startswith("component/"):
        return [override]
    group = override.partition("=")[0]
    nodes = [yaml.safe_load(path.read_text()) for path in (CONF / group).glob("*.yaml")]
    target = next(node["_target_"] for node in nodes if "_target_" in node)
    required = getattr(getattr(ablation.components, target.rpartition(".")[2]), "requires", ())
    if override == "component/closed_form_gradient=dyart":  # its filter is for searched points
        required = (*required, "fab_margin")
    more = ["optim.weight_decay=0"] if group == "component/pmhr" else []  # it has its own
    return [*(f"component/{name}=enabled" for name in required), override, *more]


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
