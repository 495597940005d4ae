"""What ``ablation-evaluate`` is asked for, as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablation.config.experiment import DataConfig, EvaluationConfig, ModelConfig
from ablation.runs.tracking import TrackingConfig
from ablation.types import Fraction, Norm


@dataclass(frozen=True)
class ModuleConfig:
    """The keys of ``conf/model/torch_module.yaml``; see there.

    Attributes:
        name: part of the folder's name.
        target: import path of what builds the network.
        kwargs: its arguments, plain data.
        normalize: whether images are normalised with the data's mean and deviation first.
    """

    name: str
    target: str
    kwargs: Mapping[str, Any]
    normalize: bool


@dataclass(frozen=True)
class AssessConfig:
    """The keys of ``conf/evaluate.yaml``; see there."""

    data: DataConfig | None
    model: ModuleConfig | ModelConfig | None
    evaluation: EvaluationConfig
    run: str | None
    checkpoint: str | None
    attack_from: str | None
    worker: int | None
    norm: Norm | None
    eps: Fraction | None
    device: str
    data_dir: str | None
    runs_dir: str
    tracking: TrackingConfig
