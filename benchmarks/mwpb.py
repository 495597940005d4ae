"""Time a step of each method of the MWPB family against a step of AT, in one run.

MWPB's "no additional cost" is a forward of the clean images; GAIRAT counts on logits that are
there; AWP makes one more forward and backward; MMA bisects without gradients; ST-AT attacks two
points at once. All steps alternate round by round; figures are medians of paired ratios of
processor time, with the smallest and the largest, so that other work on the machine counts little.

    python -m benchmarks.mwpb [--batch-size 16 --rounds 5 --json benchmarks/mwpb_cpu.json]
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

from ablation.components import Awp, Gairat, Mail, MarginWeightedEpsilon, Mma, Squeeze, Wat
from ablation.terms import CrossEntropy
from ablation.training.method import Component, Method, Slot, parse_passes
from benchmarks.steps import asked, clean_pass, machine, random_batch, step_of, timed
from benchmarks.train_step import method

COMPONENTS: dict[str, tuple[Component, ...]] = {
    "MWPB-AT": (MarginWeightedEpsilon(),),
    "MAIL": (Mail(),),
    "GAIRAT": (Gairat(),),
    "WAT": (Wat(),),
    "AWP": (Awp(),),
    "MWPB-AWP": (Awp(), MarginWeightedEpsilon()),
    "MMA": (Mma(),),
}


def methods() -> dict[str, Method]:
    """The arms by name, without Hydra; AT is the first."""
    at = replace(method("at"), roles={"robust": "ce", "classify": "ce"})
    arms = {"AT": at}
    for label, components in COMPONENTS.items():
        arms[label] = at
        for component in components:
            arms[label] = component.apply(arms[label])
    clean = replace(
        at,
        passes=parse_passes("craft:adv", "nat", "step"),
        terms={"ce": Slot(CrossEntropy("nat"))},
        roles={"classify": "ce"},
    )
    arms["ST-AT"] = Squeeze().apply(clean)
    for label in ("TRADES", "MART"):
        arms[label] = method(label.lower())
        arms[f"MWPB-{label}"] = MarginWeightedEpsilon().apply(arms[label])
    return arms


def ratio(times: dict[str, list[float]], label: str, of: str) -> list[float]:
    """Median, smallest and largest of the paired ratios."""
    pairs = [a / b for a, b in zip(times[label], times[of], strict=True)]
    return [round(value, 3) for value in (statistics.median(pairs), min(pairs), max(pairs))]


def main() -> None:
    """Print the ratios; optionally write JSON."""
    options = asked(__doc__)
    batch = random_batch(options.batch_size)
    steps = {label: step_of(arm, batch) for label, arm in methods().items()}
    times = timed({**steps, "clean pass": clean_pass(batch)}, options.rounds)
    bases = {"MWPB-TRADES": "TRADES", "MWPB-MART": "MART", "MWPB-AWP": "AWP"}
    extra = {
        label: statistics.median(
            (a - b) / c
            for a, b, c in zip(
                times[label], times[bases.get(label, "AT")], times["clean pass"], strict=True
            )
        )
        for label in (*COMPONENTS, *bases)
    }
    facts = {
        **machine(options),
        "of_a_step_of_at": {label: ratio(times, label, "AT") for label in steps if label != "AT"},
        "of_a_step_without_mwpb": {label: ratio(times, label, of) for label, of in bases.items()},
        "more_in_clean_forward_and_backward_passes": {
            label: round(value, 2) for label, value in extra.items()
        },
    }
    print(json.dumps(facts, indent=2))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
