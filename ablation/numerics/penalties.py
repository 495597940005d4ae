"""Penalties on input gradients: their squared norms, which can be differentiated again.

``z`` are logits [N, K] that were computed from points ``x`` [N, ...] with gradient, each row from
its own point alone (BatchNorm in evaluation mode). Every penalty is [N], and its gradient reaches
whatever else ``z`` was computed from. w_j = grad_x z_j is the effective weight of class j (EMR,
section 3).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.random import draw


def squared_gradient(values: Tensor, x: Tensor) -> Tensor:
    """||grad_x v||_2^2 of values v [N], shape [N], by double backward."""
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def effective_weights(z: Tensor, x: Tensor) -> Tensor:
    """sum_j ||w_j||_2^2, shape [N] (EMR, eq. 5): one backward pass per class.

    A loop, as in the paper: on a CPU one vmapped pass over ten classes takes 1.2 to 1.6 times as
    long for convolutions and saves a seventh for an MLP (benchmarks/emr.py).
    """
    return torch.stack([squared_gradient(column, x) for column in z.unbind(1)]).sum(0)


def probed_weights(z: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """||grad_x sum_j v_j z_j||_2^2, shape [N]: one backward pass estimates ``effective_weights``.

    With J the Jacobian [K, d] of a row, ||J^T v||^2 = v^T J J^T v, whose mean over v with
    E[v v^T] = I is the trace of J J^T, sum_j ||w_j||^2 (Hutchinson, 1989). Independent signs have
    the least variance of all v with independent entries, 2 sum_{j != k} <w_j, w_k>^2: the squares
    of the sum are there in every draw.

    Args:
        z: logits [N, K].
        x: points [N, ...].
        signs: +1 or -1 [N, K], independent for every row and class.
    """
    return squared_gradient((signs * z).sum(1), x)


def random_signs(like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw independent +1 and -1 with equal probability, shaped like ``like``."""
    coins = draw(partial(torch.randint, 2), like.shape, rng, like.new_zeros(0, dtype=torch.int64))
    return (2 * coins - 1).to(like.dtype)


def weighted_logit(z: Tensor, temperature: float | None) -> Tensor:
    """sum_j p_j z_j, p = softmax(z / t) a constant, shape [N] (EMR, section 4).

    Its gradient tends to w of the predicted class as t tends to 0 (the paper writes the largest
    ||w_j||, which is a different one), and to the mean of all w_j as t tends to infinity: ``None``.
    """
    if temperature is None:
        return z.mean(1)
    return (F.softmax(z.detach() / temperature, 1) * z).sum(1)
