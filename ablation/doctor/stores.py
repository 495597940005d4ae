"""A run's store and display in memory: what is saved goes through the encodings of the files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ablation.runs.checkpoint import Snapshot
from ablation.runs.state_dicts import decode, encode, plain_copy


@dataclass
class Shelf:
    """A store in memory; what is saved goes through the encodings of the files."""

    saved: Snapshot | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot as a file would."""
        snapshot, buffer = snapshot.copied(), io.BytesIO()
        torch.save(plain_copy(snapshot.train, "train"), buffer)
        average = snapshot.average and decode(encode(snapshot.average, {}))[0]
        weights, _ = decode(encode(snapshot.weights, {}))
        train = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        self.saved = replace(snapshot, weights=weights, average=average, train=train)

    def load(self) -> Snapshot | None:
        """The newest snapshot."""
        return self.saved

    def keep_weights(self, *_: object) -> None:
        """Nothing."""

    def rewind_metrics(self, epoch: int) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Nothing."""


class Silent:
    """A reporter that counts the steps of its engine."""

    steps = 0

    def step(self, n_images: int) -> None:
        """Count one."""
        self.steps += 1

    def start(self, phases: Sequence[int], steps_per_epoch: int, done_steps: int) -> None:
        """Nothing."""

    def epoch_end(self, row: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def tensors(value: Any, key: str = "") -> dict[str, Tensor]:
    """Every tensor in nested data by its place."""
    if isinstance(value, Tensor):
        return {key: value}
    entries = value.items() if isinstance(value, Mapping) else ()
    pairs = entries or (enumerate(value) if isinstance(value, (list, tuple)) else ())
    found = dict[str, Tensor]()
    for name, entry in pairs:
        found |= tensors(entry, f"{key}.{name}")
    return found
