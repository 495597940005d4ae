"""Whether a class may stand where a part is asked for: it must keep that part's protocol."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ablation.plugins import OWN, owner

HOMES: Mapping[str, str] = {"Term": "terms", "Weight": "weights", "Budget": "budgets"}
"""Modules of this package, or of a plug-in's, for parts that members do not tell apart: all three
are called with the views alone."""

ROOMS = (
    *("ablation.ascents", "ablation.averages", "ablation.budgets", "ablation.components"),
    *("ablation.crafters", "ablation.data", "ablation.evaluation", "ablation.models"),
    *("ablation.numerics.boundary", "ablation.schedules", "ablation.terms", "ablation.weights"),
)
"""Where remedies look for parts."""


def is_protocol(hint: Any) -> bool:
    """Check that an annotation asks for a part."""
    return bool(getattr(hint, "_is_protocol", False))


def misfit(cls: type, protocols: Sequence[type]) -> str | None:
    """Say that a class is none of these parts, and which classes are; ``None`` if it is one."""
    if any(keeps(cls, protocol) for protocol in protocols):
        return None
    kinds = " or ".join(protocol.__name__ for protocol in protocols)
    fitting = sorted({name for protocol in protocols for name in _fitting(protocol)})
    return f"it is no {kinds}; choose from {', '.join(fitting)}"


@functools.cache
def keeps(cls: type, protocol: type) -> bool:
    """Check that a class has the members of a protocol, and methods of the same arguments."""
    home = HOMES.get(protocol.__name__)
    if home is not None and not f"{cls.__module__}.".startswith(f"{_package(cls)}.{home}."):
        return False
    if inspect.isabstract(cls):
        return False
    own = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for name in _members(protocol):
        wanted, found = getattr(protocol, name, None), getattr(cls, name, None)
        if name not in own and found is None:
            return False
        if inspect.isfunction(wanted) and (found is None or not _takes(found, wanted)):
            return False
    return True


def _package(cls: type) -> str:
    """``ablation`` of its own classes, else the package of the plug-in."""
    plugin = owner(cls.__module__)
    return OWN if plugin is None else plugin.package


def _members(protocol: type) -> Iterator[str]:
    for base in protocol.__mro__:
        if is_protocol(base):
            for name in {**vars(base), **inspect.get_annotations(base)}:
                if name == "__call__" or not name.startswith("_"):
                    yield name


def _takes(found: Any, wanted: Any) -> bool:
    """Check that a method can be called with the arguments of another by their names."""
    if not inspect.isfunction(inspect.unwrap(found)):
        return False
    mine, theirs = inspect.signature(found).parameters, inspect.signature(wanted).parameters
    needed = {name for name, entry in mine.items() if entry.default is entry.empty}
    return needed <= set(theirs) <= set(mine)


@functools.cache
def _fitting(protocol: type) -> tuple[str, ...]:
    """Public classes that keep a protocol, from the rooms that have any of its parts."""
    return tuple(
        f"{room}.{name}"
        for room in ROOMS
        for name, cls in vars(importlib.import_module(room)).items()
        if isinstance(cls, type) and is_dataclass(cls) and keeps(cls, protocol)
    )
