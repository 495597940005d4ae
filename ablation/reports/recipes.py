"""What a table says about a run, and how the run departs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablation.config import evaluations
from ablation.config.experiment import Config
from ablation.evaluation import describe
from ablation.reports.deviations import deviations, mismatches
from ablation.reports.records import Measurement
from ablation.runs.columns import OF_TRAINING, Column


@dataclass(frozen=True)
class Recipe:
    """What a table says about a run: its config without what the command line changed."""

    config: Config

    def attack(self, column: str) -> Mapping[str, Any] | None:
        """An attack's parameters; ``None`` if the table's evaluation does not have it."""
        config, node = self.config, self.config.evaluation
        place = Column.parse(column)
        if place.metric in OF_TRAINING:
            return {}
        metric = next((name for name in place.metrics if name in node.attacks), None)
        if metric is None:
            return {} if place.metric == "clean" else None
        attack = node.attacks[metric]
        if attack is None:
            return {}
        eps = config.eps if node.eps is None else node.eps
        norm = node.norm or config.norm
        return {**describe(attack, eps, norm, config.data.classes), **node.facts}

    def mismatches(self, measurement: Measurement) -> tuple[str, ...]:
        """Why a number cannot stand beside the published one."""
        if self.config.scale == "smoke":
            return ("scale smoke, not full",)
        wanted = self.attack(measurement.column)
        if wanted is None:
            return ("not in the table's evaluation",)
        return mismatches(measurement.params, wanted)

    def tags(self, config: Config, measurement: Measurement) -> tuple[str, ...]:
        """How a run departs from the recipe, weights and images of its evaluation included."""
        tags = list(deviations(self.config, config))
        before, after = self.config.evaluation, config.evaluation
        if (before.checkpoints, before.weights) != (after.checkpoints, after.weights):
            tags.append(f"weights {measurement.checkpoint} ({measurement.weights})")
        asked = self._images(measurement)
        if not measurement.whole and (asked is None or measurement.n < asked):
            tags.append(f"n={measurement.n}")
        return tuple(tags)

    def _images(self, measurement: Measurement) -> int | None:
        """How many images the table asks for; ``None`` means all."""
        nodes = [
            node for node in evaluations.evaluations(self.config) if node.split == measurement.split
        ]
        attacks = [node.attacks.get(measurement.metric) for node in nodes]
        sizes = [node.n for node in nodes] + [attack.n for attack in attacks if attack is not None]
        return min((size for size in sizes if size is not None), default=None)
