"""Is bf16 kept honest? Attacks beside other random starts, and runs beside other seeds.

PGD-AT of a narrow form of EMR's CNN on MNIST, in fp32 and in bf16. What bf16 changes is held
against what chance changes in fp32:

- examples of the training attack, against a trained network, by the cross-entropy and the verdict
  of the network in fp32, and by the share of pixels that are moved the same way;
- runs of several seeds, by their test accuracies.

Runs are found again where they are.

    python -m benchmarks.precision --data-dir data [--seeds 3 --runs-dir runs --json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

import ablation
from ablation.jobs.setup import load_images
from ablation.models import Net
from ablation.models.folding import Folded
from ablation.numerics.precision import precision_context
from ablation.training.step import craft
from ablation.training.views import StepViews
from ablation.types import Batch, Clock

Kind = Literal["fp32", "bf16"]
CPU = torch.device("cpu")
RUN = (
    *("method=at", "data=mnist", "model=cnn", "model.spec.width=16", "model.spec.dense=64"),
    *("data.train_size=4000", "batch_size=32", "epochs=6", "lr=0.05", "eps=0.1"),
    *("attack.steps=10", "evaluation=standard"),
    *(f"~evaluation.attacks.{name}" for name in ("fgsm", "pgd100", "cw")),
    *("evaluation.n=1000", "tracking.mode=disabled"),
)
KINDS: tuple[Kind, ...] = ("fp32", "bf16")
METRICS = ("clean", "pgd20", "apgd_ce")
IMAGES = 500


def trained(kind: Kind, seed: int, arguments: argparse.Namespace) -> ablation.LoadedRun:
    """A run, trained unless it is there."""
    places = (f"data_dir={arguments.data_dir}", f"runs_dir={arguments.runs_dir}")
    return ablation.train([*RUN, *places, f"runtime.precision={kind}", f"seed={seed}"])


def accuracies(run: ablation.LoadedRun) -> dict[str, float]:
    """Percent by metric."""
    numbers = run.results.set_index("metric")["value"]
    return {metric: float(numbers[metric]) for metric in METRICS}


def examples(run: ablation.LoadedRun, batch: Batch, kind: Kind, seed: int) -> Tensor:
    """Points [N, 1, 28, 28] that the training attack finds in a precision, from a seed's start."""
    net, method = cast(Net, run.net), run.config.phases[-1].method
    views = StepViews(net, batch, Clock(0, 0), precision_context(kind, CPU))
    craft(method, views, "adv", method.budget(views), seed, Folded(net))
    return views.x("adv")


def beside(run: ablation.LoadedRun, batch: Batch, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """How far two sets of examples are apart, as the network in fp32 sees them."""
    with torch.no_grad():
        logits = run.net(ours), run.net(theirs)
    losses = [F.cross_entropy(each, batch.y, reduction="none") for each in logits]
    robust = [each.argmax(1) == batch.y for each in logits]
    moved = (ours - batch.x).sign(), (theirs - batch.x).sign()
    gap = losses[0] - losses[1]
    return {
        "loss": float(losses[0].mean()),
        "loss_gap": float(gap.mean()),
        "loss_gap_half_width": 1.96 * float(gap.std()) / len(gap) ** 0.5,
        "same_direction": 100 * float((moved[0] == moved[1]).float().mean()),
        "other_verdicts": 100 * float((robust[0] != robust[1]).float().mean()),
    }


def attacked(run: ablation.LoadedRun) -> dict[str, dict[str, float]]:
    """bf16 beside fp32 from the same start, and another start beside it in fp32."""
    images = load_images(run.config, CPU).test
    x, y = images.images[:IMAGES].float() / 255, images.labels[:IMAGES]
    batch = Batch(x, y, torch.arange(IMAGES))
    first = examples(run, batch, "fp32", 0)
    return {
        "bf16, same start": beside(run, batch, examples(run, batch, "bf16", 0), first),
        "fp32, another start": beside(run, batch, examples(run, batch, "fp32", 1), first),
    }


def main() -> None:
    """Train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="with MNIST in it, as torchvision has it")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    runs = {kind: [trained(kind, s, arguments) for s in range(arguments.seeds)] for kind in KINDS}
    figures: dict[str, Any] = {"torch": torch.__version__, "images": IMAGES}
    figures["attacks"] = {kind: attacked(runs[kind][0]) for kind in KINDS}
    figures["runs"] = {kind: [accuracies(run) for run in runs[kind]] for kind in KINDS}
    for kind, found in figures["attacks"].items():
        for what, numbers in found.items():
            text = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
            sys.stdout.write(f"network of {kind}; {what}, beside fp32: {text}\n")
    for metric in METRICS:
        columns = {kind: [each[metric] for each in figures["runs"][kind]] for kind in KINDS}
        text = "; ".join(
            f"{kind} {statistics.mean(values):.1f} (" + ", ".join(f"{v:.1f}" for v in values) + ")"
            for kind, values in columns.items()
        )
        sys.stdout.write(f"{metric}: {text}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
