"""Packages of other people that bring parts, options and tables, installed beside this one.

A distribution names its package by an entry point of the group ``ablation.plugins``. Nothing of it
is imported until a config names one of its classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

from ablation.errors import InputError

GROUP = "ablation.plugins"
OWN = "ablation"
"""No plug-in may name this package."""
Kind = Literal["conf", "tables", "launchers"]
"""Folders of a plug-in's package, each of which may be missing: options in the groups of ours,
table files as in ``multirun_sweeps``, settings of ``hydra/launcher=``."""


@dataclass(frozen=True)
class Plugin:
    """An installed plug-in.

    Attributes:
        distribution: what ``pip`` calls it.
        version: of the distribution; part of the identity of every run that uses its classes.
        package: whose classes a config may name.
        folder: of the package.
    """

    distribution: str
    version: str
    package: str
    folder: Path

    def problem(self, text: str) -> str:
        """A line about what is wrong with it, with the remedy."""
        name = self.distribution
        return f"plug-in {name} {self.version}: {text}, or pip uninstall {name}"

    def owns(self, module: str) -> bool:
        """Check that a module, or a class by its import path, lies in the package."""
        return f"{module}.".startswith(f"{self.package}.")


@cache
def installed() -> tuple[Plugin, ...]:
    """Every plug-in, by name; imports none of them.

    Raises:
        InputError: an entry point names no package, or two name the same.
    """
    found: dict[str, Plugin] = {}
    for entry in sorted(entry_points(group=GROUP), key=str):
        plugin = _plugin(entry)
        other = found.setdefault(plugin.package, plugin)
        if other.distribution != plugin.distribution:
            text = f"{plugin.package} is the package of {other.distribution} too; rename it"
            raise InputError(plugin.problem(text))
    return tuple(sorted(found.values(), key=lambda plugin: plugin.distribution))


def folders(kind: Kind) -> list[Path]:
    """Folders of a kind that plug-ins have."""
    found = [plugin.folder / kind for plugin in installed()]
    return [folder for folder in found if folder.is_dir()]


def clashes(ours: Path, kind: Kind, pattern: str) -> list[str]:
    """Files of plug-ins that would hide one of ours or of another plug-in, one line each.

    Args:
        ours: our folder of this kind.
        kind: the folder of a plug-in.
        pattern: of the files, below each folder.
    """
    taken, problems = dict.fromkeys(_files(ours, pattern), OWN), []
    for plugin in installed():
        for name in _files(plugin.folder / kind, pattern):
            other = taken.setdefault(name, plugin.distribution)
            if other != plugin.distribution:
                text = f"{kind}/{name} has the name of a file of {other}; rename it"
                problems.append(plugin.problem(text))
    return problems


def _files(folder: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def _plugin(entry: EntryPoint) -> Plugin:
    name, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.name, "?")
    folder = None if entry.attr or entry.module.split(".")[0] == OWN else _folder(entry.module)
    plugin = Plugin(name, version, entry.module, folder or Path())
    if folder is None:
        text = f"its entry point {GROUP} names {entry.value!r}, no package of its own; mend it"
        raise InputError(plugin.problem(text))
    return plugin


def _folder(package: str) -> Path | None:
    """Where a package lies, found without importing it; ``None`` if nowhere."""
    top, *rest = package.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec else None
    folders = [Path(place, *rest) for place in places or ()]
    return next((folder for folder in folders if folder.is_dir()), None)


def owner(target: str) -> Plugin | None:
    """The plug-in that a class lies in, by its import path."""
    return next((plugin for plugin in installed() if plugin.owns(target)), None)


def load(plugin: Plugin, module: str) -> ModuleType:
    """Import a module of a plug-in.

    Raises:
        ModuleNotFoundError: there is none of this name.
        InputError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever its code raises
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{module}.".startswith(f"{missing}."):
            raise
        reason = f"{module} cannot be imported ({type(error).__name__}: {error}); repair it"
        raise InputError(plugin.problem(reason)) from error


def versions(targets: Iterable[str]) -> dict[str, str]:
    """Versions of the plug-ins that classes lie in, by distribution; empty if they are all ours."""
    owners = map(owner, targets)
    return {found.distribution: found.version for found in owners if found is not None}
