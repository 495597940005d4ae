"""Columns of tables: a metric on the images of one split, and its one spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

MARKED = ("_train", "_val")
"""Endings that say the split; a column without one is of test images."""

OF_TRAINING = ("mean_radius", "mean_radius_floor")
"""Metrics that training itself records: their images are training images, and no ending says so."""


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
        metric = re.sub(f"(?<=.)(?:_{self.split})+$", "", self.metric)
        # "_test" is part of a metric's name (margin_test), except behind another split.
        if self.split != "test" or _names_split(metric):
            object.__setattr__(self, "metric", metric)

    @property
    def name(self) -> str:
        """Text in tables, CSV files and W&B: ``pgd20`` (test), ``clean_val``, ``margin_train``.

        ``mean_radius`` is of training images.
        """
        usual = "train" if self.metric in OF_TRAINING else "test"
        bare = self.split == usual and not self.metric.endswith(MARKED)
        return self.metric if bare else f"{self.metric}_{self.split}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """What an evaluation may call the metric, the name that says the split first."""
        return tuple(dict.fromkeys((self.name, self.metric)))

    @classmethod
    def parse(cls, name: str) -> Column:
        """Read a column's name."""
        if name in OF_TRAINING:
            return cls(name, "train")
        metric, _, split = name.rpartition("_")
        if (metric and split in ("train", "val")) or (split == "test" and _names_split(metric)):
            return cls(metric, split)
        return cls(name, "test")


def _names_split(metric: str) -> bool:
    """Tell whether a name alone means other images than those of the test split."""
    return metric.endswith(MARKED) or metric in OF_TRAINING


def named(metric: str, params: Mapping[str, Any]) -> str:
    """What tells a number apart where only names do: a transferred attack is another metric."""
    source = params.get("attack_from")
    return metric if source is None else f"{metric}_from_{source}"


def verdict_column(metric: str) -> str:
    """Name the column of an evaluation's Parquet file that says which examples are correct."""
    return "clean_correct" if metric == "clean" else f"{metric}_robust"


def recorded_metric(
    column: str, present: Collection[str], name: Callable[[str], str] = str
) -> str | None:
    """What a record calls the metric of a table's column; ``None`` if it lacks it.

    Args:
        column: of the table.
        present: columns of the record's Parquet file.
        name: of the column that a metric is looked for by; its own name unless said otherwise.
    """
    return next((m for m in Column.parse(column).metrics if name(m) in present), None)
