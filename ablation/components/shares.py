"""Components that set in late: a share of all epochs, as an epoch of each phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ablation.training.method import Phase
from ablation.types import Weight


def check_share(start: float) -> None:
    """Check a share.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0 <= start < 1:
        raise ValueError(f"start={start:g}: a share of the epochs in [0, 1), as 76/120")


def first_epochs(start: float, phases: Sequence[Phase]) -> list[int]:
    """Find for each phase the epoch, 0-based in it, at which the share ``start`` of all is over.

    At least 0; beyond the phase where that is later.
    """
    first = math.floor(start * sum(phase.epochs for phase in phases) + 1e-9)
    firsts = []
    for phase in phases:
        firsts.append(max(0, first))
        first -= phase.epochs
    return firsts


def weighing_from(start: float, phases: Sequence[Phase], kind: type[Weight]) -> tuple[Phase, ...]:
    """Let the weights of a kind, which have a field ``start``, set in at a share of the epochs."""
    arranged = []
    for phase, first in zip(phases, first_epochs(start, phases), strict=True):
        start_at = phase.counts_from + first
        terms = {
            name: replace(slot, weight=replace(slot.weight, start=start_at))  # type: ignore[type-var]
            if isinstance(slot.weight, kind)
            else slot
            for name, slot in phase.method.terms.items()
        }
        arranged.append(replace(phase, method=replace(phase.method, terms=terms)))
    return tuple(arranged)
