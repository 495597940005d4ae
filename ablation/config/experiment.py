"""The experiment as a typed, validated object: schema, cross-field rules, identity, building.

Hydra composes YAML; ``load`` turns the result into a ``Config`` or raises one ``ConfigError`` with
every problem in it, before data or device are touched. What is left is the experiment: two runs
with equal ``train_id`` train the same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf

from ablation.config.parser import TARGET, Parser, did_you_mean, plain
from ablation.config.scale import scaled
from ablation.data import Augment, Source
from ablation.errors import ConfigError, InputError
from ablation.evaluation import Attack, Measure, SplitName
from ablation.models import HEADS, ModelSpec, build_model
from ablation.runs.tracking import TrackingConfig
from ablation.training.engine import Sgd
from ablation.training.method import Component, Method, Phase, Slot
from ablation.training.step import check_layers
from ablation.types import (
    Ascent,
    AttackMode,
    AverageSpec,
    Budget,
    Crafter,
    Fraction,
    Norm,
    Schedule,
    Start,
    StepSize,
)

NUMERICS = 1
"""Bump by hand when a change of code changes the weights that a config trains."""

DISABLED: Mapping[str, Any] = {"enabled": False}

UNTYPED = ("hydra", "phases", "table", "row", "tables_dir")
"""Keys of a composed config that the sweeper has used up."""

CheckpointName = Literal["best_robust", "best_clean", "last"]
Weights = Literal["raw", "average"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, and the defaults that go with them.

    Attributes:
        name: part of the run's name.
        source: where the images come from.
        classes: number of labels.
        mean: per channel, in [0, 1] units.
        std: likewise.
        val_size: images held out for selection; 0 means none.
        split_seed: of the stratified split, shared by all arms.
        train_size: use this many of the rest; ``None`` means all.
        drop_last: leave out an incomplete last batch.
        eps: the radius usually used on this set; ``eps`` defaults to it.
        augment: likewise.
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
    """

    enabled: bool = True
    n: int | None = 512
    effective_margin: bool = False

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n={self.n}: at least 1; null measures all images")


@dataclass(frozen=True)
class RuntimeConfig:
    """Numerics: all but the device are part of a run's identity.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: of training forwards; losses and evaluation are always fp32.
        compile: torch.compile the model's body.
        channels_last: memory format of convolutions.
        deterministic: refuse kernels that may differ between two runs (CUDA; slower).
    """

    device: str
    precision: Literal["fp32", "tf32", "bf16"]
    compile: bool
    channels_last: bool
    deterministic: bool


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation: attacks by metric name, and on what.

    Attributes:
        attacks: metric name -> attack or measure; ``None`` is clean accuracy. A measure may name
            its own split: then it is an evaluation of its own, on those images.
        n: a fixed random subset of the split; ``None`` means all of it.
        split: which images.
        eps: radius; ``None`` means the training radius.
        norm: likewise.
        batch_size: images attacked at once.
        seed: of starts and of the subset.
        checkpoints: weights to evaluate; ``None`` means the selected ones.
        weights: ``None`` means averaged where the run averages, else raw.
        val: those of ``attacks`` that are also run on the validation images: what a table selects
            among its runs by.
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


@dataclass(frozen=True)
class PhaseConfig:
    """A stretch of training before or besides ``main``, in a method preset.

    Attributes:
        name: ``main`` changes the phase that ``epochs`` counts.
        epochs: its length; not for ``main``.
        overrides: merged into the method.
        optim: keep the optimiser or start fresh.
        selectable: may its epochs be chosen as best?
    """

    name: str
    epochs: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    optim: Literal["keep", "fresh"] = "keep"
    selectable: bool = True


@dataclass(frozen=True)
class MethodConfig:
    """A method preset; see ``ablation.training.method``."""

    name: str
    crafters: Mapping[str, Crafter]
    budget: Budget
    passes: Sequence[str]
    terms: Mapping[str, Slot]
    roles: Mapping[str, str]
    ascent: Ascent | None = None
    phases: list[PhaseConfig] = field(default_factory=list)

    def build(self) -> Method:
        """The composition, before components."""
        return Method(
            self.crafters, self.budget, tuple(self.passes), self.terms, self.roles, self.ascent
        )


@dataclass(frozen=True)
class Launch:
    """Who asked for this job: written by the sweeper, no part of the experiment.

    Attributes:
        planned_id: the ``train_id`` that was planned; a job that finds another one refuses.
        table: name of the table, or ``None`` for a plain sweep.
        arms: the table's arms that this run serves.
        overrides: what the command line changed in the table, its axes apart.
    """

    planned_id: str
    table: str | None = None
    arms: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    data: DataConfig
    model: ModelConfig
    method: MethodConfig
    component: Mapping[str, Component | None]
    norm: Norm
    eps: Fraction
    attack: AttackConfig
    augment: Augment
    optim: Sgd
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
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
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

    def identity(self) -> dict[str, Any]:
        """The container that ``train_id`` hashes: no paths, tracking, device, evaluation, monitor.

        The training attack's keys act through the crafters, so they are left out: a method that
        does not attack is the same whatever they say.
        """
        full = self.container()
        for key in ("attack", "evaluation", "tracking", "runs_dir", "data_dir", "retry", "monitor"):
            del full[key]
        del full["runtime"]["device"], full["data"]["eps"], full["data"]["augment"]
        full["data"]["source"].pop("download", None)
        full["component"] = {k: v for k, v in full["component"].items() if v != DISABLED}
        full["init_from"] = self.init_from and Path(self.init_from).name
        if full["scale"] == "full":
            del full["scale"]
        return {"numerics": NUMERICS, **full}

    def container(self) -> dict[str, Any]:
        """The resolved config as plain data, complete, fit for YAML and for ``load``."""
        parts = plain(replace(self, phases=()))
        assert isinstance(parts, dict)  # noqa: S101
        del parts["phases"], parts["launch"]
        parts["component"] = {k: v or DISABLED for k, v in parts["component"].items()}
        parts["average"] = parts["average"] or {}
        return parts


def digest(container: Mapping[str, Any]) -> str:
    """Ten hex digits of a canonical JSON."""
    text = json.dumps(container, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _names(config: Config) -> tuple[str, str, str]:
    return config.data.name, config.model.name, config.method.name


def _never_decays(config: Config) -> bool:
    """Is every milestone of a piecewise schedule beyond the end of training?"""
    milestones = getattr(config.schedule, "milestones", ())
    return bool(milestones) and min(milestones) >= config.epochs


RULES: list[tuple[Callable[[Config], bool], str]] = [
    (lambda c: c.eps < 0, "eps={c.eps:g}: a radius is not negative; write for example 8/255"),
    (
        lambda c: c.norm == "linf" and c.eps > 1,
        "eps={c.eps:g}: pixels lie in [0, 1]; did you mean {c.eps:g}/255?",
    ),
    (
        _never_decays,
        "schedule.milestones: the first lies beyond epochs={c.epochs}, so the rate never falls; "
        "set schedule.milestones=[...] or schedule=constant",
    ),
    (
        lambda c: not 0 <= c.seed < 2**63 or not 0 <= c.evaluation.seed < 2**63,
        "seed={c.seed}, evaluation.seed={c.evaluation.seed}: between 0 and 2^63",
    ),
    (
        lambda c: (
            c.evaluation.batch_size < 1 or (c.evaluation.n is not None and c.evaluation.n < 1)
        ),
        "evaluation.n={c.evaluation.n}, .batch_size={c.evaluation.batch_size}: at least 1",
    ),
    (
        lambda c: any(not n or n[0] == "." or "/" in n for n in _names(c)),
        "data.name={c.data.name}, model.name={c.model.name}, method.name={c.method.name}: they "
        "name the run's folder; use letters, digits, _ and -",
    ),
    (lambda c: c.batch_size < 1, "batch_size={c.batch_size}: at least 1"),
    (lambda c: c.epochs < 1, "epochs={c.epochs}: at least 1"),
    (lambda c: c.lr <= 0, "lr={c.lr:g}: must be positive"),
    (lambda c: c.attack.steps < 0, "attack.steps={c.attack.steps}: must not be negative"),
    (lambda c: c.data.val_size < 0, "data.val_size={c.data.val_size}: 0 means no validation"),
    (
        lambda c: c.selection.every < 1,
        "selection.every={c.selection.every}: validate every 1 or more epochs",
    ),
    (
        lambda c: c.data.val_size == 0 and c.selection.metric != "last",
        "selection.metric={c.selection.metric}: needs validation data, and data.val_size=0; "
        "set data.val_size=1000 or selection.metric=last",
    ),
    (
        lambda c: c.selection.n is not None and not 0 < c.selection.n <= max(1, c.data.val_size),
        "selection.n={c.selection.n}: must lie between 1 and data.val_size={c.data.val_size}",
    ),
    (
        lambda c: c.data.val_size == 0 and bool({"best_robust", "best_clean"} & _asked(c)),
        "evaluation.checkpoints={c.evaluation.checkpoints}: data.val_size=0 leaves only last",
    ),
    (
        lambda c: c.data.val_size == 0 and c.evaluation.split == "val",
        "evaluation.split=val: data.val_size=0 leaves no validation data",
    ),
    (
        lambda c: not set(c.evaluation.val) <= set(c.evaluation.attacks),
        "evaluation.val={c.evaluation.val}: only metrics of evaluation.attacks can be run on the "
        "validation images too",
    ),
    (
        lambda c: bool(c.evaluation.val) and c.data.val_size == 0,
        "evaluation.val={c.evaluation.val}: data.val_size=0 leaves no validation data; set "
        "evaluation.val=[]",
    ),
    (
        lambda c: bool(_own_splits(c, c.evaluation.val)),
        "evaluation.val={c.evaluation.val}: a measure with a split of its own stays on its images",
    ),
    (
        lambda c: c.data.val_size == 0 and "val" in _own_splits(c, c.evaluation.attacks),
        "evaluation.attacks: a measure has split: val, and data.val_size=0 leaves no such images",
    ),
    (
        lambda c: c.evaluation.weights == "average" and c.average is None,
        "evaluation.weights=average: the run keeps no average; set average=ema or weights=raw",
    ),
    (
        lambda c: c.evaluation.eps is not None and c.evaluation.eps < 0,
        "evaluation.eps={c.evaluation.eps}: a radius is not negative",
    ),
    (
        lambda c: len(c.data.mean) != len(c.data.std) or min(c.data.std, default=1) <= 0,
        "data.mean={c.data.mean}, data.std={c.data.std}: one positive std per mean",
    ),
    (
        lambda c: c.attack.start == "clean" and _climbs(c, "AttackKL"),
        "attack.start=clean: the KL attack has no gradient at the clean image; "
        "set attack.start=gaussian or uniform",
    ),
]
"""Cross-field rules: (is it wrong?, message), formatted with ``c``."""


def _asked(config: Config) -> set[str]:
    return set(config.evaluation.checkpoints or ())


def _own_splits(config: Config, metrics: Iterable[str]) -> set[str]:
    """Splits that these metrics name themselves."""
    attacks = [config.evaluation.attacks.get(metric) for metric in metrics]
    return {split for attack in attacks if (split := getattr(attack, "split", None)) is not None}


def _climbs(config: Config, loss: str) -> bool:
    crafters = config.method.crafters.values()
    losses = [slot.loss for crafter in crafters for slot in getattr(crafter, "losses", {}).values()]
    return any(type(entry).__name__ == loss for entry in losses)


def load(container: Mapping[str, Any]) -> Config:
    """Validate a composed config and build it.

    Args:
        container: plain data, interpolations resolved.

    Raises:
        ConfigError: with every problem in it.
    """
    config, problems = check(container)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def check(container: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """Like ``load``, but returns the problems."""
    values = {key: value for key, value in scaled(container).items() if key not in UNTYPED}
    parser = Parser()
    values["component"] = _components(values.get("component") or {}, parser)
    values["average"] = values.get("average") or None
    config = parser.parse(Config, values, "")
    if not isinstance(config, Config):
        return None, _once(parser.problems)
    problems = parser.problems + [text.format(c=config) for wrong, text in RULES if wrong(config)]
    problems += [
        f"{key}={container[key]}: chooses from a table's sweep; {remedy}"
        for key, remedy in (("table", "leave hydra.mode to it"), ("row", "add table=<name>"))
        if container.get(key) is not None
    ]
    phases = _phases(config, values["method"], problems)
    problems += _head_problems(config.model.head, phases)
    problems += _layer_problems(config.model.spec, phases)
    return replace(config, phases=phases), problems


def _once(problems: Sequence[str]) -> list[str]:
    """A wrong ``eps`` is told itself, not also of the keys that take its value, like a budget's."""
    own = {problem for problem in problems if "." not in problem.split("=")[0]}
    return [p for p in problems if not any(p.endswith(f".{known}") for known in own)]


def _components(nodes: Mapping[str, Any], parser: Parser) -> dict[str, Any]:
    """Disabled components become None; a hyperparameter on one of them is an error."""
    found: dict[str, Any] = {}
    for name, node in nodes.items():
        if isinstance(node, Mapping) and TARGET in node:
            found[name] = node
            continue
        found[name] = None
        if not isinstance(node, Mapping):
            parser.problems.append(f"component.{name}={node!r}: write component/{name}=enabled")
            continue
        for key, value in node.items():
            if (key, value) != ("enabled", False):
                parser.problems.append(
                    f"component.{name}.{key}={value!r}: no effect, component.{name} is disabled; "
                    f"add component/{name}=enabled"
                )
    return found


def _head_problems(name: str, phases: Sequence[Phase]) -> list[str]:
    """A component's head would take the place of the model's without a word."""
    if name not in HEADS:
        return [f"model.head={name!r}: {did_you_mean(name, list(HEADS))}"]
    if name != "linear" and any(phase.method.head is not None for phase in phases):
        return [
            f"model.head={name}: a component brings another head; set model.head=linear, or "
            "disable component/hypersphere and component/large_margin_softmax"
        ]
    return []


def _layer_problems(spec: ModelSpec, phases: Sequence[Phase]) -> list[str]:
    """Layers that terms name; what a body has does not depend on the images."""
    methods = [phase.method for phase in phases if any(map(any, phase.method.observed().values()))]
    if not methods:
        return []
    try:
        with torch.device("meta"):
            net = build_model(spec, channels=3, size=32, classes=10)
        for method in methods:
            check_layers(method, net)
    except InputError as error:
        return [str(error)]
    return []


def init_problems(config: Config) -> list[str]:
    """Is the run to start from there?"""
    if config.init_from is None:
        return []
    weights = Path(config.init_from).expanduser() / "checkpoints" / "last.safetensors"
    if weights.is_file():
        return []
    return [f"init_from={config.init_from}: no finished run there ({weights} is missing)"]


def _eager_problems(method: Method) -> list[str]:
    found = {name: getattr(slot.term, "eager", None) for name, slot in method.terms.items()}
    return [
        f"runtime.compile=true: terms.{name} {why}, which torch.compile cannot; set "
        f"runtime.compile=false"
        for name, why in found.items()
        if why
    ]


def _switched(config: Config, phases: list[Phase], problems: list[str]) -> list[Phase]:
    """The phases with every enabled component in them."""
    enabled = {name: part for name, part in config.component.items() if part is not None}
    broken: set[str] = set()
    for name in (ordered := _in_order(enabled)):
        part = enabled[name]
        if broken & {*getattr(part, "requires", ()), *getattr(part, "after", ())}:
            broken.add(name)  # it would change what is not there
            continue
        lacking = [other for other in getattr(part, "requires", ()) if other not in enabled]
        if lacking:
            problems.append(
                f"component.{name}: has nothing to change without {', '.join(lacking)}; set "
                f"component/{lacking[0]}=enabled or component/{name}=disabled"
            )
            continue
        try:
            phases = [replace(phase, method=part.apply(phase.method)) for phase in phases]
        except ValueError as error:
            problems.append(f"component.{name}: {error}")
            broken.add(name)
    for name in ordered:
        arrange = getattr(enabled[name], "arrange", None)
        try:
            phases = list(arrange(tuple(phases))) if arrange else phases
        except ValueError as error:
            problems.append(f"component.{name}: {error}")
    return phases


def _in_order(enabled: Mapping[str, Component]) -> list[str]:
    """Alphabetical, but each after those that it requires or wants before it."""
    order: list[str] = []

    def place(name: str) -> None:
        if name in enabled and name not in order:
            part = enabled[name]
            for other in (*getattr(part, "requires", ()), *getattr(part, "after", ())):
                place(other)
            order.append(name)

    for name in sorted(enabled):
        place(name)
    return order


def _phases(config: Config, method: Mapping[str, Any], problems: list[str]) -> tuple[Phase, ...]:
    """The preset's phases with the components in them."""
    nodes = [*config.method.phases]
    if not any(node.name == "main" for node in nodes):
        nodes.append(PhaseConfig("main"))
    phases: list[Phase] = []
    for node in nodes:
        merged = OmegaConf.to_container(OmegaConf.merge(dict(method), dict(node.overrides)))
        parser = Parser()
        built = parser.parse(MethodConfig, merged, f"method.phases.{node.name}", config.eps)
        problems += parser.problems
        epochs = config.epochs if node.name == "main" else node.epochs
        if epochs is None or epochs < 1:
            problems.append(f"method.phases.{node.name}.epochs={epochs}: at least 1")
        elif isinstance(built, MethodConfig):
            phases.append(Phase(node.name, epochs, built.build(), node.optim, node.selectable))
    phases = _switched(config, phases, problems)
    if config.selection.metric != "last" and not any(phase.selectable for phase in phases):
        problems.append(f"selection.metric={config.selection.metric}: no phase is selectable")
    for phase in phases:
        if config.runtime.compile:
            problems += _eager_problems(phase.method)
        prefix = "method" if phase.name == "main" else f"phase {phase.name}"
        problems += [f"{prefix}.{problem}" for problem in phase.method.problems()]
    return tuple(phases)
