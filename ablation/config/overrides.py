"""Hydra's override grammar: taking command lines apart, and putting them together."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence, Set
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException

from ablation.config.folders import component_names, conf_dir
from ablation.text import did_you_mean, one_line


@lru_cache(maxsize=4096)
def parsed(text: str) -> Override:
    """One override.

    Raises:
        HydraException: it is not in Hydra's grammar.
    """
    return OverridesParser.create().parse_override(text)


def readable(texts: Iterable[str]) -> tuple[list[Override], list[str]]:
    """The overrides that are in Hydra's grammar; a line for each that is not."""
    found, problems = [], []
    for text in texts:
        key, equals, _ = text.partition("=")
        if not key.lstrip("+~") or not (equals or text.startswith("~")):
            problems.append(f"{text}: write key=value")
            continue
        try:
            found.append(parsed(text))
        except HydraException as error:
            problems.append(f"{text}: {one_line(error)}")
    return found, problems


def key_of(text: str) -> str:
    """``lr`` of ``++lr=0.1``, ``component/awp`` of ``component/awp=enabled``."""
    return str(parsed(text).key_or_group)


def letting_in(argument: str) -> str:
    """``a.b=c`` as ``++a.b=c``: the schema, not the YAML, says which keys exist."""
    if "=" not in argument or _as_it_is(argument):
        return argument
    key = argument.split("=")[0]
    is_group = (conf_dir() / key).is_dir() or key in ("table", "search") or "/" in key or "@" in key
    return argument if is_group else f"++{argument}"


def _as_it_is(text: str) -> bool:
    """Tell flags, what adds or removes, and Hydra's keys but a launcher's: those are checked."""
    of_hydra = text.startswith("hydra") and not text.startswith("hydra.launcher.")
    return text[:1] in ("+", "~", "-") or of_hydra


MOST_JOBS = 10_000
"""Of one sweep: with more, a person has mistyped."""


def alternatives(text: str) -> list[str]:
    """``lr=0.1,0.2`` as ``lr=0.1`` and ``lr=0.2``; anything else as it is.

    Raises:
        HydraException: it is not in Hydra's grammar, or no list of values.
    """
    override = parsed(text)
    if not override.is_sweep_override():
        return [text]
    sweep = override.value()
    key = text.split("=")[0]
    if not override.is_discrete_sweep() or isinstance(sweep, Glob):
        raise HydraException(f"{text}: list the values, as in {key}=a,b, choice(a,b), range(0,3)")
    if isinstance(sweep, RangeSweep) and _count(sweep) > MOST_JOBS:
        raise HydraException(f"{text}: more than {MOST_JOBS} values; give fewer")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _count(sweep: RangeSweep) -> float:
    """Values of ``range(start,stop,step)``."""
    if sweep.start is None or sweep.stop is None or not sweep.step:
        return math.inf
    return (sweep.stop - sweep.start) / sweep.step


def crossed(grids: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every choice of one alternative from each grid.

    Raises:
        HydraException: there are too many.
    """
    count = math.prod(map(len, grids))
    if count > MOST_JOBS:
        raise HydraException(f"the sweep has {count} jobs, at most {MOST_JOBS}; sweep fewer keys")
    return list(itertools.product(*grids))


def sift(
    overrides: Sequence[Override], loader: ConfigLoader, config_name: str, multirun: bool
) -> tuple[list[str], list[list[str]]]:
    """Problems of the overrides themselves; for each usable one its alternatives in a sweep."""
    known_groups, chosen = set(groups(loader)), _chosen(loader, config_name)
    problems, usable = [], []
    for override in overrides:
        key, text = override.key_or_group, str(override.input_line)
        try:
            many = alternatives(text)
        except HydraException as error:
            problems.append(one_line(error))
            continue
        if override.is_sweep_override() and not multirun:
            problems.append(f"{text}: several values need --multirun (-m)")
            continue
        if problem := no_group(text, known_groups):
            problems.append(problem)
            continue
        if key in known_groups and not override.is_delete():
            if problem := list_problem(text):
                problems.append(problem)
                continue
            if text.startswith("+") and override.package is None and key in chosen:
                problems.append(f"{text}: it has an option already; write {bare(text)}")
                continue
            wrong = _unknown_options(override, loader.get_group_options(key))
            problems += [f"{key}={option}: no such option; {remedy}" for option, remedy in wrong]
            if not wrong:
                usable.append(many)
        elif _as_it_is(text):
            usable.append(many)
        else:
            usable.append([f"++{one}" for one in many])
    return problems, usable


def _chosen(loader: ConfigLoader, config_name: str) -> set[str]:
    """Groups of which the config has an option anyway: those of its defaults, and components."""
    file = repository(loader).load_config(config_name)
    defaults = (file.defaults_list or ()) if file is not None else ()
    named = {default.group for default in defaults if isinstance(default, GroupDefault)}
    return {str(group) for group in named} | {f"component/{name}" for name in component_names()}


def no_group(text: str, known: Set[str]) -> str | None:
    """Why an override that has the form of a choice, ``component/awp=enabled``, is none."""
    key = key_of(text)
    if "/" not in key or key in known:
        return None
    beside = {name for name in known if name.startswith(key.partition("/")[0] + "/")}
    near = did_you_mean(key, sorted(beside or {name for name in known if "hydra" not in name}))
    return f"{bare(text)}: no such group of options; {near}"


def list_problem(text: str) -> str | None:
    """Why a choice of options cannot be a list: Hydra would merge them into one config."""
    override = parsed(text)
    value = override.value()
    if not isinstance(value, list):
        return None
    key, names = override.key_or_group, ",".join(map(str, value))
    sweep = f"-m {key}={names} runs one after another"
    remedy = f"write {key}={names}" if len(value) == 1 else sweep
    return f"{bare(text)}: one option of {key}, not a list; {remedy}"


def _unknown_options(override: Override, choices: list[str]) -> list[tuple[str, str]]:
    if override.is_sweep_override():
        chosen = [str(value) for value in override.sweep_string_iterator()]
    else:
        chosen = [str(override.value())]
    return [(name, did_you_mean(name, choices)) for name in chosen if name not in choices]


def repository(loader: ConfigLoader) -> IConfigRepository:
    """Where Hydra reads option files."""
    assert isinstance(loader, ConfigLoaderImpl)  # noqa: S101
    return loader.repository


def groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    """Every config group, nested ones included."""
    found = []
    # ``loader.list_groups`` copies all sources, for each of forty groups.
    for name in repository(loader).get_group_options(parent, ObjectType.GROUP):
        path = f"{parent}/{name}".lstrip("/")
        found += [path, *groups(loader, path)]
    return found


def quoted(value: Any) -> str:
    """Plain data in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quoted(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(quoted(entry) for entry in value) + "]"
    # Hydra doubles a backslash only where a quote follows.
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(value))
    return f"'{text}'"


SEEDLESS = (
    *("runs_dir", "data_dir", "retry", "extend", "tables_dir", "tracking"),
    *("runtime.device", "runtime.accumulate", "runtime.fast", "hydra"),
)
"""Keys of the command line that change no number: they do not make another variant of a table."""


def layered(*layers: Iterable[str]) -> list[str]:
    """Overrides of several layers; of one key the last is kept, at its last place."""
    found: dict[str, str] = {}
    for text in itertools.chain(*layers):
        override = parsed(text)
        key = f"{override.key_or_group}@{override.package or ''}"
        found.pop(key, None)
        found[key] = text
    return list(found.values())


def bare(text: str) -> str:
    """An override as a person would type it."""
    return text.lstrip("+")


def variant(overrides: Iterable[str], axes: Iterable[str]) -> list[str]:
    """The part of a command line that makes other numbers: no axes, no places, no launcher.

    The number of devices is part of it only where BatchNorm may go by each one's part of a batch.
    """
    overrides = list(overrides)
    replicas = any(key_of(text) == "runtime.batch_norm" for text in overrides)
    keys = (*SEEDLESS, *axes, *(() if replicas else ("runtime.devices",)))
    kept = [
        text
        for text in overrides
        if not any(key_of(text) == key or key_of(text).startswith((f"{key}.", f"{key}/"))
                   for key in keys)
    ]  # fmt: skip
    return sorted(bare(text) for text in kept)
