"""Cross-field rules of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ablation.config.experiment import Config
from ablation.evaluation import Measure


def _names(config: Config) -> tuple[str, str, str]:
    return config.data.name, config.model.name, config.method.name


def _never_decays(config: Config) -> bool:
    """Is every milestone of a piecewise schedule beyond the end of training?"""
    milestones = getattr(config.schedule, "milestones", ())
    return bool(milestones) and min(milestones) >= config.epochs


RULES: list[tuple[Callable[[Config], bool], str]] = [
    (lambda c: c.eps < 0, "eps={c.eps:g}: a radius is not negative; write for example 8/255"),
    (
        lambda c: c.norm == "linf" and c.eps > 1,
        "eps={c.eps:g}: pixels lie in [0, 1]; did you mean {c.eps:g}/255?",
    ),
    (
        _never_decays,
        "schedule.milestones: the first lies beyond epochs={c.epochs}, so the rate never falls; "
        "set schedule.milestones=[...] or schedule=constant",
    ),
    (
        lambda c: not 0 <= c.seed < 2**63 or not 0 <= c.evaluation.seed < 2**63,
        "seed={c.seed}, evaluation.seed={c.evaluation.seed}: between 0 and 2^63",
    ),
    (
        lambda c: (
            c.evaluation.batch_size < 1 or (c.evaluation.n is not None and c.evaluation.n < 1)
        ),
        "evaluation.n={c.evaluation.n}, .batch_size={c.evaluation.batch_size}: at least 1",
    ),
    (
        lambda c: any(not n or n[0] == "." or "/" in n for n in _names(c)),
        "data.name={c.data.name}, model.name={c.model.name}, method.name={c.method.name}: they "
        "name the run's folder; use letters, digits, _ and -",
    ),
    (lambda c: c.batch_size < 1, "batch_size={c.batch_size}: at least 1"),
    (lambda c: c.epochs < 1, "epochs={c.epochs}: at least 1"),
    (lambda c: c.lr <= 0, "lr={c.lr:g}: must be positive"),
    (lambda c: c.attack.steps < 0, "attack.steps={c.attack.steps}: must not be negative"),
    (lambda c: c.data.val_size < 0, "data.val_size={c.data.val_size}: 0 means no validation"),
    (
        lambda c: c.selection.every < 1,
        "selection.every={c.selection.every}: validate every 1 or more epochs",
    ),
    (
        lambda c: c.data.val_size == 0 and c.selection.metric != "last",
        "selection.metric={c.selection.metric}: needs validation data, and data.val_size=0; "
        "set data.val_size=1000 or selection.metric=last",
    ),
    (
        lambda c: c.selection.n is not None and not 0 < c.selection.n <= max(1, c.data.val_size),
        "selection.n={c.selection.n}: must lie between 1 and data.val_size={c.data.val_size}",
    ),
    (
        lambda c: c.data.val_size == 0 and bool({"best_robust", "best_clean"} & _asked(c)),
        "evaluation.checkpoints={c.evaluation.checkpoints}: data.val_size=0 leaves only last",
    ),
    (
        lambda c: c.data.val_size == 0 and c.evaluation.split == "val",
        "evaluation.split=val: data.val_size=0 leaves no validation data",
    ),
    (
        lambda c: not set(c.evaluation.val) <= set(c.evaluation.attacks),
        "evaluation.val={c.evaluation.val}: only metrics of evaluation.attacks can be run on the "
        "validation images too",
    ),
    (
        lambda c: bool(c.evaluation.val) and c.data.val_size == 0,
        "evaluation.val={c.evaluation.val}: data.val_size=0 leaves no validation data; set "
        "evaluation.val=[]",
    ),
    (
        lambda c: bool(_own_splits(c, c.evaluation.val)),
        "evaluation.val={c.evaluation.val}: a measure with a split of its own stays on its images",
    ),
    (
        lambda c: c.data.val_size == 0 and "val" in _own_splits(c, c.evaluation.attacks),
        "evaluation.attacks: a measure has split: val, and data.val_size=0 leaves no such images",
    ),
    (
        lambda c: c.evaluation.weights == "average" and c.average is None,
        "evaluation.weights=average: the run keeps no average; set average=ema or weights=raw",
    ),
    (
        lambda c: c.evaluation.eps is not None and c.evaluation.eps < 0,
        "evaluation.eps={c.evaluation.eps}: a radius is not negative",
    ),
    (
        lambda c: len(c.data.mean) != len(c.data.std) or min(c.data.std, default=1) <= 0,
        "data.mean={c.data.mean}, data.std={c.data.std}: one positive std per mean",
    ),
    (
        lambda c: c.attack.start == "clean" and _climbs(c, "AttackKL"),
        "attack.start=clean: the KL attack has no gradient at the clean image; "
        "set attack.start=gaussian or uniform",
    ),
]
"""Cross-field rules: (is it wrong?, message), formatted with ``c``."""


def _asked(config: Config) -> set[str]:
    return set(config.evaluation.checkpoints or ())


def _own_splits(config: Config, metrics: Iterable[str]) -> set[str]:
    """Splits that these metrics name themselves."""
    attacks = [config.evaluation.attacks.get(metric) for metric in metrics]
    measures = [attack for attack in attacks if isinstance(attack, Measure)]
    return {measure.split for measure in measures if measure.split is not None}


def _climbs(config: Config, loss: str) -> bool:
    crafters = config.method.crafters.values()
    losses = [slot.loss for crafter in crafters for slot in getattr(crafter, "losses", {}).values()]
    return any(type(entry).__name__ == loss for entry in losses)
