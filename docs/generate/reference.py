"""The reference: every public name of the rooms that people write parts against."""

from __future__ import annotations

import importlib
import inspect

from docs.generate.docstrings import MODULES, public
from docs.generate.markdown import page

API = "api"
"""What ``import ablation`` gives."""


def pages() -> dict[str, str]:
    """A page for each room by its place in the site."""
    found = {f"reference/{room}.md": _page(room) for room in (API, *MODULES)}
    rooms = [f"- [`ablation.{room}`]({room}.md): {_says(room)}" for room in (API, *MODULES)]
    return found | {"reference/index.md": page("Reference", "\n".join(rooms))}


def _says(room: str) -> str:
    module = importlib.import_module(f"ablation.{room}")
    return inspect.cleandoc(module.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _page(room: str) -> str:
    entries = [f"::: ablation.{room}.{name}" for name in public(room)]
    return page(f"`ablation.{room}`", _says(room), *entries)
