"""Docstrings and annotations of the parts, for people."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ablation.types import Fraction, StepSize
from docs.generate.markdown import CODE, escaped

MODULES = (
    *("components", "terms", "weights", "budgets", "crafters", "ascents", "averages", "schedules"),
    *("models", "evaluation", "types"),
)
"""Rooms whose public names have an entry in the reference."""
WRITTEN: dict[Any, str] = {Fraction: "fraction", StepSize: "step size"}
"""Types that YAML writes in a way of their own: 8/255, eps/4."""
PLAIN: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true`, `false`",
}


def summary(cls: type) -> str:
    """The first sentence-like paragraph of a docstring, its names linked."""
    return linked(_paragraphs(cls)[0])


def details(cls: type) -> str:
    """What a docstring says between its first paragraph and its arguments, names linked."""
    return "\n\n".join(linked(text) for text in _paragraphs(cls)[1:])


def _paragraphs(cls: type) -> list[str]:
    text = re.split(r"\n\n?(?:Args|Attributes|Raises):\n", inspect.cleandoc(cls.__doc__ or ""))[0]
    return [" ".join(part.split()) for part in text.split("\n\n")]


def arguments(cls: type) -> dict[str, str]:
    """What a dataclass and its bases say of each field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        listed = re.search(r"^(?:Args|Attributes):\n((?: +.*\n?|\n)*)", text, re.M)
        for entry in re.split(r"\n    (?=\w)", "\n" + listed[1].rstrip()) if listed else ():
            name, _, meaning = entry.partition(":")
            found[name.strip()] = linked(" ".join(meaning.split()).replace("``None``", "``null``"))
    return {name: found[name] for name in (field.name for field in _fields(cls)) if name in found}


def written_types(cls: type) -> dict[str, str]:
    """The type of each field as YAML takes it."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _written(hints[field.name]) for field in _fields(cls)}


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _written(hint: Any) -> str:
    if hint in WRITTEN:
        return str(WRITTEN[hint])
    if get_origin(hint) is Annotated:
        return _written(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_written(each) for each in get_args(hint))
    if hint is type(None):
        return "`null`"
    if inner := get_args(hint):
        return f"list of {_written(inner[0])}" if len(inner) == 1 else str(hint)
    return PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def linked(text: str) -> str:
    """Text whose names of public parts lead to the reference."""
    pieces = CODE.split(text)
    spans = [_link(span) for span in pieces[1::2]]
    plain = [escaped(piece) for piece in pieces[::2]]
    return "".join(part for pair in zip(plain, [*spans, ""], strict=True) for part in pair)


def _link(span: str) -> str:
    name = span.strip("`")
    address = _address(name)
    return f"[`{name}`][{address}]" if address else f"`{name}`".replace("|", r"\|")


def _address(name: str) -> str | None:
    """``ablation.terms.KL`` of ``terms.KL`` or ``KL``, if it is public in the reference."""
    module, _, attribute = name.rpartition(".")
    for room in [module] if module else MODULES:
        if room in MODULES and attribute in public(room):
            return f"ablation.{room}.{attribute}"
    return None


def public(room: str) -> list[str]:
    """The documented classes and functions of a room, in its order."""
    module = importlib.import_module(f"ablation.{room}")
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    ]
    documented = (inspect.isclass, inspect.isfunction)
    return [name for name in names if any(is_one(getattr(module, name)) for is_one in documented)]
