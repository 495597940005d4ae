"""Switch: squeeze training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ablation import crafters, terms
from ablation.components.attacks import ADVERSARIAL, replaced_pgd
from ablation.components.emr import check_coef
from ablation.training.method import CLEAN, Component, Method, Pass, Slot, before_views
from ablation.types import AttackMode, Fraction

TERM, COLLABORATIVE = "squeeze", "col"
"""Names of the loss term, and of the view of the collaborative examples."""


@dataclass(frozen=True)
class Squeeze(Component):
    """Attack by ``crafters.Squeeze`` and add coef mean ``terms.Squeeze`` (ST-AT; Li et al., 2023).

    ``method=st_at`` is this on the clean cross-entropy. On another method its terms stay, on the
    adversarial examples of this attack; it has the steps, start and norm of the method's own. The
    pass of the collaborative examples leaves BatchNorm's running statistics alone, as in the code.

    Args:
        coef: beta.
        reassigns: ``always`` or ``with_clean``; see ``crafters.Squeeze``.
        bn: mode of the attack; ``attack.bn`` is PGD's.
    """

    after: ClassVar[tuple[str, ...]] = ("gairat", "margin_loss", "mma", "wat")

    coef: Fraction = 6.0
    reassigns: Literal["always", "with_clean"] = "always"
    bn: AttackMode = "train_frozen"

    def __post_init__(self) -> None:
        check_coef(TERM, self.coef)

    def apply(self, method: Method) -> Method:
        """Replace the attack, and add the term and the passes it needs."""
        pgd = replaced_pgd(method, "squeeze")
        if pgd.bn != "eval":
            raise ValueError(f"attack.bn={pgd.bn}: set component.squeeze.bn instead")
        if pgd.start == "clean" and pgd.steps:
            raise ValueError(
                "attack.start=clean: the three points are one, between which nothing diverges; set "
                "attack.start=gaussian or uniform"
            )
        attack = crafters.Squeeze(
            pgd.steps,
            pgd.step_size,
            pgd.start,
            self.bn,
            pgd.norm,
            pgd.start_std,
            self.reassigns,
        )
        method = replace(method, crafters={**method.crafters, ADVERSARIAL: attack})
        method = method.with_crafter(COLLABORATIVE, crafters.Partner(ADVERSARIAL))
        place = before_views(method.passes)
        frozen = Pass("frozen", COLLABORATIVE)
        method = replace(method, passes=(*method.passes[:place], frozen, *method.passes[place:]))
        method = replace(method, roles={"robust": TERM, **method.roles})
        term = terms.Squeeze(CLEAN, COLLABORATIVE, ADVERSARIAL)
        return method.with_term(TERM, Slot(term, self.coef))
