"""A W&B sweep: its agent's command is ours, and the run is the agent's. Offline."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablation.commands import cli, train
from ablation.config.folders import register_components
from ablation.config.overrides import letting_in
from ablation.errors import DONE
from ablation.jobs import train as job
from tests.support.configs import compose_config
from tests.support.jobs import metrics, plain, run_of
from tests.support.wandb_reader import read_all

SWEEP = yaml.safe_load((Path(__file__).parents[2] / "examples" / "wandb_sweep.yaml").read_text())


def ends(parameter: dict[str, Any]) -> list[Any]:
    """Values that the agent may draw: the ends of an interval, or all."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


DRAWS = [
    dict(zip(SWEEP["parameters"], values, strict=True))
    for values in itertools.product(*map(ends, SWEEP["parameters"].values()))
]


def command(draw: dict[str, Any]) -> list[str]:
    """The command line that ``wandb agent`` makes of the file for these values."""
    from wandb.sdk.launch.sweeps import utils  # takes seconds

    chunks = utils.create_sweep_command(list(SWEEP["command"]))
    args = {key: {"value": value} for key, value in draw.items()}
    filled = {**utils.create_sweep_command_args({"args": args}), "program": [SWEEP["program"]]}
    words: list[str] = []
    for chunk in chunks:
        words += filled[chunk[2:-1]] if chunk.startswith("${") else [chunk]
    return words


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_every_corner_of_the_sweep_is_a_valid_command(draw):
    program, *overrides = command(draw)
    assert program == "ablation-train"
    register_components()
    assert cli.preflight("config", overrides, train.check, planned=True) == []
    config = compose_config(*map(letting_in, overrides))
    assert config.lr == draw["lr"]
    assert config.container()["method"]["terms"]["kl"]["coef"] == draw["method.terms.kl.coef"]
    assert (config.component["awp"] is not None) == (draw["component/awp"] == "enabled")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # wandb's open file
def test_the_run_is_the_agents_and_logs_the_metric_of_held_out_images(tmp_path, monkeypatch):
    import wandb

    draw = DRAWS[0]
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({key: {"value": value} for key, value in draw.items()}))
    for name, value in {
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "agents",
        "WANDB_SWEEP_PARAM_PATH": str(params),
        "WANDB_MODE": "offline",
    }.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it has read its environment before
    overrides = ["method=trades", "evaluation=none", "epochs=1", "tracking.mode=online"]
    container = plain(tmp_path, *overrides)
    assert job.train(container) == DONE
    wandb.teardown()
    run = run_of(container)
    (found,) = read_all(run.path)
    assert found.run_id == "agents"
    (row,) = [row for row in found.history if "loss" in row]
    assert row[SWEEP["metric"]["name"]] == metrics(run)[-1][SWEEP["metric"]["name"]]
    assert found.summary.keys().isdisjoint({"best_robust/clean", "best_robust/pgd20"})
