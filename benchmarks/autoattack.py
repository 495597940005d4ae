"""Compare our AutoAttack with pyautoattack's: verdicts example by example, and processor time.

Small networks are trained once, plainly and adversarially. Both implementations then run through
``evaluate`` with the same settings; the reference with two seeds, which tells how far its own
verdicts move. Times are processor times per attack; a ratio's range is over the seeds.

    python -m benchmarks.autoattack [--tasks digits mnist_cnn --data-dir DIR --n 100 --json FILE]

MNIST is read from DIR/mnist, CIFAR-10 from DIR/cifar10 (train.parquet and test.parquet).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablation.data import Digits, ImageSet, Mnist, Parquet
from ablation.evaluation import AutoAttack, Evaluation, FastAutoAttack, Request, evaluate
from ablation.evaluation.autoattack import AutoAttackBase
from ablation.models import Cnn, Mlp, Net, ResNet, TinyCnn, build_model
from ablation.models.build import ModelSpec
from ablation.numerics.functional import cross_entropy, pgd
from ablation.numerics.modes import evaluating
from ablation.random import generator, key

PARTS = ("apgd_ce", "apgd_t", "fab_t", "square")
SEEDS = (0, 1)


@dataclass(frozen=True)
class Task:
    """Train a network of this form on these images, for robustness at this radius."""

    source: Digits | Mnist | Parquet
    folder: str
    spec: ModelSpec
    eps: float
    lr: float = 0.003


TASKS: Mapping[str, Task] = {
    "digits": Task(Digits(), "", TinyCnn(), 0.1),
    "mnist_mlp": Task(Mnist(download=False), "mnist", Mlp(hidden=2, width=256), 0.1, 0.001),
    "mnist_cnn": Task(Mnist(download=False), "mnist", Cnn(width=8, dense=64), 0.2, 0.001),
    "cifar_cnn": Task(Parquet(), "cifar10", TinyCnn(), 8 / 255),
    "cifar_resnet": Task(Parquet(), "cifar10", ResNet(width=8), 8 / 255),
}


def train(task: Task, data: ImageSet, *, robust: bool, epochs: int) -> Net:
    """Train on clean images, or on points of a PGD with seven steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = data.images.shape
        net = build_model(task.spec, channels=shape[1], size=(shape[2], shape[3]), classes=10)
    adam = torch.optim.Adam(net.parameters(), task.lr)
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=generator(0, "benchmark/order", epoch))
        for rows in torch.split(order, 100):
            x, y = data.images[rows] / 255, data.labels[rows]
            if robust:
                x = perturb(net, x, y, task.eps, key(0, "benchmark", epoch))
            net.train()
            adam.zero_grad()
            torch.autograd.backward(cross_entropy(net(x), y).mean())
            adam.step()
    return net.eval()


def perturb(net: Net, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Ascend the cross-entropy by seven steps of eps / 3 from a random start."""
    radius = torch.full((len(x),), eps)
    noise = torch.rand(x.shape, generator=generator(seed, "benchmark/start"))
    start = (x + eps * (2 * noise - 1)).clamp(0, 1)
    with evaluating(net):
        return pgd(lambda p: cross_entropy(net(p), y), x, start, radius, radius / 3, 7, "linf")


def timed(
    net: Net, data: ImageSet, attack: AutoAttackBase, task: Task, seed: int, batch_size: int
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate, and return the processor seconds of each part and of all."""
    seconds = dict.fromkeys(PARTS, 0.0)
    last = 0.0

    def progress(title: str, done: int, total: int) -> None:
        nonlocal last
        now = time.process_time()
        part = title.rpartition("/")[2]
        if part in seconds:
            seconds[part] += now - last
        last = now

    request = Request({"aa": attack}, task.eps, batch_size=batch_size, seed=seed, diagnose=False)
    found = evaluate(net, data.images, data.labels, request, progress=progress)
    return found, {**seconds, "total": sum(seconds.values())}


def compare(net: Net, data: ImageSet, task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Run both with every seed; return counts of verdicts, accuracies and ratios of times."""
    settings = {"version": "custom", "n_iter": options.n_iter, "queries": options.queries}
    reference, ours = AutoAttack(**settings), FastAutoAttack(**settings, search=options.search)
    runs: dict[str, list[tuple[Evaluation, dict[str, float]]]] = {"reference": [], "fast": []}
    for seed in SEEDS:
        for name, attack in (("reference", reference), ("fast", ours)):
            runs[name].append(timed(net, data, attack, task, seed, options.batch_size))
    robust = {
        name: [torch.tensor(found.examples["aa_robust"].to_numpy()) for found, _ in both]
        for name, both in runs.items()
    }
    first, fast = robust["reference"][0], robust["fast"][0]
    return {
        "clean": 100 * float(runs["fast"][0][0].examples["clean_correct"].mean()),
        "robust accuracy": {
            name: [100 * each.double().mean().item() for each in both]
            for name, both in robust.items()
        },
        "both robust": int((first & fast).sum()),
        "both broken": int((~first & ~fast).sum()),
        "only the reference breaks": int((~first & fast).sum()),
        "only ours breaks": int((first & ~fast).sum()),
        "two seeds of the reference differ on": int((first != robust["reference"][1]).sum()),
        "ratio": ratios([times for _, times in runs["reference"]], [t for _, t in runs["fast"]]),
        "seconds": {name: [times for _, times in both] for name, both in runs.items()},
    }


def ratios(
    above: list[dict[str, float]], below: list[dict[str, float]]
) -> dict[str, dict[str, float] | None]:
    """Reference over ours, median and range over the seeds; ``None`` where a part had no image."""
    found: dict[str, dict[str, float] | None] = {}
    for part in (*PARTS, "total"):
        each = [a[part] / b[part] for a, b in zip(above, below, strict=True) if a[part] and b[part]]
        found[part] = None
        if each:
            found[part] = {"ratio": statistics.median(each), "low": min(each), "high": max(each)}
    return found


def show(name: str, row: Mapping[str, Any]) -> None:
    """Print one network's figures."""
    print(f"\n{name}: clean {row['clean']:.1f} %")
    for label, value in row.items():
        if label == "robust accuracy":
            for whose, both in value.items():
                print(f"  {label}, {whose:28} {', '.join(f'{each:.1f} %' for each in both)}")
        elif isinstance(value, int):
            print(f"  {label:46} {value}")
    for part, ratio in row["ratio"].items():
        text = (
            "not reached"
            if ratio is None
            else "{ratio:.2f}x ({low:.2f}-{high:.2f})".format(**ratio)
        )
        print(f"  processor time, reference / ours, {part:12} {text}")


def main() -> None:
    """Print the comparison of each network; optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["digits"])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--n", type=int, default=100, help="test images")
    parser.add_argument("--train", type=int, default=1400, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--n-iter", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--search", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows = {}
    for name in options.tasks:
        task = TASKS[name]
        training, test = task.source.load(options.data_dir / task.folder)
        training, test = (
            data.subset(torch.randperm(len(data), generator=generator(0, "benchmark/images"))[:n])
            for data, n in ((training, options.train), (test, options.n))
        )
        for robust in (True, False):
            label = f"{name}, {'adversarially' if robust else 'plainly'} trained"
            net = train(task, training, robust=robust, epochs=options.epochs)
            rows[label] = compare(net, test, task, options)
            show(label, rows[label])
    if options.json:
        facts = {"torch": torch.__version__, "device": platform.processor()}
        facts |= {name: str(value) for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({**facts, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
