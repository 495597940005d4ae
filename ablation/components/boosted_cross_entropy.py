"""Switch: MART's boosted cross-entropy in place of the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ablation import terms
from ablation.numerics.functional import Constants
from ablation.training.method import Component, Method

TERM = "bce"
"""Name of the loss term."""


@dataclass(frozen=True)
class BoostedCrossEntropy(Component):
    """Put ``terms.BoostedCrossEntropy`` in the role ``classify``, on the view of what it replaces.

    That makes LMA-AT's first term of AT's (LMA, eq. 17).

    Args:
        constants: ``exact``, or ``official`` for those of mart.py.
    """

    constants: Constants = "exact"

    def apply(self, method: Method) -> Method:
        """Replace the term."""
        name = method.roles.get("classify", "")
        slot = method.terms.get(name)
        if slot is None or not isinstance(slot.term, terms.CrossEntropy):
            raise ValueError(
                "the method has no cross-entropy in the role classify (MART's is boosted "
                "already); set component/boosted_cross_entropy=disabled"
            )
        new = replace(slot, term=terms.BoostedCrossEntropy(slot.term.view, self.constants))
        entries = {TERM if key == name else key: entry for key, entry in method.terms.items()}
        roles = {role: TERM if key == name else key for role, key in method.roles.items()}
        return replace(method, terms={**entries, TERM: new}, roles=roles)
