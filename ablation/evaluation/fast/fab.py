"""FAB towards each target (Croce and Hein, 2020, arXiv:1907.02044), as AutoAttack runs it.

Two departures from its code. The forward that linearises at an iterate also tests it, at half the
forwards; so the boundary is linearised before an iterate goes back, not after (see
``numerics.boundary.fab``). And an example is done with the first misclassified point within eps:
nearer ones would not change its verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ablation.evaluation.attacks import Family, check_positive
from ablation.evaluation.autoattack import FabT
from ablation.evaluation.fast.hunt import FastAttack, Hunt, Streams
from ablation.numerics.boundary import fab_step
from ablation.numerics.functional import lp_norm, true_value
from ablation.types import Norm


def search(hunt: Hunt, target: Tensor, eps: float, norm: Norm, steps: int) -> None:
    """Search the boundary towards a target, from the images of all that are left.

    Args:
        hunt: what is left; broken examples leave it.
        target: class per example, [n].
        eps: radius in pixels.
        norm: of the distance.
        steps: gradients to take; one forward more.
    """
    point = hunt.x
    for _ in range(steps):
        z, gap, gradient = hunt.linearise(point, lambda z, t=target: _lead(z, hunt.y, t))  # type: ignore[misc]
        beyond = z.argmax(1) != hunt.y
        stay = hunt.settle(beyond & _within(hunt, point, eps, norm), z, point)
        if not len(hunt.left):
            return
        grad = gradient()
        if stay is not None:
            point, beyond, gap, grad = point[stay], beyond[stay], gap[stay], grad[stay]
            target = target[stay]
        point = fab_step(hunt.x, point, beyond, gap, grad, norm)
    z = hunt.logits(point)
    hunt.settle((z.argmax(1) != hunt.y) & _within(hunt, point, eps, norm), z, point)


def _lead(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return true_value(z, y) - true_value(z, target)


def _within(hunt: Hunt, point: Tensor, eps: float, norm: Norm) -> Tensor:
    return lp_norm(point - hunt.x, norm) <= eps


@dataclass(frozen=True)
class FastFabT(FastAttack):
    """Search for a boundary point within eps towards each target; as ``FabT``.

    Args:
        n_iter: steps per target.
        targets: classes attacked, at most; capped at the number of wrong classes.
    """

    kind: ClassVar[str] = "fast_fab_t"
    family: ClassVar[Family] = "minimum norm"

    n_iter: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, targets=self.targets)

    def _hunt(self, hunt: Hunt, eps: float, norm: Norm, streams: Streams) -> None:
        for target in hunt.rivals(self.targets).unbind(1):
            if len(hunt.left):
                search(hunt, target[hunt.left], eps, norm, self.n_iter)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        return self._facts(**FabT(self.n_iter, self.targets).describe(eps, classes))
