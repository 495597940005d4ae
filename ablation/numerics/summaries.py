"""Summaries of a number of each image."""

from __future__ import annotations

import torch
from torch import Tensor

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
"""Levels by name."""

SPREAD = ("min", "max", *QUANTILES)
"""What ``distribution`` says besides the mean."""


def distribution(values: Tensor) -> dict[str, float]:
    """Summarise values [N], N at least 1: ``mean`` and ``SPREAD``, in double precision.

    Waits for the device once. Quantiles between two values are interpolated linearly.
    """
    values = values.double().cpu()
    levels = values.new_tensor(list(QUANTILES.values()))
    moments = torch.stack([values.mean(), values.amin(), values.amax()])
    found = torch.cat([moments, torch.quantile(values, levels)])
    return dict(zip(("mean", *SPREAD), found.tolist(), strict=True))


def share_below(values: Tensor, limit: float) -> float:
    """Share of values [N] below a limit, in [0, 1]; values equal to it as they round are not."""
    return (values < limit).double().mean().item()
