"""What the benchmarks of whole methods share: a batch, a step of a method, and a fair clock."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ablation.doctor.clock import Step
from ablation.models.folding import Folded
from ablation.random import generator
from ablation.training.memory import Memories, remembering
from ablation.training.method import Method
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from benchmarks.train_step import build


def asked(description: str | None) -> argparse.Namespace:
    """Options of the command line: ``batch_size``, ``rounds`` and ``json``."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def random_batch(size: int) -> Batch:
    """So many images of CIFAR's shape, channels last."""
    rng = generator(0, "benchmark")
    x = torch.rand(size, 3, 32, 32, generator=rng).contiguous(memory_format=torch.channels_last)
    return Batch(x, torch.randint(10, (size,), generator=rng), torch.arange(size))


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


def timed(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each step, round by round; a first round warms up."""
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds + 1):
        for label, step in steps.items():
            begin = time.process_time()
            step()
            times[label].append(time.process_time() - begin)
    return {label: values[1:] for label, values in times.items()}


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What figures are to be read with."""
    return {
        "torch": torch.__version__,
        "device": platform.processor(),
        "threads": torch.get_num_threads(),
        "batch": options.batch_size,
        "rounds": options.rounds,
    }
