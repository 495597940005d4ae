"""What differs between the configs of two runs, and whether it changes the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablation.config import validation
from ablation.config.evaluations import evaluation_ids
from ablation.reports.deviations import absent_as_none, within
from ablation.reports.records import saved_config, value_at
from ablation.runs.directory import VOLATILE, Run
from ablation.text import summary_table

ABSENT = "-"
"""Of a key that only the other config has."""
REPLICAS = ("runtime.devices", "runtime.batch_norm")
"""Keys that change the weights where BatchNorm goes by each device's part of a batch."""


@dataclass(frozen=True)
class Difference:
    """A key in which two configs differ.

    Attributes:
        key: dotted.
        values: of both; ``ABSENT`` if one lacks it.
        trains: whether it is part of what is trained.
    """

    key: str
    values: tuple[Any, Any]
    trains: bool


@dataclass(frozen=True)
class Compared:
    """Two runs held against each other.

    Attributes:
        names: of their directories.
        train_ids: of both.
        eval_ids: of the evaluations that each config asks for.
        differences: by key.
    """

    names: tuple[str, str]
    train_ids: tuple[str, str]
    eval_ids: tuple[tuple[str, ...], tuple[str, ...]]
    differences: tuple[Difference, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runs": list(self.names),
            "train_ids": list(self.train_ids),
            "eval_ids": [list(each) for each in self.eval_ids],
            "differences": [
                {"key": each.key, "a": each.values[0], "b": each.values[1], "trains": each.trains}
                for each in self.differences
            ],
        }

    def text(self) -> str:
        """For a person: what trains otherwise first, then the rest, then what it comes to."""
        lines = [f"A {self.names[0]}", f"B {self.names[1]}"]
        parts = [(True, "trains otherwise"), (False, "changes no weights")]
        for trains, title in parts:
            rows = [
                (each.key, *(_shown(value) for value in each.values))
                for each in self.differences
                if each.trains == trains
            ]
            lines += ["", summary_table(title, rows, ("key", "A", "B"), left=True)] if rows else []
        return "\n".join([*lines, "", *self._verdict()])

    def _verdict(self) -> Iterator[str]:
        yield f"train_id {' | '.join(dict.fromkeys(self.train_ids))}"
        texts = [" ".join(each) or "none" for each in self.eval_ids]
        yield f"eval_id  {' | '.join(dict.fromkeys(texts))}"
        if not self.differences:
            yield "The configs are equal."
        elif not any(each.trains for each in self.differences):
            names = {each.key.split(".")[0] for each in self.differences}
            only = "Only the evaluation differs" if names == {"evaluation"} else "They train alike"
            yield f"{only}: both have the same weights."


def compare(a: Run, b: Run) -> Compared:
    """Hold two runs against each other; a disabled component is as one that is not mentioned.

    Raises:
        InputError: a config cannot be read.
    """
    configs = saved_config(a), saved_config(b)
    replicas = any(value_at(config, "runtime.batch_norm") == "replica" for config in configs)
    silent = {*VOLATILE} - {"init_from", *(REPLICAS if replicas else ())}
    left, right = (_flat(config) for config in configs)
    keys = [key for key in {**left, **right} if not _same(left.get(key), right.get(key))]
    return Compared(
        (a.path.name, b.path.name),
        (a.train_id, b.train_id),
        (_eval_ids(configs[0]), _eval_ids(configs[1])),
        tuple(
            Difference(
                key, (left.get(key, ABSENT), right.get(key, ABSENT)), not within(key, silent)
            )
            for key in keys
        ),
    )


def _eval_ids(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a saved config; none if this version cannot read it."""
    found, problems = validation.check(config)
    return () if found is None or problems else evaluation_ids(found)


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf, and what is disabled is not there."""
    node = absent_as_none(node)
    if isinstance(node, Mapping):
        return {
            path: leaf
            for name, entry in node.items()
            for path, leaf in _flat(entry, f"{key}.{name}" if key else str(name)).items()
        }
    is_switch = key.startswith("component.") and key.count(".") == 1
    return {} if node is None and is_switch else {key: node}


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else str(value)
