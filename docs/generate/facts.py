"""What the pages say of methods and components together: which rows use them, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ablation.commands.cli import searching
from ablation.config import validation
from ablation.config.compose import Composer
from ablation.config.folders import component_names, conf_dir, sweeps_dir
from ablation.config.overrides import key_of, layered
from ablation.sweeps.tables import Table, load_table, table_names

CONF = conf_dir()
OFF = "disabled"
DEFAULT_METHOD = "at"


@dataclass(frozen=True)
class Use:
    """A row of a table file, by what is switched on in it.

    Attributes:
        table: name of the file.
        arm: name of the row.
        label: for people.
        method: option of the group ``method``.
        components: option of each component that is on.
    """

    table: str
    arm: str
    label: str
    method: str
    components: Mapping[str, str]


@cache
def tables() -> Mapping[str, Table]:
    """Every table file of ours."""
    return {name: load_table(sweeps_dir() / f"{name}.yaml") for name in table_names([sweeps_dir()])}


@cache
def uses() -> Sequence[Use]:
    """Every row of every table file."""
    return [_use(name, table, arm) for name, table in tables().items() for arm in table.arms]


def _use(name: str, table: Table, arm: str) -> Use:
    own = table.arms[arm]
    source = [] if own.source is None else table.arms[own.source.arm].set
    chosen = {key_of(text): text.partition("=")[2] for text in layered(table.set, source, own.set)}
    method = chosen.get("method", DEFAULT_METHOD)
    options = preset_components(method) | {
        key.removeprefix("component/"): value
        for key, value in chosen.items()
        if key.startswith("component/")
    }
    on = {key: value for key, value in options.items() if value != OFF}
    return Use(name, arm, own.label or arm, method, on)


def preset_components(method: str) -> dict[str, str]:
    """The options of components that a method chooses itself."""
    node = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text("utf-8"))
    chosen = [entry for entry in node.get("defaults", ()) if isinstance(entry, dict)]
    return {
        key.removeprefix("override /component/"): value
        for entry in chosen
        for key, value in entry.items()
        if key.startswith("override /component/")
    }


def options(group: str) -> list[str]:
    """The options of a group that are on, the plain one first."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return sorted((name for name in names if name != OFF), key=lambda name: name != "enabled")


@dataclass(frozen=True)
class Refusals:
    """What a component is refused with, by message.

    Attributes:
        methods: message -> methods.
        components: message -> other components, on adversarial training.
    """

    methods: dict[str, list[str]] = field(default_factory=dict)
    components: dict[str, list[str]] = field(default_factory=dict)


@cache
def refusals() -> Mapping[str, Refusals]:
    """By component, what its option ``enabled`` is refused with, in the words of the program.

    A component comes with those that it requires. Pairs that either refuses alone do not count.
    """
    found = {name: Refusals() for name in component_names()}
    with searching(None):
        bench = _Bench(Composer())
        for name, refused in found.items():
            for method in options("method"):
                for problem in bench.problems(method, (name,)):
                    refused.methods.setdefault(problem, []).append(method)
            for other in found:
                for problem in _together(bench, name, other):
                    refused.components.setdefault(problem, []).append(other)
    return found


def _together(bench: _Bench, name: str, other: str) -> Iterator[str]:
    """What is wrong with two components that is wrong with neither alone."""
    alone = {*bench.problems(DEFAULT_METHOD, (name,)), *bench.problems(DEFAULT_METHOD, (other,))}
    both = bench.problems(DEFAULT_METHOD, tuple(sorted({name, other})))
    yield from (problem for problem in both if problem not in alone)


class _Bench:
    """Puts components on methods without asking Hydra again for each pair."""

    def __init__(self, composer: Composer) -> None:
        self._methods = {name: composer.plain([f"method={name}"]) for name in options("method")}
        self._nodes = {name: self._node(composer, name) for name in component_names()}
        self._known: dict[tuple[str, tuple[str, ...]], list[str]] = {}

    @staticmethod
    def _node(composer: Composer, name: str) -> Any:
        return composer.plain([f"component/{name}=enabled"])["component"][name]

    def problems(self, method: str, components: tuple[str, ...]) -> list[str]:
        """What is wrong with a method and components, and those that they require."""
        key = (method, components)
        if key not in self._known:
            container = copy.deepcopy(self._methods[method])
            for name in components:
                for each in (name, *required(name)):
                    container["component"][each] = self._nodes[each]
            _, problems = validation.check(container)
            self._known[key] = problems
        return self._known[key]


def required(component: str) -> tuple[str, ...]:
    """Components that one is refused without."""
    import ablation.components as classes

    target = node_of(component)["_target_"]
    found: tuple[str, ...] = getattr(classes, target.rpartition(".")[2]).requires
    return found


def node_of(component: str, option: str = "enabled") -> dict[str, Any]:
    """What the YAML file of an option sets."""
    path: Path = CONF / "component" / component / f"{option}.yaml"
    node = yaml.safe_load(path.read_text("utf-8"))
    return {key: value for key, value in node.items() if key != "defaults"}
