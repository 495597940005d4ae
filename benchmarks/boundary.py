"""Time boundary search and the steps that use it against PGD and pyautoattack's FAB, in one run.

One batch, one network, contestants interleaved round by round; figures are medians of paired
ratios. The labels are the network's own predictions, so that every image is searched.

    python -m benchmarks.boundary [--batch-size 16 --rounds 5 --device cuda --json figures.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ablation.budgets import Fixed
from ablation.components import (
    ClosedFormGradient,
    ExponentialLoss,
    FabMargin,
    MarginMaximization,
    SoftBoundary,
)
from ablation.crafters import Ascended, AttackCrossEntropy, Pgd
from ablation.models import Net, ResNet, build_model
from ablation.models.folding import Folded
from ablation.numerics.boundary import Boundary, Soft, fab, fab_all_classes
from ablation.numerics.functional import cross_entropy, lp_norm, pgd
from ablation.numerics.modes import evaluating
from ablation.random import generator
from ablation.terms import CrossEntropy
from ablation.training.method import Method, Slot, parse_passes
from ablation.training.optim import Sgd
from ablation.training.step import train_step
from ablation.types import Batch, Clock

EPS, STEPS, PGD_STEPS = 8 / 255, 20, 10
RATIOS = {
    "a FAB step": ("fab", "pgd", PGD_STEPS / STEPS),
    "a FAB step, BatchNorm folded": ("fab, folded", "pgd, folded", PGD_STEPS / STEPS),
    "pyautoattack's FAB-20, of ours to one boundary": ("pyautoattack's fab", "fab", 1.0),
    "pyautoattack's FAB-20, of ours to all classes": (
        *("pyautoattack's fab", "fab, all classes"),
        1.0,
    ),
    "a DyART step, of ten PGD steps": ("dyart step", "pgd, folded", 1.0),
    "a DyART step, of an AT step": ("dyart step", "at step", 1.0),
    "an Elsayed step, of a standard step": ("elsayed step", "standard step", 1.0),
}
"""What is printed: label -> (above, below, factor)."""


def standard() -> Method:
    """Cross-entropy."""
    return Method({}, Fixed(EPS), parse_passes("nat", "step"), {"ce": Slot(CrossEntropy("nat"))})


def methods() -> dict[str, Method]:
    """The presets of conf/method, without Hydra and burn-in."""
    elsayed = MarginMaximization().apply(standard())
    dyart = MarginMaximization(coef=1000.0).apply(standard())
    for part in (
        ExponentialLoss(reduction="batch"),
        SoftBoundary(),
        FabMargin(),
        ClosedFormGradient(),
    ):
        dyart = part.apply(dyart)
    attack = Pgd({"loss": Ascended(AttackCrossEntropy())}, PGD_STEPS, 0.25)
    at = Method(
        {"adv": attack},
        Fixed(EPS),
        parse_passes("craft:adv", "adv", "step"),
        {"ce": Slot(CrossEntropy("adv"))},
    )
    return {
        "standard step": standard(),
        "elsayed step": elsayed,
        "dyart step": dyart,
        "at step": at,
    }


def build(device: torch.device) -> Net:
    """ResNet-18 with fixed weights."""
    net = build_model(ResNet(), channels=3, size=32, classes=10).to(device)
    return net.to(memory_format=torch.channels_last)


def contestants(batch: Batch) -> dict[str, Callable[[], object]]:
    """Searches on one network, steps each on their own."""
    net = build(batch.x.device)
    net.eval()
    x, y = batch.x, batch.y
    eps = torch.full((len(x),), EPS, device=x.device)
    folded = Folded(net)

    def search(model: Callable[[Tensor], Tensor]) -> Boundary:
        rng = generator(0, "benchmark", device=x.device)
        return fab(lambda p: Soft(5.0)(model(p), y), x, norm="linf", rng=rng, steps=STEPS)

    def attack(model: Callable[[Tensor], Tensor]) -> Tensor:
        return pgd(lambda p: cross_entropy(model(p), y), x, x, eps, eps / 4, PGD_STEPS, "linf")

    found = {
        "pgd": lambda: _frozen(net, lambda: attack(net)),
        "fab": lambda: _frozen(net, lambda: search(net)),
        "pgd, folded": lambda: _frozen(net, lambda: attack(folded.refresh())),
        "fab, folded": lambda: _frozen(net, lambda: search(folded.refresh())),
        "fab, all classes": lambda: _frozen(
            net, lambda: fab_all_classes(net, x, y, norm="linf", steps=STEPS)
        ),
        "pyautoattack's fab": lambda: _frozen(net, lambda: theirs(net, batch)),
    }
    return {**found, **{name: stepper(method, batch) for name, method in methods().items()}}


def _frozen(net: Net, work: Callable[[], object]) -> object:
    with evaluating(net):
        return work()


def theirs(net: Net, batch: Batch) -> Tensor:
    """FAB of pyautoattack, untargeted: all classes, clean start, as many steps."""
    from pyautoattack.fab_pt import FABAttack_PT

    attack = FABAttack_PT(
        net, norm="Linf", n_restarts=1, n_iter=STEPS, eps=EPS, device=batch.x.device
    )
    points: Tensor = attack.attack_single_run(batch.x, batch.y)
    return points


def stepper(method: Method, batch: Batch) -> Callable[[], object]:
    """Training steps on a network of its own, at a rate that leaves it as it is."""
    net = build(batch.x.device)
    optimizer = Sgd().build(net, 1e-9)
    folded = Folded(net)
    net.train()
    return lambda: train_step(
        method, net, optimizer, batch, Clock(0, 0), seed=0, clip=0.1, folded=folded
    )


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(batch: Batch, rounds: int) -> dict[str, dict[str, float]]:
    """Ratios: median and range over the rounds, after a warm-up."""
    works = contestants(batch)
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = clock(work, batch.x.device)
            if number > 0:
                times[name].append(seconds)
    found = {}
    for label, (above, below, factor) in RATIOS.items():
        ratios = [factor * a / b for a, b in zip(times[above], times[below], strict=True)]
        found[label] = {
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
    return found


def agreement(batch: Batch) -> dict[str, float]:
    """Distances of both all-class searches where both find a boundary."""
    net = build(batch.x.device).eval()
    with evaluating(net):
        ours = fab_all_classes(net, batch.x, batch.y, norm="linf", steps=STEPS)
        points = theirs(net, batch)
        broken = net(points).argmax(1) != batch.y
    both = ours.found & broken
    ratio = ours.distance[both] / lp_norm(points - batch.x, "linf")[both]
    return {"both_found": int(both.sum()), "median_distance_ratio": float(ratio.median())}


def main() -> None:
    """Print the ratios; optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    device = torch.device(options.device)
    x = torch.rand(options.batch_size, 3, 32, 32, generator=generator(0, "benchmark")).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = build(device).eval()(x).argmax(1)
    batch = Batch(x, y, torch.arange(len(y), device=device))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    ratios, same = measure(batch, options.rounds), agreement(batch)
    for label, row in ratios.items():
        print(f"{label:48} {row['ratio']:6.2f}  ({row['low']:.2f}-{row['high']:.2f})")
    print(same)
    if options.json:
        facts = {"torch": torch.__version__, "device": where or str(device)}
        facts |= {"batch_size": options.batch_size, "rounds": options.rounds}
        found = {**facts, "ratios": ratios, "agreement": same}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
