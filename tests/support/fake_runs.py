"""Run directories of finished runs without the training: for plans, sweeps and reports."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import yaml

from ablation.config import evaluations
from ablation.config.experiment import Config
from ablation.evaluation import describe
from ablation.runs import launches
from ablation.runs.columns import Column
from ablation.runs.directory import Run
from ablation.runs.launches import Launch


def fake_run(
    config: Config,
    values: Mapping[str, float],
    *,
    n: int = 200,
    state: str = "done",
    flags: tuple[str, ...] = (),
    launch: Launch | None = None,
    skip: tuple[str, ...] = (),
) -> Run:
    """A run as training would leave it.

    Args:
        config: of the run.
        values: percent by column: ``pgd20``, ``clean_val``; metrics without one get 50.
        n: images of each split; the first ``value`` percent of the evaluated ones are robust.
        state: done, failed or interrupted.
        flags: warnings of its evaluations.
        launch: who asked for it.
        skip: metrics that were not evaluated.
    """
    run = Run(config.run_dir, config.train_id)
    with run.open(yaml.safe_dump(config.container(), sort_keys=False)):
        if launch is not None:
            launches.note_launch(run, launch)
        (run.checkpoints.folder / "step_0000001").mkdir(parents=True)
        if state == "done":
            for node in evaluations.evaluations(config):
                for name in evaluations.checkpoints(config):
                    _evaluate(run, config, node, values, n, flags, skip, name)
        run.set_status(state, error="loss_ce is not finite" if state == "failed" else None)  # type: ignore[arg-type]
    return run


def fake_evaluation(
    config: Config,
    values: Mapping[str, float],
    *,
    n: int = 200,
    flags: tuple[str, ...] = (),
    source: str | None = None,
) -> None:
    """What ``ablation-evaluate run=...`` adds to a run.

    Args:
        config: of the run, with the other evaluation.
        values: likewise ``fake_run``.
        n: likewise.
        flags: likewise.
        source: the run that ``attack_from`` names.
    """
    run = Run(config.run_dir, config.train_id)
    with run.reopen():
        for node in evaluations.evaluations(config):
            for name in evaluations.checkpoints(config):
                _evaluate(run, config, node, values, n, flags, (), name, source)


def _evaluate(run, config, node, values, n, flags, skip, name, source=None):
    weights = evaluations.chosen_weights(config)
    key = evaluations.eval_id(node, config.eps, config.norm, weights, source)
    count = n if node.n is None else node.n
    index = np.arange(count) * (1 if node.n is None else 3)  # a subset is not the first images
    entries, table = [], {"index": index, "label": index % 10}
    for metric, attack in node.attacks.items():
        if metric in skip:
            continue
        column = Column(metric, node.split).name
        robust = np.arange(count) < round(values.get(column, 50.0) / 100 * count)
        table["clean_correct" if metric == "clean" else f"{metric}_robust"] = robust
        eps = config.eps if node.eps is None else node.eps
        params = {}
        if attack is not None:
            params = describe(attack, eps, node.norm or config.norm, config.data.classes)
            params |= {"seed": node.seed, "batch_size": node.batch_size}
            params |= {"attack_from": source} if source else {}
        entries.append(
            {
                "checkpoint": name,
                "weights": weights,
                "metric": metric,
                "split": node.split,
                "value": 100 * robust.mean(),
                "unit": "percent",
                "n": count,
                "params": params,
            }
        )
    meta = {"scale": config.scale, "deviations": [], "seconds": {}}
    run.add_evaluation(name, key, entries, pd.DataFrame(table), flags, meta)
