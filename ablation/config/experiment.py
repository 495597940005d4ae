"""The experiment as a typed, validated object: schema, cross-field rules, identity, building.

Hydra composes YAML; ``load`` turns the result into a ``Config`` or raises one ``ConfigError`` with
every problem in it, before data or device are touched. What is left is the experiment: two runs
with equal ``train_id`` train the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ablation import plugins
from ablation.config.parser import TARGET, parts, plain
from ablation.data import Augment, Source
from ablation.evaluation import Attack, Measure, SplitName
from ablation.models import ModelSpec
from ablation.runs.launches import Launch
from ablation.runs.tracking import TrackingConfig
from ablation.training.method import Component, Method, Phase, Slot, parse_passes
from ablation.training.optim import Optim
from ablation.types import (
    Ascent,
    AttackMode,
    AverageSpec,
    Budget,
    Crafter,
    Fast,
    Fraction,
    Norm,
    Schedule,
    Start,
    Statistics,
    StepSize,
)

NUMERICS = 1
"""Bump by hand when a change of code changes the weights that a config trains."""
MARGIN_NUMERICS = 2
"""The same for configs with a margin term; 2: the dual norm is bounded below, not shifted."""
DISABLED: Mapping[str, Any] = {"enabled": False}
CheckpointName = Literal["best_robust", "best_clean", "last"]
Weights = Literal["raw", "average"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, and the defaults that go with them.

    Attributes:
        name: part of the run's name.
        source: where the images come from.
        classes: number of labels; null in YAML means as the user's images have.
        mean: per channel, in [0, 1] units; null means of the user's training images.
        std: per channel, in [0, 1] units; positive; null as for ``mean``.
        val_size: images held out for selection; 0 means none.
        split_seed: of the stratified split, shared by all arms.
        train_size: use this many of the rest; ``None`` means all.
        drop_last: leave out an incomplete last batch.
        eps: the radius usually used on this set; ``eps`` defaults to it.
        augment: augmentation usually used on this set; ``augment`` defaults to it.
    """

    name: str
    source: Source
    classes: int
    mean: list[float]
    std: list[float]
    val_size: int
    split_seed: int
    train_size: int | None
    drop_last: bool
    eps: Fraction
    augment: Augment


@dataclass(frozen=True)
class ModelConfig:
    """The architecture, its head, and whether it normalises its input with the data's mean."""

    name: str
    spec: ModelSpec
    head: str
    normalize: bool


@dataclass(frozen=True)
class AttackConfig:
    """The training attack's keys; method presets interpolate them into their crafters."""

    steps: int
    step_size: StepSize
    start: Start
    bn: AttackMode


@dataclass(frozen=True)
class SelectionAttack:
    """PGD on cross-entropy, the attack that validation uses."""

    steps: int
    step_size: StepSize
    start: Start

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_size < 0:
            raise ValueError("steps must be at least 1 and step_size must not be negative")


@dataclass(frozen=True)
class SelectionConfig:
    """Which weights a run stands for; validation data only, there is no switch for test.

    Attributes:
        metric: ``robust`` (best validation accuracy under ``attack``), ``clean`` or ``last``.
        attack: PGD on a fixed set of validation images, attacked anew every time.
        n: how many of them; ``None`` means all.
        every: epochs between two validations.
    """

    metric: Literal["robust", "clean", "last"]
    attack: SelectionAttack
    n: int | None
    every: int


@dataclass(frozen=True)
class MonitorConfig:
    """What each validation measures besides accuracies, for the curves: nothing is chosen by it.

    No part of a run's identity: weights are the same with any of it, or without.

    Attributes:
        enabled: measure at all.
        n: a fixed subset of the validation images (of the training images if there are none);
            ``None`` means all, as a number beyond their count does.
        effective_margin: EMR's margin (eq. 3) too, of ``n`` training and ``n`` test images: as
            many backward passes as there are classes.
        curves: splits whose accuracy, and accuracy and loss under ``selection.attack``, are
            measured on ``n`` images each; test curves are for tables without a validation split.
    """

    enabled: bool = True
    n: int | None = 512
    effective_margin: bool = False
    curves: list[SplitName] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n={self.n}: at least 1; null measures all images")


@dataclass(frozen=True)
class RuntimeConfig:
    """Numerics: all but the devices and ``fast`` are part of a run's identity.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: of training forwards; losses and evaluation are always fp32.
        compile: torch.compile the model's body.
        channels_last: memory format of convolutions.
        deterministic: refuse kernels that may differ between two runs (CUDA; slower).
        devices: how many train a run together, each on its part of every batch. A run may go on
            with another number: the weights are the same up to rounding.
        batch_norm: statistics in training, where there are several: ``synchronised``, of the whole
            batch, as on one device; ``replica``, of each device's part, as DataParallel has it in
            the papers' code. With ``replica`` the number of devices is part of the identity.
        accumulate: in how many parts a batch is taken, one after the other; ``auto``, in twice as
            many whenever memory runs out. The weights are the same up to rounding; no part of the
            identity.
        fast: ``auto`` captures training attacks as CUDA graphs on a GPU, where they can be: the
            same numbers up to rounding; ``off`` launches them operation by operation.
    """

    device: str
    precision: Literal["fp32", "tf32", "bf16"]
    compile: bool
    channels_last: bool
    deterministic: bool
    devices: int = 1
    batch_norm: Statistics = "synchronised"
    accumulate: Literal["auto"] | int = 1
    fast: Fast = "auto"


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation: attacks by metric name, and on what.

    Attributes:
        attacks: metric name -> attack or measure; ``None`` is clean accuracy. A measure may name
            its own split: then it is an evaluation of its own, on those images.
        n: a fixed random subset of the split; ``None`` means all of it.
        split: which images.
        eps: radius; ``None`` means the training radius.
        norm: ``None`` means the training norm.
        batch_size: images attacked at once.
        seed: of starts and of the subset.
        checkpoints: weights to evaluate; ``None`` means the selected ones.
        weights: ``None`` means averaged where the run averages, else raw.
        val: those of ``attacks`` that are also run on the validation images: what a table selects
            among its runs by.
        temperature: the network's logits are divided by it first; above 0. Attacks on cosines
            instead of the scaled logits of a hypersphere head have its scale here.
    """

    attacks: Mapping[str, Attack | Measure | None]
    n: int | None
    split: SplitName
    eps: Fraction | None
    norm: Norm | None
    batch_size: int
    seed: int
    checkpoints: list[CheckpointName] | None
    weights: Weights | None
    val: list[str] = field(default_factory=list)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf):
            raise ValueError(f"temperature={self.temperature:g} must be positive and finite")

    @property
    def facts(self) -> dict[str, float]:
        """What goes into every number's parameters beside the attack's own."""
        return {} if self.temperature == 1 else {"temperature": self.temperature}


@dataclass(frozen=True)
class MethodConfig:
    """A method preset; see ``ablation.training.method``.

    Attributes:
        phases: always empty: only components add phases. Part of every run's identity, from when
            presets had them.
    """

    name: str
    crafters: Mapping[str, Crafter]
    budget: Budget
    passes: Sequence[str]
    terms: Mapping[str, Slot]
    roles: Mapping[str, str]
    ascent: Ascent | None = None
    phases: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.phases:
            raise ValueError(
                "phases: a method has one phase; set it to [] and let components add others, such "
                "as component/burn_in=enabled"
            )

    def build(self) -> Method:
        """The composition, before components."""
        return Method(
            self.crafters,
            self.budget,
            parse_passes(*self.passes),
            self.terms,
            self.roles,
            self.ascent,
        )


@dataclass(frozen=True)
class Config:
    """A whole experiment.

    ``launch`` and ``recipe`` say where it comes from: no part of it, nor of a saved config.
    """

    data: DataConfig
    model: ModelConfig
    method: MethodConfig
    component: Mapping[str, Component | None]
    norm: Norm
    eps: Fraction
    attack: AttackConfig
    augment: Augment
    optim: Optim
    lr: float
    batch_size: int
    schedule: Schedule
    epochs: int
    average: AverageSpec | None
    selection: SelectionConfig
    evaluation: EvaluationConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig
    seed: int
    data_dir: str
    runs_dir: str
    init_from: str | None
    retry: bool
    scale: Literal["full", "smoke"] = "full"
    launch: Launch | None = None
    recipe: str | None = None
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    extend: str | None = None
    phases: tuple[Phase, ...] = ()

    @property
    def selected(self) -> CheckpointName:
        """The checkpoint that the run stands for."""
        names: dict[str, CheckpointName] = {"robust": "best_robust", "clean": "best_clean"}
        return names.get(self.selection.metric, "last")

    @cached_property
    def train_id(self) -> str:
        """Hash of everything that can change the trained weights."""
        return digest(self.identity())

    @cached_property
    def arm_id(self) -> str:
        """The same without the seed: the runs of one arm share it."""
        return digest({**self.identity(), "seed": None})

    @property
    def run_name(self) -> str:
        """The run directory's name."""
        stem = f"{self.data.name}-{self.model.name}-{self.method.name}"
        return f"{stem}-s{self.seed}-{self.train_id}"

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        return Path(self.runs_dir).expanduser() / self.run_name

    @property
    def data_root(self) -> Path:
        """Where the images lie."""
        return Path(self.data_dir).expanduser()

    @property
    def notes(self) -> list[str]:
        """What every number of the run must say of its components."""
        return [part.note for part in self.component.values() if part is not None and part.note]

    def identity(self) -> dict[str, Any]:
        """The container that ``train_id`` hashes: no paths, tracking, device, evaluation, monitor.

        The training attack's keys act through the crafters, so they are left out: a method that
        does not attack is the same whatever they say. Plug-ins whose classes it names are in it
        with their versions.
        """
        full = self.container()
        for key in ("attack", "evaluation", "tracking", "monitor"):
            del full[key]
        for key in ("runs_dir", "data_dir", "retry", "extend"):
            del full[key]
        del full["runtime"]["device"], full["runtime"]["accumulate"], full["runtime"]["fast"]
        del full["data"]["eps"], full["data"]["augment"], full["optim"]["lr"]
        if self.runtime.batch_norm == "synchronised":
            del full["runtime"]["devices"], full["runtime"]["batch_norm"]
        full["data"]["source"].pop("download", None)
        if not full["data"]["source"].get("relabel"):
            full["data"]["source"].pop("relabel", None)
        full["component"] = {k: v for k, v in full["component"].items() if v != DISABLED}
        for crafter in full["method"]["crafters"].values():
            if not crafter.get("counts"):
                crafter.pop("counts", None)
        margins = "margin_maximization" in full["component"]
        fab = full["component"].get("fab_margin", {})
        if not fab.get("official_order"):
            fab.pop("official_order", None)
        closed_form = full["component"].get("closed_form_gradient", {})
        if not closed_form.get("masked"):
            closed_form.pop("masked", None)
        full["init_from"] = self.init_from and Path(self.init_from).name
        if full["scale"] == "full":
            del full["scale"]
        return stamped({"numerics": MARGIN_NUMERICS if margins else NUMERICS, **full})

    def container(self) -> dict[str, Any]:
        """The resolved config as plain data, complete, fit for YAML and for ``load``."""
        parts = plain(replace(self, phases=()))
        assert isinstance(parts, dict)  # noqa: S101
        del parts["phases"], parts["launch"], parts["recipe"]
        parts["component"] = {k: v or DISABLED for k, v in parts["component"].items()}
        parts["average"] = parts["average"] or {}
        return parts


def stamped(node: dict[str, Any]) -> dict[str, Any]:
    """Plain data with the versions of the plug-ins whose classes they name, if any."""
    versions = plugins.versions(str(part[TARGET]) for part in parts(node))
    return {**node, "plugins": versions} if versions else node


def digest(container: Mapping[str, Any]) -> str:
    """Ten hex digits of a canonical JSON."""
    text = json.dumps(container, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
