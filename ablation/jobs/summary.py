"""Print what a job is about to do, and its result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ablation.config.experiment import Config
from ablation.config.surroundings import devices_of
from ablation.output import say
from ablation.runs.directory import Run
from ablation.text import show_fraction, summary_table

DECIMALS = {"radius": 4, "correlation": 3}
"""Of numbers that are not shown with two."""

SMOKE = "SMOKE RUN: digits and a tiny network in place of those asked for; its numbers mean nothing"


def announce(config: Config, run: Run, device: torch.device) -> None:
    """Print what is about to happen, in a few lines."""
    phases = " + ".join(f"{phase.epochs} {phase.name}" for phase in config.phases)
    switched = [name for name, component in config.component.items() if component is not None]
    count = devices_of(config)
    where = str(device) if count == 1 else f"{count} x {device.type}"
    smoke = f"  {SMOKE}" if config.scale == "smoke" else ""
    lines = [
        f"run     {run.path}{smoke}",
        f"method  {config.method.name}" + (f" with {', '.join(switched)}" if switched else ""),
        f"data    {config.data.name}, model {config.model.name}, {phases} epochs on {where}",
        f"threat  {config.norm}, eps {show_fraction(config.eps)}",
    ]
    lines += [f"note    {note}" for note in config.notes]
    say("\n".join(lines))


def checks_line(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many checks passed, tripped, or were run by none of a run's evaluations."""
    outcomes: dict[str, set[str]] = {}
    for check in checks:
        outcomes.setdefault(check["name"], set()).add(check["outcome"])
    worst = [
        next(name for name in ("tripped", "passed", "not run") if name in found)
        for found in outcomes.values()
    ]
    counts = (f"{worst.count(name)} {name}" for name in ("passed", "tripped", "not run"))
    return f"checks: {', '.join(counts)}"


def _metric(entry: Mapping[str, Any]) -> str:
    source = entry["params"].get("attack_from")
    return str(entry["metric"]) + (f" from {source}" if source else "")


def result_table(run: Run, asked: Collection[tuple[str, str]] | None = None) -> str:
    """The evaluations that were asked for as aligned text, warnings below.

    Args:
        run: its directory.
        asked: checkpoint and ``eval_id`` of each; the run's others are only counted;
            ``None`` shows all.
    """
    result = run.result(asked)
    if result is None:
        return f"{run.path.name}: no evaluation was asked for"
    others = len((run.result() or result)["entries"]) - len(result["entries"])
    rows = [
        (
            entry["checkpoint"] + ("" if entry["weights"] == "raw" else " (average)"),
            _metric(entry),
            entry["split"],
            _shown(entry["value"], entry["unit"]),
            entry["unit"],
            str(entry["n"]),
            show_fraction(entry["params"]["eps"]) if "eps" in entry["params"] else "",
        )
        for entry in result["entries"]
    ]
    header = ("checkpoint", "metric", "split", "value", "unit", "n", "eps")
    table = summary_table(run.path.name, rows, header)
    marks = ["SMOKE RUN: these numbers mean nothing"] if result["scale"] == "smoke" else []
    marks += [f"differs from its table: {text}" for text in result["deviations"]]
    marks += [checks_line(result["checks"])] if "checks" in result else []
    marks += [f"{others} numbers of other evaluations are in {run.result_path}"] if others else []
    return "\n".join([table, *marks, *(f"warning: {flag}" for flag in result["flags"])])


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.{DECIMALS.get(unit, 2)}f}"
