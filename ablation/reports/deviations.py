"""Differences between two attacks or two configs: why a cell is tagged, or not compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ablation.config.experiment import DISABLED, Config
from ablation.config.parser import TARGET
from ablation.numerics.summaries import SPREAD
from ablation.runs.directory import VOLATILE

IMMATERIAL = (
    *("eps_text", "seed", "batch_size"),
    *("std", "mean_all", "correct", "zero_gradients"),
    *(*SPREAD, "below_eps", "below_base", "epoch"),
    *("pair_share", "mean_rise", "correlation_correct", "pair_share_correct"),
)
"""Parameters of an attack in which two comparable numbers may differ; what a measure found."""
UNSAID = {"temperature": 1.0, "search": "fp32"}
"""Values of parameters that a record leaves out."""


def mismatches(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the parameters in which an attack is not that of the table: ``steps 10, not 20``."""
    if wanted:  # clean accuracy has no parameters
        params, wanted = {**UNSAID, **params}, {**UNSAID, **wanted}
    return tuple(
        f"{key} {short(params.get(key))}, not {short(value)}"
        for key, value in wanted.items()
        if key not in IMMATERIAL and not _same(params.get(key), value)
    )


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9)
    return bool(left == right)


def attack_key(params: Mapping[str, Any]) -> str:
    """Equal for attacks whose numbers may be averaged."""
    kept = {
        key: f"{value:.9g}" if isinstance(value, float) else value
        for key, value in params.items()
        if key not in IMMATERIAL
    }
    return json.dumps(kept, sort_keys=True)


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys in which two plain configs differ, and the second one's values.

    What was replaced by another thing altogether (a method, an average) is one key, not all that
    is in it.
    """
    before, after = absent_as_none(before), absent_as_none(after)
    both = isinstance(before, Mapping) and isinstance(after, Mapping)
    if both and _kind(before) == _kind(after):
        for name in sorted({*before, *after}, key=str):
            path = f"{key}.{name}" if key else str(name)
            yield from differences(before.get(name), after.get(name), path)
    elif not _same(before, after):
        yield key, after


def absent_as_none(node: Any) -> Any:
    """A disabled component and no average are what an older config does not mention."""
    return None if node in ({}, DISABLED) else node


def _kind(node: Mapping[str, Any]) -> Any:
    return node.get(TARGET, node.get("name"))


def short(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, Mapping):
        kind = _kind(value)
        leaves = (f"{name}={short(entry)}" for name, entry in value.items())
        return str(kind).rpartition(".")[2].lower() if kind else " ".join(leaves)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(short, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _setting(key: str, value: Any) -> str:
    """``lr=0.1``, ``component.awp=enabled``."""
    if key.startswith("component.") and key.count(".") == 1:
        return f"{key}={'disabled' if absent_as_none(value) is None else 'enabled'}"
    return f"{key}={short(absent_as_none(value))}"


def within(key: str, parents: Iterable[str]) -> bool:
    """Tell whether a dotted key is one of the parents, or below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def deviations(recipe: Config, config: Config) -> tuple[str, ...]:
    """How a run's training departs from its recipe, in a few words each."""
    before, after = recipe.container(), config.container()
    changed = dict(differences(before, after))
    hidden = {"seed", "scale", *VOLATILE} - {"init_from"}
    if "data" in changed:
        hidden.add("augment")
    if "epochs" in changed:
        hidden.add("schedule.milestones")
    replaced = [key for key in ("data", "model", "method") if key in changed]
    tags = [f"{key} {changed.pop(key)['name']}" for key in replaced]
    if changed.get("epochs", math.inf) < before["epochs"]:
        tags.append(f"{changed.pop('epochs')} of {before['epochs']} epochs")
    tags += [_setting(key, value) for key, value in changed.items() if not within(key, hidden)]
    return tuple(tags)
