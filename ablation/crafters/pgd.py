"""PGD: projected gradient ascent on a weighted sum of inner losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ablation.numerics.functional import gaussian_noise, pgd, uniform_ball
from ablation.types import AttackLoss, AttackMode, Crafted, Norm, Start, StepSize, Views


@dataclass(frozen=True)
class Ascended:
    """One summand of the attack's objective: ``coef`` times ``loss``."""

    loss: AttackLoss
    coef: float = 1.0


@dataclass(frozen=True)
class Pgd:
    """x <- clip_[0,1](Pi_eps(x + step * direction(grad_x sum_k coef_k loss_k))), ``steps`` times.

    Madry et al. (2018), eq. in section 2.1; AT, TRADES and MART differ in ``losses`` alone. The
    last iterate is returned. The sum over the batch is ascended, so that a sample's gradient does
    not depend on the batch size.

    Args:
        losses: summands of the objective that is ascended, by name.
        steps: number of gradient steps.
        step_size: step length as a fraction of each sample's eps.
        start: ``clean``; ``gaussian`` adds N(0, start_std), not clamped before the first forward
            (TRADES, MART); ``uniform`` draws from the eps-ball and clamps to [0, 1] (Rice et al.).
        bn: the model's mode during the search; Rice et al. attack in train mode.
        norm: the ball's norm.
        start_std: standard deviation of the gaussian start, in pixel units.
        counts: ``aux["survived"]`` is the share of the steps, [N] in [0, 1], at whose start the
            point was still classified correctly (GAIRAT's kappa / K).

    Raises:
        ValueError: steps or step_size is negative, or there is no loss.
    """

    losses: Mapping[str, Ascended]
    steps: int
    step_size: StepSize
    start: Start = "gaussian"
    bn: AttackMode = "eval"
    norm: Norm = "linf"
    start_std: float = 0.001
    counts: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative")
        if self.step_size < 0:
            raise ValueError(f"step_size=eps*{self.step_size:g} must not be negative")
        if not self.losses:
            raise ValueError("losses is empty: the attack needs something to ascend")
        if self.counts and not self.steps:
            raise ValueError("steps=0: there is no step to count (component/gairat=disabled)")

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Attack the clean batch within the perturbation radii ``eps`` [N]."""
        x, y = views.batch.x, views.batch.y
        objectives = [(entry.coef, entry.loss.bind(views)) for entry in self.losses.values()]
        survived = torch.zeros_like(eps)

        def objective(point: Tensor) -> Tensor:
            z = views.forward(point)
            if self.counts:
                survived.add_(z.detach().argmax(1) == y)
            return reduce(
                add, [loss(z) if coef == 1 else coef * loss(z) for coef, loss in objectives]
            )

        start = first_point(self.start, x, eps, self.norm, self.start_std, rng)
        point = pgd(objective, x, start, eps, eps * self.step_size, self.steps, self.norm)
        return Crafted(point, aux={"survived": survived / self.steps} if self.counts else {})


def first_point(
    start: Start, x: Tensor, eps: Tensor, norm: Norm, std: float, rng: torch.Generator
) -> Tensor:
    """Draw the first point of an attack on ``x`` [N, ...] within ``eps`` [N]; see ``Pgd``."""
    if start == "gaussian":
        return x + gaussian_noise(x, std, rng)
    if start == "uniform":
        return (x + uniform_ball(x, eps, norm, rng)).clamp(0, 1)
    return x
