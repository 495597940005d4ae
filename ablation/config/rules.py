"""Cross-field rules of a config: each yields one line per contradiction, with the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import torch

from ablation.config.experiment import Config, DataConfig, EvaluationConfig
from ablation.errors import InputError
from ablation.evaluation import Measure
from ablation.models import ModelSpec, build_model
from ablation.schedules import Torch
from ablation.training.optim import AdamW

ROLES = ("robust", "classify")
"""Roles that components look for; see ``Method``."""


def broken_rules(config: Config) -> list[str]:
    """Every contradiction in a config."""
    return [problem for rule in RULES for problem in rule(config)]


def radius_problems(eps: float | None, norm: str | None, key: str = "eps") -> Iterator[str]:
    """Check a radius: not negative, and in pixels that lie in [0, 1]."""
    if eps is None:
        return
    if eps < 0:
        yield f"{key}={eps:g}: a radius is not negative; write for example 8/255"
    if norm in (None, "linf") and eps > 1:
        yield f"{key}={eps:g}: pixels lie in [0, 1]; did you mean {eps:g}/255?"


def _threat(c: Config) -> Iterator[str]:
    yield from radius_problems(c.eps, c.norm)


class Named(Protocol):
    """Something whose name becomes part of a folder's."""

    @property
    def name(self) -> str:
        """The name."""


def name_problems(data: Named | None, model: Named | None) -> Iterator[str]:
    """Check what becomes part of a folder's name."""
    for key, node in (("data.name", data), ("model.name", model)):
        if node is not None:
            yield from _name(key, node.name)


def _name(key: str, name: str) -> Iterator[str]:
    if not re.fullmatch(r"\w[\w .,+@=~-]{0,99}", name):
        yield f"{key}={name!r}: it names a folder; use letters, digits, _ and -, at most 100"


def _names(c: Config) -> Iterator[str]:
    yield from name_problems(c.data, c.model)
    yield from _name("method.name", c.method.name)


def _seed(key: str, seed: int) -> Iterator[str]:
    if seed < 0:
        yield f"{key}={seed}: between 0 and 2^63"


def _numbers(c: Config) -> Iterator[str]:
    yield from _seed("seed", c.seed)
    if c.batch_size < 1:
        yield f"batch_size={c.batch_size}: at least 1"
    if c.epochs < 1:
        yield f"epochs={c.epochs}: at least 1"
    if c.lr <= 0:
        yield f"lr={c.lr:g}: must be positive"
    if c.attack.steps < 0:
        yield f"attack.steps={c.attack.steps}: must not be negative"


def _schedule(c: Config) -> Iterator[str]:
    milestones = getattr(c.schedule, "milestones", ())
    if milestones and min(milestones) >= c.epochs:
        yield (
            f"schedule.milestones: the first lies beyond epochs={c.epochs}, so the rate never "
            f"falls; set schedule.milestones=[...] or schedule=constant"
        )
    if isinstance(c.schedule, Torch) and c.lr > 0:
        for epoch in range(min(c.epochs, MOST_LOOKS)):
            rate = c.schedule.lr(c.lr, epoch, c.epochs)
            if not 0 <= rate < math.inf:
                yield f"schedule.kwargs: the rate of epoch {epoch} would be {rate:g}; change them"
                return


def _optim(c: Config) -> Iterator[str]:
    if isinstance(c.optim, AdamW) and c.lr >= MOST_ADAM_LR:
        yield (
            f"lr={c.lr:g}: AdamW moves a weight by up to about lr a step, whatever its gradient; "
            f"set lr=1e-3"
        )


MOST_LOOKS = 10_000
"""Epochs whose learning rate is looked at: with more, a person has mistyped."""
MOST_ADAM_LR = 0.1
"""Weights are smaller than that: it is SGD's."""


def data_problems(node: DataConfig) -> Iterator[str]:
    """Check the numbers of a data set's node."""
    yield from _seed("data.split_seed", node.split_seed)
    if node.val_size < 0:
        yield f"data.val_size={node.val_size}: 0 means no validation"
    if node.train_size is not None and node.train_size < 1:
        yield f"data.train_size={node.train_size}: at least 1; null means all"
    if len(node.mean) != len(node.std) or min(node.std, default=1) <= 0:
        yield f"data.mean={node.mean}, data.std={node.std}: one positive std per mean"


def _data(c: Config) -> Iterator[str]:
    yield from data_problems(c.data)


def model_problems(spec: ModelSpec) -> Iterator[str]:
    """Check that a network is none that no machine could hold."""
    numbers = {
        name: [value] if isinstance(value, int) else list(value)
        for name, value in vars(spec).items()
        if isinstance(value, (int, list, tuple))
    }
    for name, values in numbers.items():
        if max(values, default=0) > MOST_UNITS or sum(values) > 2 * MOST_UNITS:
            yield f"model.spec.{name}={getattr(spec, name)}: at most {MOST_UNITS}"
            return
    if max((value for values in numbers.values() for value in values), default=0) > USUAL_UNITS:
        count = _parameters(spec)
        if count > MOST_PARAMETERS:
            yield (
                f"model.spec: a network of {count:.2g} parameters, at most "
                f"{MOST_PARAMETERS:.0e}; make it smaller"
            )


def _parameters(spec: ModelSpec) -> int:
    """Parameters of a network for small colour images; nothing is allocated."""
    try:
        with torch.device("meta"):
            net = build_model(spec, channels=3, size=32, classes=10)
    except InputError:  # it takes other images
        return 0
    return sum(parameter.numel() for parameter in net.parameters())


MOST_UNITS, USUAL_UNITS = 10_000, 2048
"""Of a network's widths and depths: refused beyond; above what every network here has."""
MOST_PARAMETERS = 10**10
"""40 GB of weights alone, and training holds three times as much."""


def _model(c: Config) -> Iterator[str]:
    yield from model_problems(c.model.spec)


def _decay(c: Config) -> Iterator[str]:
    """A penalty on the weights in the loss takes the place of the optimiser's."""
    pmhr = c.component.get("pmhr")
    own = getattr(pmhr, "weight_decay", 0.0)
    if own > 0 and c.optim.weight_decay > 0:
        yield (
            f"optim.weight_decay={c.optim.weight_decay:g}: component.pmhr penalises the weights "
            f"itself ({own:g}), so they would decay twice; set optim.weight_decay=0 or "
            f"component.pmhr.weight_decay=0"
        )


def _selection(c: Config) -> Iterator[str]:
    node, val_size = c.selection, c.data.val_size
    if node.every < 1:
        yield f"selection.every={node.every}: validate every 1 or more epochs"
    if val_size == 0 and node.metric != "last":
        yield (
            f"selection.metric={node.metric}: needs validation data, and data.val_size=0; "
            f"set data.val_size=1000 or selection.metric=last"
        )
    if node.n is not None and not 0 < node.n <= max(1, val_size):
        yield f"selection.n={node.n}: must lie between 1 and data.val_size={val_size}"


def evaluation_problems(node: EvaluationConfig) -> Iterator[str]:
    """Check what an evaluation says of itself, whatever it attacks."""
    yield from _seed("evaluation.seed", node.seed)
    yield from radius_problems(node.eps, node.norm, "evaluation.eps")
    if node.n is not None and node.n < 1:
        yield f"evaluation.n={node.n}: at least 1; null means all"
    if node.batch_size < 1:
        yield f"evaluation.batch_size={node.batch_size}: at least 1"
    if node.checkpoints is not None and not node.checkpoints:
        yield "evaluation.checkpoints=[]: name some; null means the selected ones"
    if len(set(node.checkpoints or ())) != len(node.checkpoints or ()):
        yield f"evaluation.checkpoints={node.checkpoints}: name each once"
    if not set(node.val) <= set(node.attacks):
        yield (
            f"evaluation.val={node.val}: only metrics of evaluation.attacks can be run on the "
            f"validation images too"
        )
    if _own_splits(node, node.val):
        yield f"evaluation.val={node.val}: a measure with a split of its own stays on its images"


def _evaluation(c: Config) -> Iterator[str]:
    node = c.evaluation
    yield from evaluation_problems(replace(node, norm=node.norm or c.norm))
    yield from availability_problems(c)


def availability_problems(c: Config) -> Iterator[str]:
    """Check that a run has the weights and images that its evaluation asks for."""
    node = c.evaluation
    if node.weights == "average" and c.average is None:
        yield (
            "evaluation.weights=average: the run keeps no average; set average=ema or weights=raw"
        )
    if c.data.val_size == 0:
        yield from _without_validation_images(c)


def _without_validation_images(c: Config) -> Iterator[str]:
    node = c.evaluation
    if "val" in c.monitor.curves:
        yield f"monitor.curves={c.monitor.curves}: data.val_size=0 leaves no validation data"
    if {"best_robust", "best_clean"} & set(node.checkpoints or ()):
        yield f"evaluation.checkpoints={node.checkpoints}: data.val_size=0 leaves only last"
    if node.split == "val":
        yield "evaluation.split=val: data.val_size=0 leaves no validation data"
    if node.val:
        yield (
            f"evaluation.val={node.val}: data.val_size=0 leaves no validation data; set "
            f"evaluation.val=[]"
        )
    if "val" in _own_splits(node, node.attacks):
        yield (
            "evaluation.attacks: a measure has split: val, and data.val_size=0 leaves no such "
            "images"
        )


def _own_splits(node: EvaluationConfig, metrics: Iterable[str]) -> set[str]:
    """Splits that these metrics name themselves."""
    attacks = [node.attacks.get(metric) for metric in metrics]
    return {m.split for m in attacks if isinstance(m, Measure) and m.split is not None}


def _attack(c: Config) -> Iterator[str]:
    crafters = c.method.crafters.values()
    losses = [slot.loss for crafter in crafters for slot in getattr(crafter, "losses", {}).values()]
    if c.attack.start == "clean" and any(type(loss).__name__ == "AttackKL" for loss in losses):
        yield (
            "attack.start=clean: the KL attack has no gradient at the clean image; "
            "set attack.start=gaussian or uniform"
        )


def _roles(c: Config) -> Iterator[str]:
    for role, term in c.method.roles.items():
        if role not in ROLES:
            yield f"method.roles.{role}={term}: no component looks for it; use {', '.join(ROLES)}"


RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    *(_threat, _names, _numbers, _schedule, _optim, _data, _model),
    *(_selection, _evaluation, _attack, _roles, _decay),
)
