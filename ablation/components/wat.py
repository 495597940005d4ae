"""Switch: WAT's per-example weights, in the attack and in the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ablation.components.attacks import ADVERSARIAL, pgd_of
from ablation.crafters import AttackWeighted
from ablation.training.method import Component, Method
from ablation.weights import NegativeMargin


@dataclass(frozen=True)
class Wat(Component):
    """Weight the term in the role ``robust``, and all that the attack ascends, by exp(-a m').

    That is CE under AT (AT_base/) and KL under TRADES (TRADES_base/; its inner loop ends before
    the first update by a stray ``break``, which is not copied). Its code attacks in training mode:
    ``attack.bn=train``.

    Args:
        a: of the weight; 0 weighs all alike.
        detach: both weights are constant; the code takes their gradients.
    """

    after: ClassVar[tuple[str, ...]] = ("margin_loss",)  # whose share of the attack it weighs, too

    a: float = 0.5
    detach: bool = False

    def apply(self, method: Method) -> Method:
        """Add both weights."""
        pgd = pgd_of(method, "wat")
        losses = {
            name: replace(entry, loss=AttackWeighted(entry.loss, self.a, self.detach))
            for name, entry in pgd.losses.items()
        }
        method = method.with_weight("robust", NegativeMargin(self.a, self.detach, ADVERSARIAL))
        crafters = {**method.crafters, ADVERSARIAL: replace(pgd, losses=losses)}
        return replace(method, crafters=crafters)
