"""Bisection: the point of the decision boundary in a direction that another crafter found (MMA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ablation.numerics.functional import bisect, per_sample, soft_margin_loss
from ablation.types import AttackMode, Crafted, Fraction, MemorySpec, Views

RADIUS = "mma_radius"
"""The memory: for each training image the radius of its last search, 0 if it was misclassified."""


@dataclass(frozen=True)
class Bisection:
    """x + r u for correctly classified samples, u towards another view, and x itself for the rest.

    The second half of MMA's AN-PGD (anpgd.py; Ding et al., 2020, section 3): an attack within the
    radius eps_i remembered of each sample gave a point; on the ray to it the distance at which
    log sum_{j != y} exp(z_j) - z_y turns positive is bisected, from eps_i on. "Correct" is
    p_y > 1/2 in the train-mode pass of the clean images, as trainer.py has it, not the argmax.

    ``aux``, per sample [N]: ``radius`` (0 where misclassified), ``correct``, and ``counted``,
    whether MMA's loss counts it: all but the correct ones at ``d_max`` or beyond. ``radius`` is
    recorded, and as ``radius_floor`` with the minimum in place of 0: which of the two MMA's mean
    radius is of is open.

    trainer.py bisects in training mode, on the correct samples alone, and keeps the graphs: eleven
    passes that move BatchNorm's statistics. ``bn: train`` is that on the whole batch.

    Args:
        d_max: hinge of the margin, in pixel units.
        minimum: radius that the first search starts from, in pixel units.
        largest: end of the bracket, as a multiple of ``d_max``.
        steps: of the bisection, a forward each.
        clamped: the point is clamped to [0, 1], as all of the search are; trainer.py does not.
        direction: view that the ray goes to, crafted within the budget's radii.
        view: name of this crafter's own view.
        bn: the model's mode during the bisection.

    Raises:
        ValueError: d_max is negative, minimum or largest not positive, or steps below 1.
    """

    d_max: Fraction = 32 / 255
    minimum: Fraction = 0.005
    largest: float = 1.05
    steps: int = 10
    clamped: bool = True
    direction: str = "direction"
    view: str = "adv"
    bn: AttackMode = "eval"

    def __post_init__(self) -> None:
        if self.d_max < 0 or self.minimum <= 0 or self.largest <= 0 or self.steps < 1:
            raise ValueError(
                f"d_max={self.d_max:g} must not be negative, minimum={self.minimum:g} and "
                f"largest={self.largest:g} must be positive, steps={self.steps} at least 1"
            )

    @property
    def memory(self) -> Mapping[str, MemorySpec]:
        """The radii, per training image."""
        return {RADIUS: MemorySpec("example", initial=self.minimum)}

    def commit(self, views: Views) -> Mapping[str, Tensor]:
        """Remember the radii [N]."""
        return {RADIUS: views.crafted(self.view).aux["radius"]}

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Bisect the rays of the batch; ``eps`` [N] are the radii of the attack before."""
        x, y = views.batch.x, views.batch.y
        correct = soft_margin_loss(views.logits("nat").detach(), y) < 0
        direction = (views.x(self.direction) - x) / (per_sample(eps, x) + 1e-12)

        def loss(point: Tensor) -> Tensor:
            return soft_margin_loss(views.forward(point), y)

        radius = bisect(loss, x, direction, eps, self.largest * self.d_max, self.steps)
        radius = torch.where(correct, radius, 0.0)
        point = x + per_sample(radius, x) * direction
        counted = ~correct | (radius < self.d_max)
        return Crafted(
            point.clamp(0, 1) if self.clamped else point,
            aux={"radius": radius, "correct": correct, "counted": counted},
            facts={"correct": correct, "counted": counted},
            recorded={"radius": radius, "radius_floor": radius.clamp_min(self.minimum)},
        )
