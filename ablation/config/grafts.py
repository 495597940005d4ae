"""Composing the same options in many combinations: each option once, then node by node.

Hydra reads forty files for every config. But most options set nothing beside their own node: they
look alike in every combination, and can be put where they belong.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, DictConfig, open_dict

from ablation.config.overrides import key_of

PLAIN = re.compile(r"[\w/]+=[\w.-]+")
"""``component/awp=enabled``: an option that is chosen, not added, removed or placed elsewhere."""

KEPT = 100
"""Configs of several choices that are kept; one takes a megabyte or two."""

Node = tuple[str, ...]
"""Keys that lead to a node: component, awp."""


class Grafts:
    """Configs of choices of options, as Hydra composes them.

    Args:
        compose: asks Hydra for the config of some choices.
        load: reads an option's file, ``component/awp/enabled``; ``None`` if there is none.
    """

    def __init__(
        self,
        compose: Callable[[Sequence[str]], DictConfig],
        load: Callable[[str], ConfigResult | None],
    ) -> None:
        self._compose, self._load = compose, load
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._met: set[str] = set()
        self._read: dict[str, frozenset[Node] | None] = {}

    def config(self, choices: Sequence[str]) -> DictConfig:
        """A config of some choices, which may be changed.

        An option is composed alone once it is met again: one config costs no more than Hydra takes.
        """
        wanted = tuple(choices)
        again = self._met.issuperset(wanted)
        self._met.update(wanted)
        if wanted not in self._composed and again:
            grafted = self._grafted(wanted)
            if grafted is not None:
                return grafted
        return copy.deepcopy(self._whole(wanted))

    def _whole(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._composed:
            combined = [known for known in self._composed if len(known) > 1]
            if len(combined) >= KEPT:
                del self._composed[combined[0]]
            self._composed[choices] = self._compose(choices)
        return self._composed[choices]

    def _grafted(self, choices: tuple[str, ...]) -> DictConfig | None:
        """Put the nodes of options into the config of the others; ``None`` if they do not part."""
        if not all(map(PLAIN.fullmatch, choices)):
            return None
        beside = {text: self._beside(text.replace("=", "/")) for text in choices}
        nodes = {text: _node(key_of(text)) for text in choices if beside[text] == frozenset()}
        rest = tuple(text for text in choices if text not in nodes)
        taken = [_node(key_of(text)) for text in rest]
        for text in rest:
            more = beside[text]
            if more is None:
                return None
            taken += more
        for node in nodes.values():
            if any(_overlap(node, other) for other in taken):
                return None
            taken.append(node)
        config = copy.deepcopy(self._whole(rest))
        with open_dict(config):
            for text, (*parents, key) in nodes.items():
                _at(config, parents)[key] = _at(self._whole((text,)), parents)._get_node(key)
        return config

    def _beside(self, option: str) -> frozenset[Node] | None:
        """The nodes that an option sets beside its group's own; ``None`` if that is not plain.

        Args:
            option: ``component/awp/enabled``.
        """
        if option not in self._read:
            self._read[option] = None  # should it list itself
            self._read[option] = self._found_beside(option)
        return self._read[option]

    def _found_beside(self, option: str) -> frozenset[Node] | None:
        file, group = self._load(option), option.rpartition("/")[0]
        if file is None or file.header["package"] not in (None, "_global_"):
            return None
        everywhere = file.header["package"] is not None
        nodes = {_node(group), *_set_by(file.config)} if everywhere else set()
        for default in file.defaults_list or ():
            if default.is_self():
                continue
            path, package = _path(default), default.package
            found = self._beside(path[1:] if path.startswith("/") else f"{group}/{path}")
            if found is None or (package is not None and (found or package.startswith("_"))):
                return None
            nodes |= found
            if default.is_override():
                nodes.add(_node(path.rpartition("/")[0].lstrip("/")))
            elif package is None and (path.startswith("/") or "/" in path):
                return None
            elif package is not None and everywhere:
                nodes.add(tuple(package.split(".")))
        return frozenset(nodes)


def _path(default: InputDefault) -> str:
    """Of an entry of a defaults list: ``/optim/sgd``, or ``sgd`` of the same group."""
    if isinstance(default, GroupDefault):
        return f"{default.group}/{default.value}"
    assert isinstance(default, ConfigDefault)  # noqa: S101
    return str(default.path)


def _node(group: str) -> Node:
    return tuple(group.split("/"))


def _set_by(body: Container) -> set[Node]:
    """The nodes that a file sets, two keys deep: deeper is no group."""
    assert isinstance(body, DictConfig)  # noqa: S101
    nodes: set[Node] = set()
    for key in map(str, body):
        value = body._get_node(key)
        below = map(str, value) if isinstance(value, DictConfig) and not value._is_none() else ()
        nodes |= {(key, name) for name in below} or {(key,)}
    return nodes


def _overlap(a: Node, b: Node) -> bool:
    """Tell whether nodes are the same, or one lies within the other."""
    return a[: len(b)] == b[: len(a)]


def _at(config: Any, node: Sequence[str]) -> Any:
    for key in node:
        config = config[key]
    return config
