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

PATIENCE = 6
"""Combinations that Hydra composes whole for each option more that is composed ahead of its use. So
no table of ours takes longer than if all were composed whole."""

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
        self._combined = 0
        self._read: dict[str, frozenset[Node] | None] = {}

    def config(self, choices: Sequence[str]) -> DictConfig:
        """A config of some choices, which may be changed.

        The first cost what Hydra takes. The more combinations were asked for, the more options may
        be composed on their own for the next: it pays with those after it.
        """
        wanted = tuple(choices)
        known = wanted in self._composed or len(wanted) < 2
        parts = None if known else self._parts(wanted)
        if parts is None:
            return copy.deepcopy(self._whole(wanted))
        rest, nodes = parts
        missing = {(), rest, *((text,) for text in nodes)} - self._composed.keys()
        if len(missing) > 1 + self._combined // PATIENCE:
            self._combined += 1
            return copy.deepcopy(self._whole(wanted))
        config = copy.deepcopy(self._whole(rest))
        with open_dict(config):
            for text, (*parents, key) in nodes.items():
                _at(config, parents)[key] = _at(self._whole((text,)), parents)._get_node(key)
        return config

    def _whole(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._composed:
            combined = [known for known in self._composed if len(known) > 1]
            if len(combined) >= KEPT:
                del self._composed[combined[0]]
            self._composed[choices] = self._compose(choices)
        return self._composed[choices]

    def _parts(self, choices: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, Node]] | None:
        """The options that Hydra has to compose together, and the nodes of those that part.

        ``None``: none does.
        """
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
        return (rest, nodes) if nodes else None

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
