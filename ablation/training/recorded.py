"""What the parts of a method record of each sample over an epoch, such as radii."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ablation.numerics.summaries import distribution


class EpochRecord:
    """Recorded values of an epoch's samples, on the device; nothing waits for it before ``row``."""

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._values: dict[str, list[Tensor]] = {}

    def add(self, index: Tensor, recorded: Mapping[str, Tensor]) -> None:
        """Add a step's values.

        Args:
            index: of the batch's samples in the training set, [N].
            recorded: name -> values [N], the same names in every step of an epoch.

        Raises:
            ValueError: other names than in the epoch's steps before.
        """
        if self._index and recorded.keys() != self._values.keys():
            raise ValueError(
                f"recorded: {sorted(recorded)} in this step, {sorted(self._values)} before; a part "
                f"must record the same names in every step of an epoch"
            )
        if recorded:
            self._index.append(index)
            for name, values in recorded.items():
                self._values.setdefault(name, []).append(values)

    def columns(self) -> dict[str, Tensor]:
        """``index`` and the values by name, [M] over the steps so far; empty if there are none."""
        if not self._index:
            return {}
        values = {name: torch.cat(parts) for name, parts in self._values.items()}
        return {"index": torch.cat(self._index), **values}

    def row(self) -> dict[str, float]:
        """Summarise: ``<name>_mean``, ``_min``, ``_max`` and quantiles ``_q05`` to ``_q95``."""
        return {
            f"{name}_{key}": number
            for name, parts in self._values.items()
            for key, number in distribution(torch.cat(parts)).items()
        }

    @staticmethod
    def restored(columns: Mapping[str, Tensor], device: torch.device) -> EpochRecord:
        """Rebuild the record of a checkpoint from its ``columns``."""
        record = EpochRecord()
        if columns:
            values = {name: value.to(device) for name, value in columns.items()}
            record.add(values.pop("index"), values)
        return record
