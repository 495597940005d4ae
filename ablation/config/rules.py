"""Cross-field rules of a config: each yields one line per contradiction, with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ablation.config.experiment import Config
from ablation.evaluation import Measure

ROLES = ("robust", "classify")
"""Roles that components look for; see ``Method``."""


def broken_rules(config: Config) -> list[str]:
    """Every contradiction in a config."""
    return [problem for rule in RULES for problem in rule(config)]


def _threat(c: Config) -> Iterator[str]:
    if c.eps < 0:
        yield f"eps={c.eps:g}: a radius is not negative; write for example 8/255"
    if c.norm == "linf" and c.eps > 1:
        yield f"eps={c.eps:g}: pixels lie in [0, 1]; did you mean {c.eps:g}/255?"
    if c.evaluation.eps is not None and c.evaluation.eps < 0:
        yield f"evaluation.eps={c.evaluation.eps}: a radius is not negative"


def _names(c: Config) -> Iterator[str]:
    names = (c.data.name, c.model.name, c.method.name)
    if any(not name or name[0] == "." or "/" in name for name in names):
        yield (
            f"data.name={c.data.name}, model.name={c.model.name}, method.name={c.method.name}: "
            f"they name the run's folder; use letters, digits, _ and -"
        )


def _numbers(c: Config) -> Iterator[str]:
    if not 0 <= c.seed < 2**63 or not 0 <= c.evaluation.seed < 2**63:
        yield f"seed={c.seed}, evaluation.seed={c.evaluation.seed}: between 0 and 2^63"
    if c.evaluation.batch_size < 1 or (c.evaluation.n is not None and c.evaluation.n < 1):
        yield (f"evaluation.n={c.evaluation.n}, .batch_size={c.evaluation.batch_size}: at least 1")
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


def _data(c: Config) -> Iterator[str]:
    if c.data.val_size < 0:
        yield f"data.val_size={c.data.val_size}: 0 means no validation"
    if len(c.data.mean) != len(c.data.std) or min(c.data.std, default=1) <= 0:
        yield f"data.mean={c.data.mean}, data.std={c.data.std}: one positive std per mean"


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


def _evaluation(c: Config) -> Iterator[str]:
    node = c.evaluation
    if not set(node.val) <= set(node.attacks):
        yield (
            f"evaluation.val={node.val}: only metrics of evaluation.attacks can be run on the "
            f"validation images too"
        )
    if _own_splits(c, node.val):
        yield f"evaluation.val={node.val}: a measure with a split of its own stays on its images"
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
    if "val" in _own_splits(c, node.attacks):
        yield (
            "evaluation.attacks: a measure has split: val, and data.val_size=0 leaves no such "
            "images"
        )


def _own_splits(c: Config, metrics: Iterable[str]) -> set[str]:
    """Splits that these metrics name themselves."""
    attacks = [c.evaluation.attacks.get(metric) for metric in metrics]
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
    *(_threat, _names, _numbers, _schedule, _data),
    *(_selection, _evaluation, _attack, _roles),
)
