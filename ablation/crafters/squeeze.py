"""Squeeze training's attack: an adversarial and a collaborative example at once (ST-AT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ablation.crafters.pgd import first_point
from ablation.numerics.functional import (
    per_sample,
    project,
    select_point,
    squeeze_divergence,
    steepest,
    upper_and_lower,
)
from ablation.types import AttackMode, Crafted, Norm, Start, StepSize, Views

CLEAN, PARTNER = 0, "collaborative"
"""Place of the clean image among the three points; key of the other example in ``aux``."""


@dataclass(frozen=True)
class Squeeze:
    """Ascends the divergence of the most and the least probable of x, x_col and x_adv.

    Li et al. (2023), squeeze training; losses.py. In each step the three points of a sample are
    ordered by p_y: the upper one has the least, the lower one the most. x_adv goes on from the
    upper one, x_col from the lower one, both along the gradient of ``squeeze_divergence`` there.
    The view holds x_adv, ``aux["collaborative"]`` x_col, [N, C, H, W]; see ``Partner``.

    The model is in training mode and its running statistics stay as they are. The clean image has
    one forward in all, as its logits are constant; each step takes two forwards and one backward
    pass through three.

    Args:
        steps: number of gradient steps.
        step_size: step length as a fraction of each sample's eps.
        start: of both examples, drawn one after the other; see ``Pgd``.
        bn: the model's mode during the search.
        norm: the ball's norm.
        start_std: standard deviation of the gaussian start, in pixel units.
        reassigns: ``always``; or ``with_clean``, as the code: points of a batch go on from the
            upper and lower ones only if the clean image is chosen somewhere in it, though their
            gradients are those of the upper and lower ones.

    Raises:
        ValueError: steps or step_size is negative.
    """

    steps: int
    step_size: StepSize
    start: Start = "gaussian"
    bn: AttackMode = "train_frozen"
    norm: Norm = "linf"
    start_std: float = 0.001
    reassigns: Literal["always", "with_clean"] = "always"

    def __post_init__(self) -> None:
        if self.steps < 0 or self.step_size < 0:
            raise ValueError(
                f"steps={self.steps} and step_size=eps*{self.step_size:g} must not be negative"
            )

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Craft both examples of the clean batch within the perturbation radii ``eps`` [N]."""
        x = views.batch.x
        adv, col = (
            first_point(self.start, x, eps, self.norm, self.start_std, rng) for _ in range(2)
        )
        if not self.steps:
            adv, col = (project(point, x, eps, self.norm) for point in (adv, col))
            return Crafted(adv, aux={PARTNER: col})
        clean = x.detach().requires_grad_(True)
        with torch.enable_grad():
            z_clean = views.forward(clean)
        for _ in range(self.steps):
            adv, col = self._step(views, (clean, col, adv), z_clean, eps)
        return Crafted(adv, aux={PARTNER: col})

    @property
    def couples(self) -> bool:
        """Whether samples depend on each other: on whether the clean point is chosen anywhere."""
        return self.reassigns == "with_clean"

    def _step(
        self, views: Views, triple: tuple[Tensor, Tensor, Tensor], z_clean: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move x_adv and x_col; ``triple`` has clean, collaborative and adversarial points."""
        clean, col, adv = triple
        x, y = views.batch.x, views.batch.y
        with torch.enable_grad():
            leaves = (clean, col.requires_grad_(True), adv.requires_grad_(True))
            z = torch.stack([z_clean, views.forward(col), views.forward(adv)])
            upper, lower = upper_and_lower(z, y)
            total = squeeze_divergence(select_point(z, upper), select_point(z, lower)).sum()
            gradients = torch.stack(torch.autograd.grad(total, leaves, retain_graph=True))
        points = torch.stack([leaf.detach() for leaf in leaves])
        chosen = [select_point(points, upper), select_point(points, lower)]
        if self.reassigns == "with_clean":
            anywhere = views.total((upper == CLEAN) | (lower == CLEAN)) > 0
            own = (adv.detach(), col.detach())
            chosen = [torch.where(anywhere, *pair) for pair in zip(chosen, own, strict=True)]
        length = per_sample(eps * self.step_size, x)
        moved = [
            project(
                point + length * steepest(select_point(gradients, which), self.norm),
                *(x, eps, self.norm),
            )
            for point, which in zip(chosen, (upper, lower), strict=True)
        ]
        return moved[0], moved[1]


@dataclass(frozen=True)
class Partner:
    """The collaborative examples of a ``Squeeze`` as a view of their own.

    Args:
        of: the view of the adversarial ones.
        bn: of no effect: nothing is searched.
    """

    of: str = "adv"
    bn: AttackMode = "eval"

    @property
    def steps(self) -> int:
        """Gradients with respect to the input, for estimates of time: none."""
        return 0

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Hand out the points."""
        return Crafted(views.crafted(self.of).aux[PARTNER])
