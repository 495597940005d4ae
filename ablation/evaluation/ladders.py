"""Reuse verdicts between the radii that AutoAttack is run at.

A point that breaks an image at a radius lies in every larger ball: what is broken at a smaller
radius is broken at a larger one. What none of its parts breaks at a radius is taken to be
robust at every smaller one, after its first part has tried there, too: this is how an attack's
verdict is read anyway, and it saves the parts that cost most. Where the first part breaks such an
image after all, the attack missed it at the larger radius; that is put right and flagged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ablation.evaluation.attacks import Attack
from ablation.evaluation.autoattack import AutoAttackBase
from ablation.evaluation.measures import Measure
from ablation.evaluation.results import Verdict
from ablation.types import Norm


@dataclass(frozen=True)
class Rung:
    """One of the radii that an attack is run at.

    Attributes:
        metric: its name.
        eps: the radius, in pixels.
    """

    metric: str
    eps: float


def ladders(
    attacks: Mapping[str, Attack | Measure], threat: Callable[[Attack], tuple[float, Norm]]
) -> list[list[Rung]]:
    """Group AutoAttacks that differ in their radius (and ``n``) alone, largest radius first.

    Args:
        attacks: metric to attack or measure.
        threat: radius and norm in effect of an attack.
    """
    groups: dict[object, list[Rung]] = {}
    for metric, attack in attacks.items():
        if isinstance(attack, AutoAttackBase):
            eps, norm = threat(attack)
            if eps > 0:
                key = replace(attack, eps=None, norm=norm, n=None)
                groups.setdefault(key, []).append(Rung(metric, eps))
    several = [rungs for rungs in groups.values() if len(rungs) > 1]
    return [sorted(rungs, key=lambda rung: -rung.eps) for rungs in several]


def running_order(metrics: Sequence[str], groups: Sequence[Sequence[Rung]]) -> list[str]:
    """Order metrics so that of a ladder the largest radius runs first; others keep their place."""
    waiting = [iter(rungs) for rungs in groups]
    queues = {
        rung.metric: queue for rungs, queue in zip(groups, waiting, strict=True) for rung in rungs
    }
    return [next(queues[name]).metric if name in queues else name for name in metrics]


def settle(rungs: Sequence[Rung], verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """Count as broken at every larger radius what a smaller one broke, in place.

    Args:
        rungs: of one ladder, largest radius first.
        verdicts: by metric.

    Yields:
        A warning for each radius at which the attack missed an image.
    """
    for i, larger in enumerate(rungs):
        wide = verdicts[larger.metric]
        missed = 0
        for smaller in rungs[i + 1 :]:
            near = verdicts[smaller.metric]
            fallen = wide.robust & (near.broken_by >= 0)
            fallen &= fallen.new_zeros(len(fallen)).index_fill(0, wide.chosen, True)
            wide.robust[fallen] = False
            wide.broken_by[fallen] = near.broken_by[fallen]
            wide.became[fallen] = near.became[fallen]
            missed += int(fallen.sum())
        if missed:
            yield (
                f"{larger.metric}: {missed} of {len(wide.chosen)} images that the attack left "
                "robust are broken at a smaller radius, and count as broken; a sign of masking"
            )
