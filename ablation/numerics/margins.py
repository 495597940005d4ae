"""First-order margins: distances of images to the boundary of the linearised network.

Shapes: ``N`` samples, images ``x`` [N, C, H, W] in [0, 1], ``K`` classes, labels ``y`` [N].
Margins are signed, positive where classified correctly, and in pixel units. Scaling the logits
leaves them as they are. A network is measured in evaluation mode with frozen parameters; its modes
and flags are restored afterwards.

Sources: EMR ("Boosting Adversarial Robustness From The Perspective of Effective Margin
Regularization"), eq. 3; Elsayed et al. (2018, arXiv:1803.05598); DOSE, eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ablation.numerics.boundary import DUAL, AnyNorm, taylor_margin
from ablation.numerics.functional import cross_entropy, margin, true_value
from ablation.numerics.modes import evaluating

Logits = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] to logits [N, K]: a network, which is measured in evaluation mode, or any
function, which is called as it is."""

SMALLEST = 1e-12
"""Added to the gradient's norm in denominators."""


@dataclass(frozen=True)
class Margins:
    """Margins of a batch, detached.

    Attributes:
        value: [N]; with a zero gradient the gap in the logits over ``SMALLEST``, no distance.
        zero_gradient: [N], bool: the gradient that ``value`` was divided by has length 0.
    """

    value: Tensor
    zero_gradient: Tensor


@dataclass(frozen=True)
class Survey:
    """Margins of a batch and signs of saturated losses, detached.

    Attributes:
        margin: towards the highest other class, see ``top_margin``, [N].
        logit_gap: z_(1) - z_(2), the highest logit minus the second, [N], at least 0.
        zero_gradient: [N], bool: grad_x of the cross-entropy is 0 in every pixel, because the
            softmax saturates; attacks that climb it do not move the image.
    """

    margin: Tensor
    logit_gap: Tensor
    zero_gradient: Tensor


def effective_margin(logits: Logits, x: Tensor, y: Tensor, norm: AnyNorm = "l2") -> Margins:
    """min_{j != y} (z_y - z_j) / ||grad_x (z_y - z_j)||_q over all other classes (EMR, eq. 3).

    One forward and K - 1 backwards that keep one gradient at a time. Batching them (vmap) takes as
    long on a CPU up to K = 10, longer beyond, and K - 1 times the memory.

    Args:
        logits: a network or a function; at least two classes.
        x: images, in fp32 or fp64.
        y: labels.
        norm: of the distance, p with 1/p + 1/q = 1; EMR has p = 2.
    """
    with _logits_at(logits, x) as (point, z):
        classes = z.shape[1]
        nearest = z.new_full((len(x),), torch.inf)
        zero = torch.zeros_like(nearest, dtype=torch.bool)
        for shift in range(1, classes):
            gap = true_value(z, y) - true_value(z, (y + shift) % classes)
            grad = _gradient(gap, point, keep=shift < classes - 1)
            length = torch.linalg.vector_norm(grad.flatten(1), DUAL[norm], dim=1)
            distance = gap.detach() / (length + SMALLEST)
            zero = torch.where(distance < nearest, length == 0, zero)
            nearest = torch.minimum(nearest, distance)
    return Margins(nearest, zero)


def top_margin(logits: Logits, x: Tensor, y: Tensor, norm: AnyNorm = "linf") -> Margins:
    """Compute ``boundary.taylor_margin`` towards the highest other class alone (DOSE, eq. 5).

    One forward and one backward. Of a sample that is classified correctly it is never below the
    effective margin (but for the constants in the denominators): another class may be nearer.

    Args:
        logits: a network or a function; at least two classes.
        x: images, in fp32 or fp64.
        y: labels.
        norm: of the distance.
    """
    with _logits_at(logits, x) as (point, z):
        return _towards_top(point, z, y, norm, keep=False)


def survey(logits: Logits, x: Tensor, y: Tensor, norm: AnyNorm = "linf") -> Survey:
    """Compute ``top_margin`` and two signs of saturation: one forward, two backwards.

    Args:
        logits: a network or a function; at least two classes.
        x: images, in fp32 or fp64.
        y: labels.
        norm: of the distance.
    """
    with _logits_at(logits, x) as (point, z):
        top = _towards_top(point, z, y, norm, keep=True)
        grad = _gradient(cross_entropy(z, y), point, keep=False)
        first, second = z.detach().topk(2, 1).values.unbind(1)
        return Survey(top.value, first - second, grad.flatten(1).eq(0).all(1))


def summarise(value: Tensor, counted: Tensor) -> tuple[float, float]:
    """Compute mean and population standard deviation of ``value`` [N] where ``counted`` [N].

    Both are NaN where no sample counts.
    """
    chosen = value[counted].double()
    if len(chosen) == 0:
        return math.nan, math.nan
    return chosen.mean().item(), chosen.std(correction=0).item()


@contextmanager
def _logits_at(logits: Logits, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Compute the logits of points that require a gradient; yields (points, logits)."""
    quiet = evaluating(logits) if isinstance(logits, nn.Module) else nullcontext()
    with quiet, torch.enable_grad():
        point = x.detach().requires_grad_(True)
        yield point, logits(point)


def _towards_top(point: Tensor, z: Tensor, y: Tensor, norm: AnyNorm, keep: bool) -> Margins:
    phi = margin(z, y)
    grad = _gradient(phi, point, keep)
    return Margins(taylor_margin(phi.detach(), grad, norm), grad.flatten(1).eq(0).all(1))


def _gradient(values: Tensor, point: Tensor, keep: bool) -> Tensor:
    """Compute the gradient of each sample's value [N]; zero where it is constant in the point."""
    if not values.requires_grad:
        return torch.zeros_like(point)
    (grad,) = torch.autograd.grad(
        values.sum(), point, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return grad.detach()
