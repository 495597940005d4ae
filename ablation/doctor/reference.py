"""A training step of AT, TRADES and MART as the field's public scripts have it.

Eager, fp32, parameters tracked during the attack, clean logits recomputed in TRADES' inner loop:
what the package's own steps are held against, for the numbers and for the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.random import generator
from ablation.types import Batch

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
"""Radius and step in pixels, and number of steps of the attack."""


def start(batch: Batch, seed: int) -> Tensor:
    """The clean images with the attack's own noise."""
    rng = generator(seed, "craft/adv", 0, batch.x.device)
    return batch.x + 0.001 * torch.randn(batch.x.shape, generator=rng, device=batch.x.device)


def project(x_adv: Tensor, x: Tensor) -> Tensor:
    """Into the eps-box and [0, 1]."""
    return torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0.0, 1.0)


def reference_step(
    name: str, net: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, seed: int = 0
) -> None:
    """One step as trades.py, mart.py and their AT sibling write it."""
    x, y = batch.x, batch.y
    net.eval()
    x_adv = start(batch, seed)
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        if name == "trades":
            loss = F.kl_div(F.log_softmax(net(x_adv), 1), F.softmax(net(x), 1), reduction="sum")
        else:
            loss = F.cross_entropy(net(x_adv), y)
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = project(x_adv.detach() + STEP * grad.sign(), x)
    net.train()
    optimizer.zero_grad()
    reference_loss(name, net, x, x_adv.detach(), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def reference_loss(name: str, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """The outer loss of the public scripts."""
    if name == "at":
        return F.cross_entropy(net(x_adv), y)
    if name == "trades":
        natural = F.cross_entropy(net(x), y)
        return natural + 6.0 * F.kl_div(
            F.log_softmax(net(x_adv), 1), F.softmax(net(x), 1), reduction="batchmean"
        )
    return mart_loss(net(x), net(x_adv), y)


def mart_loss(z: Tensor, z_adv: Tensor, y: Tensor) -> Tensor:
    """mart.py's outer loss of logits."""
    p, p_adv = F.softmax(z, 1), F.softmax(z_adv, 1)
    top2 = torch.argsort(p_adv, dim=1)[:, -2:]
    rival = torch.where(top2[:, -1] == y, top2[:, -2], top2[:, -1])
    bce = F.cross_entropy(z_adv, y) + F.nll_loss(torch.log(1.0001 - p_adv + 1e-12), rival)
    true = p.gather(1, y[:, None]).squeeze(1)
    kl = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(1)
    return bce + 5.0 * (kl * (1.0000001 - true)).mean()
