"""The phases of a run: the preset's method with every enabled component in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ablation.config.experiment import Config
from ablation.config.rules import model_problems
from ablation.errors import InputError
from ablation.models import HEADS, ModelSpec, Net, build_model
from ablation.text import did_you_mean
from ablation.training.memory import memory_problems
from ablation.training.method import Component, Method, Phase
from ablation.training.micro_batches import couplings
from ablation.training.step import check_layers
from ablation.types import RunsEagerly


def head_problems(name: str, phases: Sequence[Phase]) -> list[str]:
    """A component's head would take the place of the model's without a word."""
    if name not in HEADS:
        return [f"model.head={name!r}: {did_you_mean(name, list(HEADS))}"]
    if name != "linear" and any(phase.method.head is not None for phase in phases):
        return [
            f"model.head={name}: a component brings another head; set model.head=linear, or "
            "disable component/hypersphere and component/large_margin_softmax"
        ]
    return []


def layer_problems(spec: ModelSpec, phases: Sequence[Phase]) -> list[str]:
    """Layers that terms name; what a body has does not depend on the images."""
    methods = [phase.method for phase in phases if any(map(any, phase.method.observed().values()))]
    if not methods or any(model_problems(spec)):  # told already; building it could take all memory
        return []
    try:
        net = _some_net(spec)
        for method in methods:
            check_layers(method, net)
    except InputError as error:
        return [str(error)]
    return []


def accumulation_problems(config: Config, phases: Sequence[Phase]) -> list[str]:
    """Why batches cannot be taken in as many parts as asked for, as far as the config says."""
    asked = config.runtime.accumulate
    if asked == "auto" or asked == 1:
        return []
    key = f"runtime.accumulate={asked}"
    if asked < 1 or asked > config.batch_size:
        return [f"{key}: between 1 and batch_size={config.batch_size}, or auto"]
    if config.runtime.devices > 1:
        return [f"{key}: devices share a batch already; set it to 1 or runtime.devices=1"]
    if any(model_problems(config.model.spec)):
        return []
    try:
        net = _some_net(config.model.spec)
    except InputError:  # it takes other images; told where the network is built
        return []
    return [
        f"{key}: {reason}; set it to 1, or a smaller batch_size with a smaller lr"
        for reason in couplings(net, [phase.method for phase in phases])
    ]


def _some_net(spec: ModelSpec) -> Net:
    """A network without numbers, for what does not depend on the images.

    Raises:
        InputError: it takes other images than 3 x 32 x 32.
    """
    with torch.device("meta"):
        return build_model(spec, channels=3, size=32, classes=10)


def _eager_problems(method: Method) -> list[str]:
    return [
        f"runtime.compile=true: terms.{name} {term.eager}, which torch.compile cannot; set "
        f"runtime.compile=false"
        for name, term in ((name, slot.term) for name, slot in method.terms.items())
        if isinstance(term, RunsEagerly) and term.eager
    ]


def _memory_problems(methods: Sequence[Method]) -> list[str]:
    """Memories that two phases declare differently; each phase's own are ``Method.problems``."""
    own = {problem for method in methods for problem in memory_problems(method)}
    return [f"method.{p}" for p in memory_problems(methods) if p not in own]


def _switched(config: Config, phases: list[Phase], problems: list[str]) -> list[Phase]:
    """The phases with every enabled component in them."""
    enabled = {name: part for name, part in config.component.items() if part is not None}
    broken: set[str] = set()
    for name in (ordered := _in_order(enabled)):
        part = enabled[name]
        if broken & {*part.requires, *part.after}:
            broken.add(name)  # it would change what is not there
            continue
        lacking = [other for other in part.requires if other not in enabled]
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
        try:
            phases = list(enabled[name].arrange(tuple(phases)))
        except ValueError as error:
            problems.append(f"component.{name}: {error}")
    return phases


def _in_order(enabled: Mapping[str, Component]) -> list[str]:
    """Alphabetical, but each after those that it requires or wants before it."""
    order: list[str] = []

    def place(name: str) -> None:
        if name in enabled and name not in order:
            part = enabled[name]
            for other in (*part.requires, *part.after):
                place(other)
            order.append(name)

    for name in sorted(enabled):
        place(name)
    return order


def built_phases(config: Config, problems: list[str]) -> tuple[Phase, ...]:
    """Build the method's phase, put the enabled components into it, and let them add phases.

    Args:
        config: the experiment, still without phases.
        problems: gets a line for each thing that does not fit.
    """
    phases = [Phase("main", config.epochs, config.method.build())]
    phases = _switched(config, phases, problems)
    if config.selection.metric != "last" and not any(phase.selectable for phase in phases):
        problems.append(f"selection.metric={config.selection.metric}: no phase is selectable")
    for phase in phases:
        if config.runtime.compile:
            problems += _eager_problems(phase.method)
        prefix = "method" if phase.name == "main" else f"phase {phase.name}"
        problems += [f"{prefix}.{problem}" for problem in phase.method.problems()]
    problems += _memory_problems([phase.method for phase in phases])
    return tuple(phases)
