"""The training attack that a component changes, or takes the place of."""

from __future__ import annotations

from ablation.components.margin_loss import TERM as MARGIN_LOSS
from ablation.crafters import AttackWeighted, Pgd
from ablation.training.method import Method

ADVERSARIAL = "adv"
"""Name of the attack, and of its view."""


def pgd_of(method: Method, component: str) -> Pgd:
    """The method's PGD attack.

    Raises:
        ValueError: it has none.
    """
    crafter = method.crafters.get(ADVERSARIAL)
    if not isinstance(crafter, Pgd):
        raise ValueError(
            f"the method trains on no PGD attack that it could change; set method=at, trades or "
            f"mart, or component/{component}=disabled"
        )
    return crafter


def replaced_pgd(method: Method, component: str) -> Pgd:
    """The method's PGD attack, for a component that puts its own in that place.

    Raises:
        ValueError: there is none, or another component changed it, which would be lost.
    """
    pgd = pgd_of(method, component)
    losses = [entry.loss for entry in pgd.losses.values()]
    lost = {
        "margin_loss": MARGIN_LOSS in pgd.losses,
        "wat": any(isinstance(loss, AttackWeighted) for loss in losses),
        "gairat": pgd.counts,
    }
    remedy = {"margin_loss": "outer"}
    for name in (name for name, is_there in lost.items() if is_there):
        raise ValueError(
            f"it puts an attack of its own in the place of the one that {name} changes; set "
            f"component/{name}={remedy.get(name, 'disabled')} or component/{component}=disabled"
        )
    return pgd


def check_adversarial(method: Method, component: str) -> None:
    """Check that a method has adversarial images to compare the clean ones with.

    Raises:
        ValueError: it has none.
    """
    if ADVERSARIAL not in method.crafters:
        raise ValueError(
            "the method crafts no adversarial images to compare the clean ones with; set "
            f"method=at, trades or mart, or component/{component}=disabled"
        )
