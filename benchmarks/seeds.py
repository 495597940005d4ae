"""Time PGD-AT of several seeds at once, by vmap over their weights, against one after another.

Each seed has its own network and images. A step is ten gradients with respect to the input, one
with respect to the weights, and an SGD step. Both ways alternate round by round on one thread;
figures are medians of paired ratios, and the weights of both are compared before.

    python -m benchmarks.seeds [--models mlp cnn --seeds 8 --rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from ablation.models import Cnn, Mlp, Net, build_model
from ablation.random import generator

MODELS: dict[str, tuple[Any, int, int, int]] = {
    "mlp": (Mlp(hidden=4, width=1024), 1, 28, 100),
    "cnn": (Cnn(), 3, 32, 16),
}
"""Name -> architecture of EMR's tables, channels, size, batch."""
EPS, STEPS, LR = 0.1, 10, 0.01
Weights = dict[str, Tensor]
Step = Callable[[], None]


def attack(gradient: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """PGD from the images themselves; the same operations for one seed and for all."""
    moved = x
    for _ in range(STEPS):
        moved = moved + EPS / 4 * gradient(moved).sign()
        moved = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
    return moved


def alone(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """A step of one network, as training makes it."""

    def gradient(points: Tensor) -> Tensor:
        points = points.detach().requires_grad_(True)
        (found,) = torch.autograd.grad(F.cross_entropy(net(points), y), points)
        return found

    for parameter in net.parameters():
        parameter.requires_grad_(False)
    points = attack(gradient, x)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    parameters: list[Tensor] = list(net.parameters())
    found = torch.autograd.grad(F.cross_entropy(net(points), y), parameters)
    with torch.no_grad():
        torch._foreach_add_(parameters, found, alpha=-LR)


def together(net: nn.Module, weights: Weights, x: Tensor, y: Tensor) -> None:
    """A step of all networks, whose weights are stacked [S, ...], on images [S, N, ...]."""

    def loss(own: Weights, points: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, own, (points,)), labels)

    of_points, of_weights = vmap(grad(loss, 1)), vmap(grad(loss, 0))
    points = attack(lambda moved: of_points(weights, moved, y), x)
    found = of_weights(weights, points, y)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.sub_(LR * found[name])


def prepared(model: str, seeds: int) -> tuple[list[Net], Step, Weights, Step]:
    """The networks and a step of each in turn; the same weights stacked and a step of all."""
    spec, channels, size, batch = MODELS[model]
    nets = [
        build_model(spec, channels=channels, size=size, classes=10, seed=seed)
        for seed in range(seeds)
    ]
    rng = generator(0, "benchmark/seeds")
    x = torch.rand(seeds, batch, channels, size, size, generator=rng)
    y = torch.randint(10, (seeds, batch), generator=rng)
    weights = {k: v.detach().clone() for k, v in stack_module_state(list(nets))[0].items()}
    skeleton = build_model(spec, channels=channels, size=size, classes=10, seed=0)

    def each() -> None:
        for net, points, labels in zip(nets, x, y, strict=True):
            alone(net, points, labels)

    return nets, each, weights, lambda: together(skeleton, weights, x, y)


def seconds(step: Step) -> float:
    """Time a step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for model in arguments.models:
        nets, each, weights, all_at_once = prepared(model, arguments.seeds)
        each()
        all_at_once()
        apart = max(
            float((weights[name][seed] - value.detach()).abs().max())
            for seed, net in enumerate(nets)
            for name, value in net.named_parameters()
        )
        pairs = [(seconds(each), seconds(all_at_once)) for _ in range(arguments.rounds)]
        ratios = [one / other for one, other in pairs]
        sys.stdout.write(
            f"{model}, {arguments.seeds} seeds: one after another {pairs[-1][0]:.2f} s, together "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f}-{max(ratios):.2f}); "
            f"weights differ by {apart:.1e} after a step\n"
        )


if __name__ == "__main__":
    main()
