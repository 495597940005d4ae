"""From plain configuration to typed objects and back, with every mistake reported at once.

A dataclass is a schema: its annotations say what YAML may hold. ``Parser.parse`` walks a plain
container along an annotation, builds dataclasses, and collects one line per problem; ``plain``
turns the result into a complete, canonical container again (defaults filled in, fractions as
numbers), which is what a run is identified by.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import types
import typing
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal

from ablation import plugins
from ablation.config.places import is_protocol, misfit
from ablation.errors import InputError
from ablation.text import did_you_mean

TARGET = "_target_"
ALLOWED_PREFIX = "ablation."
"""A configuration may only name classes of this package and of installed plug-ins (``plugins``): it
cannot run anything else."""
MOST = 10**9
"""Largest whole number of any key: what counts more is mistyped."""
MOST_SEED = 2**63 - 1
_MISSING = object()


def fraction(value: Any) -> float:
    """Parse ``8/255``, ``0.03`` or a number.

    Raises:
        ValueError: it is neither, or not finite.
    """
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    if isinstance(value, str) and value.count("/") == 1:
        top, bottom = value.split("/")
        if float(bottom) == 0:
            raise ValueError("division by zero")
        number = float(top) / float(bottom)
    else:
        number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def relative_step(value: Any, eps: float) -> float:
    """Parse a step size into a fraction of eps: ``eps/4``, ``eps*2``, ``2/255`` or pixels."""
    if isinstance(value, str) and value.strip().startswith("eps"):
        rest = value.strip()[3:].strip()
        if not rest:
            return 1.0
        factor = fraction(rest[1:])
        if rest[0] == "*":
            return factor
        if rest[0] == "/" and factor:
            return 1.0 / factor
        raise ValueError("write eps/4 or eps*2")
    pixels = fraction(value)
    # Rounded so that 0.01 at eps 0.1 is the same setting as eps/10.
    return round(pixels / eps, 12) if eps else 0.0


def locate(target: str) -> type:
    """The class a ``_target_`` names.

    Raises:
        ValueError: it lies outside the package and every plug-in, cannot be imported, does not
            exist, or is no dataclass.
    """
    module, _, name = target.rpartition(".")
    try:
        found = getattr(_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError("there is no such class") from error
    except InputError as error:
        raise ValueError(str(error)) from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError("it is not a dataclass")
    if not _allowed(found.__module__):
        raise ValueError(f"it is a class of {found.__module__}; {_where()}")
    return found


def _module(name: str) -> types.ModuleType:
    """Import a module that a configuration may name."""
    if f"{name}.".startswith(ALLOWED_PREFIX):
        return importlib.import_module(name)
    plugin = plugins.owner(name)
    if plugin is None:
        raise ValueError(_where())
    return plugins.load(plugin, name)


def _allowed(module: str) -> bool:
    return f"{module}.".startswith(ALLOWED_PREFIX) or plugins.owner(module) is not None


def _where() -> str:
    places = [ALLOWED_PREFIX, *(f"{plugin.package}." for plugin in plugins.installed())]
    return (
        f"only classes under {', '.join(places)} may be named, and those of plug-ins once they are "
        f"installed"
    )


def parts(node: Any) -> Iterator[MutableMapping[str, Any]]:
    """Every mapping with a ``_target_`` in plain data, outermost first."""
    if isinstance(node, MutableMapping):
        if TARGET in node:
            yield node
        for entry in node.values():
            yield from parts(entry)
    elif isinstance(node, list):
        for entry in node:
            yield from parts(entry)


@dataclasses.dataclass
class Parser:
    """Parse containers along annotations; ``problems`` holds one line per mistake."""

    problems: list[str] = dataclasses.field(default_factory=list)

    def parse(self, hint: Any, value: Any, key: str, eps: float = 0.0) -> Any:
        """Turn ``value`` into what ``hint`` asks for.

        Args:
            hint: an annotation, for example ``int``, ``list[float] | None`` or a dataclass.
            value: plain data: numbers, strings, lists and mappings.
            key: dotted path, for messages.
            eps: radius that pixel step sizes are divided by; a node's own ``eps`` takes over.

        Returns:
            The object; after a problem was recorded, something of no use.
        """
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if _names_class(hint):
            return self._named(typing.get_args(arguments[0]), value, key, eps)
        if origin is typing.Annotated:
            return self._number(arguments[1], value, key, eps)
        if origin in (types.UnionType, typing.Union):
            return self._union(arguments, value, key, eps)
        if origin is Literal:
            return self._choice(arguments, value, key)
        if origin in (list, tuple, Sequence):
            return self._sequence(arguments[0], origin, value, key, eps)
        if origin in (dict, Mapping):
            return self._mapping(arguments[1], value, key, eps)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._dataclass(hint, value, key, eps)
        if hint in (bool, int, float, str):
            return self._scalar(hint, value, key)
        return self._part((hint,), value, key, eps)

    def _fail(self, key: str, value: Any, remedy: str) -> None:
        self.problems.append(f"{key}={value!r}: {remedy}")

    def _number(self, kind: str, value: Any, key: str, eps: float) -> float | None:
        try:
            return fraction(value) if kind == "fraction" else relative_step(value, eps)
        except (TypeError, ValueError, OverflowError):
            examples = "8/255 or 0.03" if kind == "fraction" else "eps/4, 2/255 or 0.01"
            self._fail(key, value, f"not a number; write for example {examples}")
            return None

    def _union(self, choices: tuple[Any, ...], value: Any, key: str, eps: float) -> Any:
        if value is None and type(None) in choices:
            return None
        rest = [choice for choice in choices if choice is not type(None)]
        if all(map(is_protocol, rest)):
            return self._part(rest, value, key, eps)
        for choice in rest[:-1]:
            attempt = Parser()
            found = attempt.parse(choice, value, key, eps)
            if not attempt.problems:
                return found
        return self.parse(rest[-1], value, key, eps)

    def _named(self, classes: Sequence[type], value: Any, key: str, eps: float) -> Any:
        """One of several classes: the first, unless ``_target_`` names another."""
        first = _public_name(classes[0])
        named = value.get(TARGET, first) if isinstance(value, Mapping) else first
        by_name = {_public_name(cls): cls for cls in classes}
        if named not in by_name:
            kinds = " or ".join(cls.__name__ for cls in classes)
            remedy = f"the class here is {kinds}; choose from {', '.join(by_name)}"
            self._fail(f"{key}.{TARGET}", named, remedy)
            return None
        return self._dataclass(by_name[named], value, key, eps)

    def _choice(self, choices: tuple[Any, ...], value: Any, key: str) -> Any:
        if value not in choices:
            self._fail(key, value, did_you_mean(str(value), [str(choice) for choice in choices]))
        return value

    def _scalar(self, hint: type, value: Any, key: str) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and hint in (int, float):
            most = MOST_SEED if key.endswith("seed") else MOST
            if abs(value) > most:
                self._fail(key, value, f"at most {most}")
                return None
            return hint(value)
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            if isinstance(value, float) and not math.isfinite(value):
                self._fail(key, value, "not a finite number")
            return value
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        self._fail(key, value, f"expected {wanted[hint]}")
        return None

    def _sequence(self, item: Any, kind: Any, value: Any, key: str, eps: float) -> Any:
        if not isinstance(value, (list, tuple)):
            self._fail(key, value, "expected a list, for example [1,2]")
            return None
        found = [self.parse(item, entry, f"{key}[{i}]", eps) for i, entry in enumerate(value)]
        return found if kind is list else tuple(found)

    def _mapping(self, item: Any, value: Any, key: str, eps: float) -> Any:
        if not isinstance(value, Mapping):
            self._fail(key, value, "expected a mapping of names")
            return None
        return {
            name: self.parse(item, entry, f"{key}.{name}", eps) for name, entry in value.items()
        }

    def _part(self, protocols: Sequence[type], value: Any, key: str, eps: float) -> Any:
        if not isinstance(value, Mapping) or TARGET not in value:
            self._fail(key, value, f"expected a part: a mapping with {TARGET}")
            return None
        try:
            cls = locate(str(value[TARGET]))
        except ValueError as error:
            self._fail(f"{key}.{TARGET}", value[TARGET], str(error))
            return None
        if wrong := misfit(cls, protocols):
            self._fail(f"{key}.{TARGET}", value[TARGET], wrong)
            return None
        settings = {name: entry for name, entry in value.items() if name != TARGET}
        return self._dataclass(cls, settings, key, eps)

    def _dataclass(self, cls: type, value: Any, key: str, eps: float) -> Any:
        if not isinstance(value, Mapping):
            self._fail(key, value, "expected a mapping of settings")
            return None
        before = len(self.problems)
        hints = _hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in value:
            path = f"{key}.{name}" if key else str(name)
            if name == TARGET:
                if value[name] != _public_name(cls):
                    self._fail(path, value[name], _class_is_fixed(cls, key))
            elif name not in fields:
                remedy = did_you_mean(str(name), list(fields))
                self._fail(path, value[name], f"unknown key; {remedy}")
        if "eps" in fields and value.get("eps") is not None:
            own = Parser().parse(hints["eps"], value["eps"], "eps")
            eps = own if isinstance(own, float) else eps
        arguments = {}
        for name, field in fields.items():
            path = f"{key}.{name}" if key else name
            entry = value.get(name, _MISSING)
            if entry is _MISSING or entry == "???":
                if field.default is dataclasses.MISSING and (
                    field.default_factory is dataclasses.MISSING
                ):
                    self.problems.append(f"{path} is missing: set {path}=...")
            else:
                arguments[name] = self.parse(hints[name], entry, path, eps)
        if len(self.problems) > before:
            return None
        try:
            return cls(**arguments)
        except ValueError as error:
            self.problems.append(f"{key}: {error}" if key else str(error))
            return None


def _class_is_fixed(cls: type, key: str) -> str:
    """The remedy for a ``_target_`` where there is no choice: it would be ignored."""
    parts = [name for name, hint in _hints(cls).items() if is_protocol(hint)]
    places = ", ".join(f"{key}.{name}.{TARGET}" if key else f"{name}.{TARGET}" for name in parts)
    instead = f"; a class can be chosen at {places}" if places else ""
    return f"the class here is always {cls.__name__}; remove it{instead}"


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Annotations of a class; looking them up is what parsing a hundred configs costs most."""
    return typing.get_type_hints(cls, include_extras=True)


def plain(value: Any, part: bool = False) -> Any:
    """The canonical container of a parsed object: every field, parts with their ``_target_``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        hints = _hints(cls)
        fields = {
            field.name: _plain_field(getattr(value, field.name), hints[field.name])
            for field in dataclasses.fields(cls)
            if field.init
        }
        return {TARGET: _public_name(cls), **fields} if part else fields
    if isinstance(value, Mapping):
        return {str(name): plain(entry, part) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, part) for entry in value]
    return value


def _plain_field(value: Any, hint: Any) -> Any:
    """Step sizes say that they are relative; a bare number would be read as pixels.

    Of several classes the first goes without saying (``Parser._named``).
    """
    if typing.get_origin(hint) is typing.Annotated and hint.__metadata__ == ("step_size",):
        return f"eps*{value!r}"
    if _names_class(hint):
        return plain(value, type(value) is not typing.get_args(hint.__origin__)[0])
    return plain(value, _holds_part(hint))


def _names_class(hint: Any) -> bool:
    """Check that an annotation is of several dataclasses that ``_target_`` chooses from."""
    return typing.get_origin(hint) is typing.Annotated and hint.__metadata__ == ("named",)


def _holds_part(hint: Any) -> bool:
    """Check that an annotation asks for a part (a protocol or Any), not for a named dataclass."""
    arguments = [a for a in typing.get_args(hint) if a is not type(None) and a is not str]
    if arguments and typing.get_origin(hint) is not Literal:
        return _holds_part(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    return not (dataclasses.is_dataclass(hint) or hint in (bool, int, float, str))


def _public_name(cls: type) -> str:
    """The shortest import path of a class: ``ablation.terms.KL`` rather than its file."""
    package = ".".join(cls.__module__.split(".")[:2])
    exported = getattr(importlib.import_module(package), cls.__name__, None)
    return f"{package if exported is cls else cls.__module__}.{cls.__name__}"
