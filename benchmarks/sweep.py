"""What a sweep costs before and beside its jobs: planning, a finished table, the start of a job.

    python benchmarks/sweep.py [--out sweep_cpu.json]

Absolute times, in one process of a machine that should be otherwise idle; planning is also given
in calls of Hydra's own ``compose``, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from ablation.config import folders, overrides
from ablation.runs.directory import Run
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import open_table
from tests.support.fake_runs import fake_run

BIN = Path(sys.executable).parent
GRID = "lr=range(0.01,0.51,0.01)"


def planning() -> dict[str, float]:
    """Milliseconds per job of the largest table, and of Hydra composing it."""
    table = open_table("dose_table1")
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        began = time.perf_counter()
        jobs = Planner(table, check=False).plan().jobs
        planned = time.perf_counter() - began
        began = time.perf_counter()
        for job in jobs[:20]:
            texts = [overrides.letting_in(text) for text in job.points[0].overrides]
            hydra_compose("config", texts)
        composed = (time.perf_counter() - began) / 20
    return {
        "jobs": len(jobs),
        "plan_ms_per_job": 1000 * planned / len(jobs),
        "hydra_compose_ms": 1000 * composed,
    }


def finished_table(folder: Path) -> dict[str, float]:
    """Seconds that the command of a finished table of 100 jobs takes, report included."""
    cli = [GRID, "seed=0,1", f"runs_dir={folder}", "tracking.mode=disabled"]
    table = open_table("demo")
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        for job in Planner(table, cli, ["at"]).plan().jobs:
            fake_run(job.config, {"clean": 90, "pgd20": 40})
    found = []
    for _ in range(3):
        began = time.perf_counter()
        ran = run("ablation-train", "table=demo", "row=at", *cli)
        found.append(time.perf_counter() - began)
        assert ran.returncode == 0, ran.stderr
        assert "100 done" in ran.stdout
    return {"finished_table_of_100_s": sorted(found)[1]}


def start(folder: Path) -> dict[str, float]:
    """Seconds from the command to the end of a run of one step, without evaluation."""
    found = []
    for seed in range(3):
        began = time.perf_counter()
        ran = run(
            *("ablation-train", "method=at", "epochs=1", "data.train_size=128", "evaluation=none"),
            *("selection.metric=last", "data.val_size=0", "tracking.mode=disabled"),
            *(f"seed={seed}", f"runs_dir={folder}"),
        )
        found.append(time.perf_counter() - began)
        assert ran.returncode == 0, ran.stderr
    assert len([*folder.glob("*/metrics.jsonl")]) == 3
    assert Run(next(folder.glob("digits-*")), "").status() is not None
    return {"one_step_run_s": sorted(found)[1]}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A console script of this environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(BIN / name), *arguments]
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env=environment
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            **planning(),
            **finished_table(Path(folder) / "table"),
            **start(Path(folder) / "start"),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
