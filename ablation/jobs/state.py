"""Where a run stands against its config: trained, evaluated, moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ablation.config.evaluations import checkpoints, chosen_weights, eval_id, evaluations
from ablation.config.experiment import CheckpointName, Config, EvaluationConfig
from ablation.runs.directory import Run
from ablation.runs.evaluations import TRAINING


def moved(config: Config, run: Run) -> bool:
    """Say whether the command names another data folder than the run was trained from."""
    saved = run.config() if run.config_path.exists() else {}
    before = Path(str(saved.get("data_dir", config.data_dir))).expanduser()
    return before.resolve() != config.data_root.resolve()


def asked(config: Config) -> list[tuple[CheckpointName, EvaluationConfig]]:
    """Checkpoints and their evaluations that the config asks for."""
    return [(name, node) for node in evaluations(config) for name in checkpoints(config)]


def _key(config: Config, name: str, node: EvaluationConfig, source: str | None) -> tuple[str, str]:
    return name, eval_id(node, config.eps, config.norm, chosen_weights(config), source)


def asked_keys(config: Config, source: str | None = None) -> list[tuple[str, str]]:
    """Checkpoint and ``eval_id`` of each evaluation asked for, and of what training recorded.

    Args:
        config: of the run.
        source: key of the weights that the attacks come from, if they are another run's.
    """
    recorded = [(name, TRAINING) for name in checkpoints(config)]
    return [*(_key(config, name, node, source) for name, node in asked(config)), *recorded]


def missing(
    config: Config, run: Run, source: str | None = None
) -> list[tuple[CheckpointName, EvaluationConfig]]:
    """Those of the evaluations asked for that are not on disk; ``source`` as in ``asked_keys``."""
    return [
        (name, node)
        for name, node in asked(config)
        if not run.has_evaluation(*_key(config, name, node, source))
    ]


def is_trained(run: Run) -> bool:
    """Say whether training has ended, so that the weights are all that is needed."""
    status = run.status()
    return status is not None and bool(status.facts.get("trained"))


def weights_problems(
    config: Config, run: Run, names: Sequence[CheckpointName] | None = None
) -> list[str]:
    """List why a run's weights cannot be evaluated: it must be trained to the end.

    Args:
        config: of the run.
        run: its directory.
        names: of the weights; ``None`` means those that the config asks to evaluate.
    """
    if not is_trained(run):
        return [f"run={run.path}: it is not trained to the end; finish its training first"]
    return [
        f"run={run.path}: its weights {name} were deleted; move the folder away to train it anew"
        for name in names or checkpoints(config)
        if not run.checkpoints.has(name)
    ]
