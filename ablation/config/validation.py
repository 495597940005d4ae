"""From a composed config to a ``Config``, or every problem in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ablation.config.experiment import Config
from ablation.config.parser import TARGET, Parser
from ablation.config.phases import built_phases, head_problems, layer_problems
from ablation.config.rules import RULES
from ablation.config.scale import scaled
from ablation.errors import ConfigError

UNTYPED = ("hydra", "phases", "table", "row", "tables_dir")
"""Keys of a composed config that the sweeper has used up."""


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
    phases = built_phases(config, problems)
    problems += head_problems(config.model.head, phases)
    problems += layer_problems(config.model.spec, phases)
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
