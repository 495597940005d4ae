"""What a config asks to attack, and the identity of each evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ablation.config.experiment import (
    CheckpointName,
    Config,
    EvaluationConfig,
    Weights,
    digest,
    stamped,
)
from ablation.config.parser import plain
from ablation.evaluation import Measure, SplitName
from ablation.types import Norm


def eval_id(
    evaluation: EvaluationConfig,
    eps: float,
    norm: Norm,
    weights: Weights,
    source: str | None = None,
) -> str:
    """Hash of one evaluation as it takes effect; the checkpoint's name is not part of it.

    Args:
        evaluation: the attacks; what it leaves open is filled in by the rest.
        eps: radius unless the evaluation has its own.
        norm: of the threat model, unless the evaluation has its own.
        weights: raw or average.
        source: the weights that adversarial examples are crafted on, if they are others.
    """
    node = plain(evaluation)
    del node["checkpoints"], node["val"]
    if evaluation.temperature == 1:  # ids are older than the key
        del node["temperature"]
    if source is not None:
        node["attack_from"] = source
    eps = eps if evaluation.eps is None else evaluation.eps
    node |= {"eps": eps, "norm": evaluation.norm or norm, "weights": weights}
    return digest(stamped(node))


def checkpoints(config: Config) -> list[CheckpointName]:
    """The weights that the config asks to evaluate."""
    return config.evaluation.checkpoints or [config.selected]


def chosen_weights(config: Config) -> Weights:
    """Averaged where the run averages, unless the evaluation says otherwise."""
    return config.evaluation.weights or ("average" if config.average is not None else "raw")


def evaluations(config: Config) -> list[EvaluationConfig]:
    """What the config asks for: its evaluation, and the parts of it for images of other splits.

    These are the measures with a split of their own, and what ``val`` lists.
    """
    node = config.evaluation
    parts: dict[SplitName, list[str]] = {node.split: []}
    for name, attack in node.attacks.items():
        own = attack.split if isinstance(attack, Measure) else None
        parts.setdefault(own or node.split, []).append(name)
    found = [_on(config, split, names) for split, names in (*parts.items(), ("val", node.val))]
    return [part for part in found if part.attacks]


def evaluation_ids(config: Config) -> tuple[str, ...]:
    """The id of each evaluation that the config asks for, in the order of ``evaluations``."""
    weights = chosen_weights(config)
    return tuple(eval_id(each, config.eps, config.norm, weights) for each in evaluations(config))


def _on(config: Config, split: SplitName, names: Sequence[str]) -> EvaluationConfig:
    """Metrics of the evaluation on the images of a split; all of them if it has no more."""
    node = config.evaluation
    # A name that is no metric is told by the rules.
    attacks = {name: node.attacks[name] for name in names if name in node.attacks}
    if split == node.split:
        return replace(node, attacks=attacks)
    size = {"val": config.data.val_size, "train": config.data.train_size}.get(split)
    whole = node.n is None or (size is not None and node.n >= size)
    return replace(node, split=split, attacks=attacks, n=None if whole else node.n)
