"""Losses per sample, margins, norms and projections: pure functions of tensors.

Shapes: ``z`` logits [N, K], ``y`` labels [N], points [N, ...]; every loss returns [N].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.random import draw
from ablation.types import Norm

Constants = Literal["exact", "official"]
Reduction = Literal["sum", "classes"]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [N] to [N, 1, ..., 1] so that it broadcasts over ``like`` [N, ...]."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """-log p_y, shape [N]."""
    return F.cross_entropy(z, y, reduction="none")


def kl_divergence(z_target: Tensor, z: Tensor) -> Tensor:
    """KL(softmax(z_target) || softmax(z)), shape [N]; gradient flows through both arguments."""
    return F.kl_div(
        F.log_softmax(z, 1), F.log_softmax(z_target, 1), reduction="none", log_target=True
    ).sum(1)


def kl_from(p: Tensor, z: Tensor) -> Tensor:
    """KL(p || softmax(z)) of fixed probabilities ``p`` [N, K], shape [N], as in trades.py."""
    return F.kl_div(F.log_softmax(z, 1), p, reduction="none").sum(1)


def kl_divergence_official(z_target: Tensor, z: Tensor) -> Tensor:
    """KL(p || p') with log(p' + 1e-12), as mart.py has it, shape [N]."""
    log_p = torch.log(F.softmax(z, 1) + 1e-12)
    return F.kl_div(log_p, F.softmax(z_target, 1), reduction="none").sum(1)


def without_true(z: Tensor, y: Tensor) -> Tensor:
    """Set the true class of ``z`` to -inf, shape [N, K]."""
    return z.scatter(1, y[:, None], -torch.inf)


def true_value(z: Tensor, y: Tensor) -> Tensor:
    """Select the entry of the true class, shape [N]."""
    return z.gather(1, y[:, None]).squeeze(1)


def margin(z: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, shape [N]: of logits, or of probabilities. Correct iff > 0."""
    return true_value(z, y) - without_true(z, y).amax(1)


def probability_margin(z: Tensor, y: Tensor) -> Tensor:
    """p_y - max_{j != y} p_j, shape [N], in [-1, 1]: how sure a prediction is, and of what."""
    return margin(F.softmax(z, 1), y)


def soft_margin_loss(z: Tensor, y: Tensor) -> Tensor:
    """-z_y + log sum_{j != y} exp(z_j), shape [N]: negative iff p_y > 1/2 (MMA's SLM)."""
    return torch.logsumexp(without_true(z, y), 1) - true_value(z, y)


def boosted_cross_entropy(z: Tensor, y: Tensor, constants: Constants = "exact") -> Tensor:
    """-log p_y - log(1 - max_{k != y} p_k), shape [N] (MART, eq. 7).

    ``exact`` takes 1 - p_k as logsumexp over the other classes minus logsumexp over all, which
    stays finite at p_k = 1. ``official`` adds the constants of mart.py: 1.0001 and 1e-12.
    """
    rival = without_true(z, y).argmax(1)
    if constants == "official":
        p_rival = true_value(F.softmax(z, 1), rival)
        return cross_entropy(z, y) - torch.log(1.0001 - p_rival + 1e-12)
    others = torch.logsumexp(without_true(z, rival), 1)
    return cross_entropy(z, y) + torch.logsumexp(z, 1) - others


def margin_loss(
    z: Tensor, y: Tensor, delta: float, top_k: int | None = None, reduction: Reduction = "sum"
) -> Tensor:
    """sum_{j != y} max(0, z_j - z_y + delta)^2, shape [N] (LMA, eq. 12).

    Args:
        z: logits [N, K].
        y: labels [N].
        delta: margin that each false class is to keep.
        top_k: sum over the so many largest false classes only; ``None`` means all.
        reduction: ``classes`` divides the sum by K, as torch's ``MultiMarginLoss``.
    """
    rivals = without_true(z, y)
    if top_k is not None:
        rivals = rivals.topk(min(top_k, z.shape[1] - 1), 1).values
    total = F.relu(rivals - true_value(z, y)[:, None] + delta).square().sum(1)
    return total / z.shape[1] if reduction == "classes" else total


def modified_huber(d: Tensor, alpha: float) -> Tensor:
    """Modified Huber loss of each entry (LMA, section 3), shaped like ``d``.

    alpha^2 (1 - cos(d / alpha)) up to |d| = alpha pi / 2, beyond alpha |d| + (1 - pi / 2) alpha^2.
    Twice continuously differentiable; d^2 / 2 near 0, where half the angle keeps the precision
    that 1 - cos would lose.
    """
    inner = d.clamp(-alpha * math.pi / 2, alpha * math.pi / 2)
    bowl = 2 * (alpha * torch.sin(inner / (2 * alpha))).square()
    return bowl + alpha * (d.abs() - inner.abs())


def cw_loss(z: Tensor, y: Tensor, confidence: float = 50.0) -> Tensor:
    """-max(z_y - max_{j != y} z_j + confidence, 0), shape [N]: ascend it (MAIL and GAIRAT code)."""
    return -F.relu(margin(z, y) + confidence)


def lp_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Compute the norm of each sample, shape [N]."""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def steepest(grad: Tensor, norm: Norm) -> Tensor:
    """Compute the unit-norm direction of steepest ascent; zero where the gradient is zero."""
    if norm == "linf":
        return grad.sign()
    return grad / per_sample(lp_norm(grad, norm).clamp_min(1e-12), grad)


def project(x_adv: Tensor, x: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Project onto the ball of radius ``eps`` [N] around ``x``, then onto [0, 1].

    Both hold at once: clamping moves each pixel towards ``x``, which lies in [0, 1].
    """
    radius = per_sample(eps, x)
    if norm == "linf":
        return torch.minimum(torch.maximum(x_adv, x - radius), x + radius).clamp(0, 1)
    delta = x_adv - x
    length = per_sample(lp_norm(delta, norm).clamp_min(1e-12), x)
    return (x + delta * (radius / length).clamp_max(1.0)).clamp(0, 1)


def uniform_ball(x: Tensor, eps: Tensor, norm: Norm, rng: torch.Generator) -> Tensor:
    """Draw uniformly from the ball of radius ``eps`` [N], shaped like ``x``."""
    radius = per_sample(eps, x)
    if norm == "linf":
        return (2 * draw(torch.rand, x.shape, rng, x) - 1) * radius
    towards = draw(torch.randn, x.shape, rng, x)
    share = draw(torch.rand, x.shape[:1], rng, x)
    return radius * steepest(towards, norm) * per_sample(share ** (1 / x[0].numel()), x)


def gaussian_noise(x: Tensor, std: float, rng: torch.Generator) -> Tensor:
    """Draw normal noise shaped like ``x``; the attacks of TRADES and MART have std 0.001."""
    return std * draw(torch.randn, x.shape, rng, x)


def bisect(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    direction: Tensor,
    start: Tensor,
    largest: float,
    steps: int,
) -> Tensor:
    """Search the distance along a ray at which a loss turns from negative to positive, [N].

    MMA's search (anpgd.py): the bracket is [0, largest], the first trial at ``start``. Where the
    loss is negative up to ``largest``, the distance tends to it. No gradient is taken.

    Args:
        loss: maps points [N, ...] to a loss [N], negative near ``x``.
        x: start of the rays [N, ...], in [0, 1].
        direction: of the rays [N, ...]; points are clamped to [0, 1].
        start: first distances [N].
        largest: end of the bracket.
        steps: number of trials.
    """
    low, high, now = torch.zeros_like(start), torch.full_like(start, largest), start
    with torch.no_grad():
        for _ in range(steps):
            inside = loss((x + per_sample(now, x) * direction).clamp(0, 1)) < 0
            low = torch.where(inside, torch.maximum(low, now), low)
            high = torch.where(inside, high, torch.minimum(high, now))
            now = (low + high) / 2
    return now


def upper_and_lower(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the point with the least and the most probable true class, [N] each.

    Args:
        z: logits of V points of each sample, [V, N, K].
        y: labels [N].

    Returns:
        Indices into the V points: the upper one has the largest loss, the lower the smallest.
    """
    probability = F.softmax(z.detach(), 2).gather(2, y.expand(len(z), -1)[..., None]).squeeze(2)
    return probability.argmin(0), probability.argmax(0)


def select_point(points: Tensor, which: Tensor) -> Tensor:
    """Select one of V points of each sample: [V, N, ...] by [N] gives [N, ...]."""
    return points[which, torch.arange(len(which), device=which.device)]


def squeeze_divergence(upper: Tensor, lower: Tensor) -> Tensor:
    """[KL(low || up) + KL(up || low)] / 2 of logits [N, K], shape [N] (ST-AT).

    The first argument of each KL is constant, as in losses.py.
    """
    one, other = kl_divergence(lower.detach(), upper), kl_divergence(upper.detach(), lower)
    return (one + other) / 2


def pgd(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    eps: Tensor,
    step: Tensor,
    steps: int,
    norm: Norm,
) -> Tensor:
    """Ascend an objective by projected gradients; returns the last iterate, detached.

    Args:
        objective: maps points [N, ...] to the loss per sample [N]; it is summed, so a sample's
            gradient does not depend on the batch.
        x: centre of the ball, [N, ...] in [0, 1].
        start: first point; not projected before the first gradient, as in TRADES and MART.
            Without steps it is projected and returned.
        eps: radii [N].
        step: step lengths [N], same units as ``eps``.
        steps: number of gradient steps.
        norm: the ball's norm.
    """
    if not steps:
        return project(start.detach(), x, eps, norm)
    point, ascend = start.detach(), _ascent(x, eps, step, norm)
    for _ in range(steps):
        point.requires_grad_(True)
        with torch.enable_grad():
            loss = objective(point)
            (grad,) = torch.autograd.grad(loss, point, torch.ones_like(loss))
        point = ascend(point.detach(), grad)
    return point


def _ascent(x: Tensor, eps: Tensor, step: Tensor, norm: Norm) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the step point, gradient -> project(point + step * steepest(gradient)).

    In linf the ball and the pixels are one box, and a sign times a length is exact: the step is
    three launches, of the same bits.
    """
    length = per_sample(step, x)
    if norm != "linf":
        return lambda point, grad: project(point + length * steepest(grad, norm), x, eps, norm)
    radius = per_sample(eps, x)
    low, high = (x - radius).clamp_min(0), (x + radius).clamp_max(1)
    return lambda point, grad: torch.addcmul(point, length, steepest(grad, norm)).clamp(low, high)
