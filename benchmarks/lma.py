"""Time a step of LMA-AT against a step of AT, in one run: what do its parts cost?

Beyond AT, LMA-AT makes one forward of the clean images and its share of the backward pass; losses
and moving averages are on [N, K] tensors. All steps alternate round by round; figures are medians
of paired ratios of processor time, so that other work on the machine counts little.

    python -m benchmarks.lma [--batch-size 16 --rounds 5 --json benchmarks/lma_cpu.json]
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
import torch.nn.functional as F

from ablation.components import BoostedCrossEntropy, EmaLogits, MarginLoss
from ablation.models.folding import Folded
from ablation.random import generator
from ablation.training.memory import Memories, remembering
from ablation.training.method import Method
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from benchmarks.train_step import build, method

Step = Callable[[], object]


def lma_at() -> Method:
    """The preset, without Hydra."""
    composed = method("at")
    composed = Method(**{**vars(composed), "roles": {"robust": "ce", "classify": "ce"}})
    for component in (BoostedCrossEntropy(), EmaLogits(), MarginLoss()):
        composed = component.apply(composed)
    return composed


def step_of(composed: Method, batch: Batch) -> Step:
    """One training step, with what its parts remember."""
    net, optimizer = build(batch.x.device, channels_last=True, lr=0.01, fused=True)
    folded, clock = Folded(net), Clock(0, 0)
    memories = Memories(
        [composed],
        n_train=len(batch.y),
        batch_size=len(batch.y),
        classes=10,
        device=batch.x.device,
    )

    def step() -> None:
        net.train()
        _, views = train_step(
            composed, net, optimizer, batch, clock, seed=0, folded=folded, memories=memories
        )
        memories.commit(remembering(composed), views)

    return step


def clean_pass(batch: Batch) -> Step:
    """A forward and a backward pass of the clean images, to the parameters."""
    net, _ = build(batch.x.device, channels_last=True, lr=0.01, fused=True)

    def step() -> None:
        net.train()
        F.cross_entropy(net(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]

    return step


def main() -> None:
    """Print the ratios; optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rng = generator(0, "benchmark")
    x = torch.rand(options.batch_size, 3, 32, 32, generator=rng)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch_size,), generator=rng)
    batch = Batch(x, y, torch.arange(len(y)))
    steps = {
        "AT": step_of(method("at"), batch),
        "LMA-AT": step_of(lma_at(), batch),
        "clean pass": clean_pass(batch),
    }
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(options.rounds + 1):
        for label, step in steps.items():
            begin = time.process_time()
            step()
            times[label].append(time.process_time() - begin)
    rows = list(zip(*(values[1:] for values in times.values()), strict=True))  # one to warm up
    facts = {
        "torch": torch.__version__,
        "device": platform.processor(),
        "threads": torch.get_num_threads(),
        "batch": options.batch_size,
        "rounds": options.rounds,
        "lma_at_of_at": statistics.median(lma / at for at, lma, _ in rows),
        "more_than_at_in_clean_passes": statistics.median((lma - at) / c for at, lma, c in rows),
    }
    print(json.dumps(facts, indent=2))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
