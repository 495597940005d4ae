"""From a composed config to a ``Config``, or every problem in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ablation.config.experiment import Config, DataConfig, ModelConfig
from ablation.config.folders import component_names
from ablation.config.from_data import DERIVED, completed
from ablation.config.parser import TARGET, Parser
from ablation.config.phases import (
    accumulation_problems,
    built_phases,
    head_problems,
    layer_problems,
)
from ablation.config.rules import broken_rules
from ablation.config.scale import owner_of, scaled
from ablation.errors import ConfigError
from ablation.text import did_you_mean

SWEEP = ("table", "row", "search", "trials", "tables_dir")
"""Keys of a composed config that the sweeper has used up."""
ALONE = {
    "table": "leave hydra.mode to it",
    "row": "add table=<name>",
    "search": "leave hydra.mode to it",
    "trials": "add search=<name>",
}
"""Of these, the ones that a single job cannot have, and what to do."""
OUTSIDE = (
    "a network from outside is attacked (ablation-evaluate model=torch_module), not trained: "
    "heads, initial weights by seed and identities of runs belong to the architectures in "
    "ablation/models/; add yours there (CONTRIBUTING.md, A model)"
)
"""Why training takes no import path."""
BUILT = "phases"
"""Field of ``Config`` that is built from the method and its components, never given."""


@dataclass(frozen=True)
class PartCaps:
    """Largest values of these fields of crafters, attacks and components."""

    steps: int | None = None
    n_iter: int | None = None
    restarts: int | None = None
    targets: int | None = None
    queries: int | None = None
    samples: int | None = None
    iterations: int | None = None
    epochs: int | None = None
    start: int | None = None


@dataclass(frozen=True)
class ScaleConfig:
    """``conf/scale``: what replaces or caps a config; see ``scale.scaled``."""

    name: Literal["full", "smoke"]
    data: DataConfig | None = None
    model: ModelConfig | None = None
    keys: Mapping[str, int] = field(default_factory=dict)
    parts: PartCaps = field(default_factory=PartCaps)


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
    model = container.get("model")
    if isinstance(model, Mapping) and "target" in model:
        return None, [f"model.target={model['target']}: {OUTSIDE}"]
    values = {key: value for key, value in scaled(container).items() if key not in SWEEP}
    parser = Parser(_unscaled_problems(container))
    values["data"] = _data(values, parser)
    if BUILT in values:
        parser.problems.append(f"{BUILT}={values.pop(BUILT)!r}: built from the method; remove it")
    values["method"] = _method(values.get("method"), parser)
    values["component"] = _components(values.get("component", {}), parser)
    if values.get("average") == {}:
        values["average"] = None
    config = parser.parse(Config, values, "")
    if not isinstance(config, Config):
        return None, _once(parser.problems)
    problems = [*parser.problems, *broken_rules(config)]
    problems += [
        f"{key}={container[key]}: belongs to a sweep; {remedy}"
        for key, remedy in ALONE.items()
        if container.get(key) is not None
    ]
    phases = built_phases(config, problems)
    problems += head_problems(config.model.head, phases)
    problems += layer_problems(config.model.spec, phases)
    problems += accumulation_problems(config, phases)
    return replace(config, phases=phases), problems


def _once(problems: Sequence[str]) -> list[str]:
    """A wrong ``eps`` is told itself, not also of the keys that take its value, like a budget's."""
    own = {problem for problem in problems if "." not in problem.split("=")[0]}
    return [p for p in problems if not any(p.endswith(f".{known}") for known in own)]


def _unscaled_problems(container: Mapping[str, Any]) -> list[str]:
    """What is wrong with a scale, and with the data and model that it replaces."""
    scale = container.get("scale")
    if not isinstance(scale, Mapping):
        return []
    parser = Parser()
    parser.parse(ScaleConfig, scale, "scale")
    for key, hint in (("data", DataConfig), ("model", ModelConfig)):
        if key in scale:
            parser.parse(hint, _given(container.get(key)), key)
    capped = scale.get("keys")
    for key, cap in capped.items() if isinstance(capped, Mapping) else ():
        if owner_of(container, str(key))[0] is None:
            parser.problems.append(f"scale.keys.{key}={cap!r}: the config has no such key")
    return [text for text in parser.problems if " is missing: " not in text]


def _given(node: Any) -> Any:
    """A node without what is left to the images; that it is missing counts for nothing here."""
    if not isinstance(node, Mapping):
        return node
    return {k: v for k, v in node.items() if v is not None or k not in DERIVED}


def _data(values: Mapping[str, Any], parser: Parser) -> Any:
    """The node ``data`` with what comes from the images."""
    node, folder = values.get("data"), values.get("data_dir")
    if not isinstance(node, Mapping) or not isinstance(folder, str):
        return node
    found, problems = completed(node, Path(folder).expanduser())
    parser.problems += problems
    return found


def _method(node: Any, parser: Parser) -> Any:
    """The node ``method``; a setting of a term that it lacks is an error, and left out."""
    terms = node.get("terms") if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or not isinstance(terms, Mapping):
        return node
    unset = [key for key, slot in terms.items() if isinstance(slot, Mapping) and "term" not in slot]
    own = {key: slot for key, slot in terms.items() if key not in unset}
    for key in unset:
        parser.problems.append(
            f"method.terms.{key}: method={node.get('name')} has no term {key}, but "
            f"{', '.join(own) or 'none'}; choose a method that has it, or set "
            f"method.terms.{key}.term"
        )
    return {**node, "terms": own}


def _components(nodes: Any, parser: Parser) -> Any:
    """Disabled components become None; a hyperparameter on one of them is an error."""
    if not isinstance(nodes, Mapping):
        return nodes
    known, found = component_names(), dict[str, Any]()
    for name, node in nodes.items():
        if isinstance(node, Mapping) and TARGET in node:
            found[name] = node
            continue
        found[name] = None
        if name not in known:
            remedy = did_you_mean(str(name), known)
            parser.problems.append(f"component.{name}={node!r}: no such component; {remedy}")
            continue
        if not isinstance(node, Mapping):
            parser.problems.append(f"component.{name}={node!r}: write component/{name}=enabled")
            continue
        for key, value in node.items():
            if key != "enabled" or value is not False:
                parser.problems.append(
                    f"component.{name}.{key}={value!r}: no effect, component.{name} is disabled; "
                    f"add component/{name}=enabled"
                )
    return found
