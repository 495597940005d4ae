"""APGD (Croce and Hein, 2020, arXiv:2003.01690, Algorithm 1) on cross-entropy and DLR losses.

As AutoAttack runs it: N steps, the first of length 2 eps, momentum 0.75, checkpoints at 22% of N
and then at intervals shorter by 3% down to 6%.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ablation.evaluation.attacks import Family, check_positive
from ablation.evaluation.autoattack import APGD, LOGGER, ApgdDlr, ApgdT
from ablation.evaluation.fast.hunt import Examples, FastAttack, Hunt, Streams
from ablation.numerics.functional import (
    cross_entropy,
    lp_norm,
    margin,
    per_sample,
    project,
    steepest,
    true_value,
)
from ablation.types import Norm

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits [n, K], labels [n] and targets [n] to the loss that is ascended, [n]."""

MOMENTUM, RHO = 0.75, 0.75


def dlr(z: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{j!=y} z_j) / (z_(1) - z_(3)), shape [n]; three classes or more."""
    top = z.topk(3, 1).values
    return -margin(z, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), shape [n]; four classes or more."""
    top = z.topk(4, 1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
    return (true_value(z, target) - true_value(z, y)) / scale


@dataclass
class Schedule(Examples):
    """Step lengths by the losses seen so far (Algorithm 1, conditions 1 and 2).

    At a checkpoint the step is halved, and the search goes back to its best point, where at most
    ``RHO`` of the steps since the last one raised the loss, or where neither the step nor the best
    loss has changed since then. The first loss is compared with 0, as the reference code does.

    Attributes:
        step: lengths [n].
        best: largest losses so far [n], the start's included.
        at_check: the largest losses at the last checkpoint [n].
        last: losses of the last step [n].
        rises: steps since the checkpoint that raised the loss [n].
        halved: whether the last checkpoint halved the step [n].
        period: steps from one checkpoint to the next.
        shorter: by how many the next period is shorter.
        shortest: period.
        passed: steps since the checkpoint.
    """

    step: Tensor
    best: Tensor
    at_check: Tensor
    last: Tensor
    rises: Tensor
    halved: Tensor
    period: int
    shorter: int
    shortest: int
    passed: int = 0

    @classmethod
    def begin(cls, loss: Tensor, first: float, steps: int) -> Schedule:
        """Start from the losses [n] at the start, with steps of length ``first``."""
        period, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
        zero, first_step = torch.zeros_like(loss), torch.full_like(loss, first)
        halved = torch.ones_like(loss, dtype=torch.bool)
        return cls(first_step, loss, loss, zero, zero, halved, period, shorter, shortest)

    def observe(self, loss: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take in the losses [n] after a step.

        Returns:
            Masks [n]: where the loss is the best yet, and where to go back to the best point
            (``None`` between checkpoints).
        """
        better = loss > self.best
        self.best = torch.where(better, loss, self.best)
        self.rises = self.rises + (loss > self.last)
        self.last = loss
        self.passed += 1
        return better, self._check() if self.passed == self.period else None

    def _check(self) -> Tensor:
        few = self.rises <= RHO * self.period
        stuck = ~self.halved & (self.best <= self.at_check)
        self.halved = few | stuck
        self.step = torch.where(self.halved, self.step / 2, self.step)
        self.at_check, self.rises = self.best, torch.zeros_like(self.rises)
        self.period, self.passed = max(self.period - self.shorter, self.shortest), 0
        return self.halved


@dataclass
class _Ascent(Examples):
    """Iterates of the examples that are left: the present, the one before, and the best one."""

    point: Tensor
    before: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    target: Tensor

    def move(self, x: Tensor, step: Tensor, share: float, eps: float, norm: Norm) -> None:
        """Take a projected step with momentum: ``share`` of it, the rest of the last one."""
        radius, now = torch.full_like(step, eps), self.point
        ahead = project(now + per_sample(step, x) * steepest(self.grad, norm), x, radius, norm)
        if share < 1:
            ahead = now + share * (ahead - now) + (1 - share) * (now - self.before)
            ahead = project(ahead, x, radius, norm)
        self.point, self.before = ahead, now

    def take(self, grad: Tensor, better: Tensor) -> None:
        """Note the gradient at the point, and the point if it is the best yet."""
        self.grad, chosen = grad, per_sample(better, grad)
        self.best = torch.where(chosen, self.point, self.best)
        self.best_grad = torch.where(chosen, grad, self.best_grad)

    def go_back(self, where: Tensor) -> None:
        """Return to the best point."""
        chosen = per_sample(where, self.point)
        self.point = torch.where(chosen, self.best, self.point)
        self.grad = torch.where(chosen, self.best_grad, self.grad)


def start(hunt: Hunt, eps: float, norm: Norm, streams: Streams) -> Tensor:
    """Draw points on the surface of the ball, clamped to [0, 1]: uniform noise or a direction."""
    x = hunt.x
    draw = streams.normal if norm == "l2" else streams.uniform
    noise = draw(hunt.left, *x.shape[1:]).to(x.dtype)
    if norm == "linf":
        noise = 2 * noise - 1
    return (x + eps * noise / per_sample(lp_norm(noise, norm) + 1e-12, x)).clamp(0, 1)


def ascend(
    hunt: Hunt, loss: Loss, target: Tensor, eps: float, norm: Norm, steps: int, streams: Streams
) -> None:
    """Run APGD once on all that are left: ``steps`` gradients and one forward more.

    Args:
        hunt: what is left; broken examples leave it.
        loss: to ascend.
        target: class per example [n], for a targeted loss.
        eps: radius in pixels.
        norm: of the ball.
        steps: N.
        streams: for the starts.
    """

    def value(z: Tensor) -> Tensor:
        return loss(z, hunt.y, target)

    point = start(hunt, eps, norm, streams)
    z, losses, gradient = hunt.linearise(point, value)
    stay = hunt.settle(z.argmax(1) != hunt.y, z, point)
    if not len(hunt.left):
        return
    grad = gradient()
    if loss is not _on_ce:
        _warn_of_zeros(grad)
    ascent = _Ascent(point, point, grad, point, grad, target)
    schedule = Schedule.begin(losses, 2 * eps, steps)
    if stay is not None:
        ascent, schedule = ascent.keep(stay), schedule.keep(stay)
    for i in range(steps):
        target = ascent.target
        ascent.move(hunt.x, schedule.step, MOMENTUM if i else 1.0, eps, norm)
        if i == steps - 1:  # nothing follows that a gradient would serve
            z = hunt.logits(ascent.point)
            hunt.settle(z.argmax(1) != hunt.y, z, ascent.point)
            return
        z, losses, gradient = hunt.linearise(ascent.point, value)
        stay = hunt.settle(z.argmax(1) != hunt.y, z, ascent.point)
        if not len(hunt.left):
            return
        grad = gradient()
        if stay is not None:
            ascent, schedule = ascent.keep(stay), schedule.keep(stay)
            grad, losses = grad[stay], losses[stay]
        better, back = schedule.observe(losses)
        ascent.take(grad, better)
        if back is not None:
            ascent.go_back(back)


def _warn_of_zeros(grad: Tensor) -> None:
    """Log where the DLR loss has no gradient at the start, as the reference does."""
    zeros = int(grad.flatten(1).eq(0).all(1).sum())
    if zeros:
        logging.getLogger(LOGGER).warning(
            "%d of %d starts have a zero gradient of the DLR loss: it may not move them",
            zeros,
            len(grad),
        )


def _on_ce(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    del target
    return cross_entropy(z, y)


def _on_dlr(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    del target
    return dlr(z, y)


UNTARGETED: Mapping[str, Loss] = {"ce": _on_ce, "dlr": _on_dlr}


@dataclass(frozen=True)
class _Untargeted(FastAttack):
    """Ascend a loss of the label with APGD.

    Args:
        n_iter: gradient steps per restart.
        restarts: uniform starts scaled to the surface of the ball.
    """

    loss: ClassVar[str]
    """Its name in ``UNTARGETED``."""

    n_iter: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, restarts=self.restarts)

    def _hunt(self, hunt: Hunt, eps: float, norm: Norm, streams: Streams) -> None:
        for _ in range(self.restarts):
            if len(hunt.left):
                ascend(hunt, UNTARGETED[self.loss], hunt.y, eps, norm, self.n_iter, streams)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del eps, classes
        return self._facts(**APGD, steps=self.n_iter, restarts=self.restarts, loss=self.loss)


@dataclass(frozen=True)
class FastApgdCe(_Untargeted):
    """Ascend cross-entropy with APGD; as ``ApgdCe``."""

    kind: ClassVar[str] = "fast_apgd_ce"
    family: ClassVar[Family] = "adaptive steps"
    loss: ClassVar[str] = "ce"


@dataclass(frozen=True)
class FastApgdDlr(_Untargeted):
    """Ascend the untargeted DLR loss with APGD; as ``ApgdDlr``."""

    kind: ClassVar[str] = "fast_apgd_dlr"
    family: ClassVar[Family] = "adaptive steps"
    loss: ClassVar[str] = "dlr"

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``.

        Raises:
            InputError: fewer than three classes.
        """
        ApgdDlr().describe(eps, classes)  # which refuses too few
        return super().describe(eps, classes)


@dataclass(frozen=True)
class FastApgdT(FastAttack):
    """Ascend the targeted DLR loss with APGD, once per target; as ``ApgdT``.

    Args:
        n_iter: gradient steps per target.
        targets: classes attacked, at most; capped at the number of wrong classes.
    """

    kind: ClassVar[str] = "fast_apgd_t"
    family: ClassVar[Family] = "adaptive steps"

    n_iter: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, targets=self.targets)

    def _hunt(self, hunt: Hunt, eps: float, norm: Norm, streams: Streams) -> None:
        for target in hunt.rivals(self.targets).unbind(1):
            if len(hunt.left):
                ascend(hunt, dlr_targeted, target[hunt.left], eps, norm, self.n_iter, streams)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``.

        Raises:
            InputError: fewer than four classes.
        """
        targets = ApgdT(targets=self.targets).describe(eps, classes)["targets"]
        return self._facts(
            **APGD, steps=self.n_iter, restarts=1, loss="dlr_targeted", targets=targets
        )
