"""AutoAttack of our own attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ablation.evaluation.attacks import Attack, Family
from ablation.evaluation.autoattack import AutoAttackBase
from ablation.evaluation.fast.apgd import FastApgdCe, FastApgdDlr, FastApgdT
from ablation.evaluation.fast.fab import FastFabT
from ablation.evaluation.fast.hunt import Search
from ablation.evaluation.fast.square import FastSquare


@dataclass(frozen=True)
class FastAutoAttack(AutoAttackBase):
    """Run our APGD-CE, APGD-T, FAB-T and Square, with the reference's settings and fall-backs.

    Args:
        search: precision of the search; see ``FastAttack``.
    """

    kind: ClassVar[str] = "fast_auto_attack"
    family: ClassVar[Family] = "ensemble"

    search: Search = field(default="fp32", kw_only=True)

    def _all(self) -> Mapping[str, Attack]:
        return {
            "apgd_ce": FastApgdCe(self.n_iter, search=self.search),
            "apgd_dlr": FastApgdDlr(self.n_iter, search=self.search),
            "apgd_t": FastApgdT(self.n_iter, self.targets, search=self.search),
            "fab_t": FastFabT(self.n_iter, self.targets, search=self.search),
            "square": FastSquare(self.queries, search=self.search),
        }

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        return {
            **super().describe(eps, classes),
            "implementation": "fast",
            "search": self.search,
        }
