"""Columns of tables: a metric on the images of one split, and its one spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MARKED = ("_train", "_val")
"""Endings that say the split; a column without one is of test images."""


@dataclass(frozen=True)
class Column:
    """A metric on the images of one split.

    Whether the metric's own name ends in the split makes no difference: ``margin_train`` and
    ``margin`` on training images are the same column.

    Attributes:
        metric: for example ``pgd20``, without the split.
        split: ``test``, ``val`` or ``train``.
    """

    metric: str
    split: str

    def __post_init__(self) -> None:
        # "_test" is part of a metric's name (margin_test), except behind another split.
        before = "(?:(?<=_train)|(?<=_val))" if self.split == "test" else "(?<=.)"
        metric = re.sub(f"{before}(?:_{self.split})+$", "", self.metric)
        object.__setattr__(self, "metric", metric)

    @property
    def name(self) -> str:
        """Text in tables, CSV files and W&B: ``pgd20`` (test), ``clean_val``, ``margin_train``."""
        bare = self.split == "test" and not self.metric.endswith(MARKED)
        return self.metric if bare else f"{self.metric}_{self.split}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """What an evaluation may call the metric, the name that says the split first."""
        return tuple(dict.fromkeys((self.name, self.metric)))

    @classmethod
    def parse(cls, name: str) -> Column:
        """Read a column's name."""
        metric, _, split = name.rpartition("_")
        if (metric and split in ("train", "val")) or (split == "test" and metric.endswith(MARKED)):
            return cls(metric, split)
        return cls(name, "test")


def named(metric: str, params: Mapping[str, Any]) -> str:
    """What tells a number apart where only names do: a transferred attack is another metric."""
    source = params.get("attack_from")
    return metric if source is None else f"{metric}_from_{source}"


def verdict_column(metric: str) -> str:
    """Name the column of an evaluation's Parquet file that says which examples are correct."""
    return "clean_correct" if metric == "clean" else f"{metric}_robust"
