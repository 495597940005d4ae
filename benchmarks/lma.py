"""Time a step of LMA-AT against a step of AT, in one run: what do its parts cost?

Beyond AT, LMA-AT makes one forward of the clean images and its share of the backward pass; losses
and moving averages are on [N, K] tensors. All steps alternate round by round; figures are medians
of paired ratios of processor time, so that other work on the machine counts little.

    python -m benchmarks.lma [--batch-size 16 --rounds 5 --json benchmarks/lma_cpu.json]
"""

from __future__ import annotations

import json
import statistics

from ablation.components import BoostedCrossEntropy, EmaLogits, MarginLoss
from ablation.training.method import Method
from benchmarks.steps import asked, clean_pass, machine, random_batch, step_of, timed
from benchmarks.train_step import method


def lma_at() -> Method:
    """The preset, without Hydra."""
    composed = method("at")
    composed = Method(**{**vars(composed), "roles": {"robust": "ce", "classify": "ce"}})
    for component in (BoostedCrossEntropy(), EmaLogits(), MarginLoss()):
        composed = component.apply(composed)
    return composed


def main() -> None:
    """Print the ratios; optionally write JSON."""
    options = asked(__doc__)
    batch = random_batch(options.batch_size)
    steps = {
        "AT": step_of(method("at"), batch),
        "LMA-AT": step_of(lma_at(), batch),
        "clean pass": clean_pass(batch),
    }
    rows = list(zip(*timed(steps, options.rounds).values(), strict=True))
    facts = {
        **machine(options),
        "lma_at_of_at": statistics.median(lma / at for at, lma, _ in rows),
        "more_than_at_in_clean_passes": statistics.median((lma - at) / c for at, lma, c in rows),
    }
    print(json.dumps(facts, indent=2))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
