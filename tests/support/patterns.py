"""Noisy patterns of ten classes, and small networks that know them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablation.numerics.functional import pgd
from ablation.random import generator

RADII = {"linf": 0.07, "l2": 0.5}


def patterns(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy patterns of ten classes, [n, 1, 8, 8]."""
    clean = torch.rand(10, 1, 8, 8, generator=generator(0, "test/patterns"))
    y = torch.arange(n) % 10
    noise = 0.15 * torch.randn(n, 1, 8, 8, generator=generator(seed, "test/noise"))
    return (0.25 + 0.5 * clean[y] + noise).clamp(0, 1), y


def trained(*, robust: bool) -> nn.Module:
    """A small network after some seconds of adversarial or plain training."""
    x, y = patterns(400, 1)
    radius = torch.full((len(x),), RADII["linf"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        dense = nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)
    net = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), *dense)
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        seen = x
        if robust:
            seen = pgd(lambda p: nn.functional.cross_entropy(net(p), y, reduction="none"), x, x,
                       radius, radius / 2, 4, "linf")  # fmt: skip
        adam.zero_grad()
        nn.functional.cross_entropy(net(seen), y).backward()
        adam.step()
    return net.requires_grad_(False).eval()


def correct(net: nn.Module, n: int = 120) -> tuple[Tensor, Tensor]:
    x, y = patterns(n, 2)
    right = net(x).argmax(1) == y
    return x[right], y[right]
