"""The command that trains a run again: shortest where options of groups say most of it.

It is composed and held against the run's identity before it is shown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablation.config import validation
from ablation.config.compose import Composer
from ablation.config.experiment import DISABLED, Config
from ablation.config.folders import conf_dirs, read_yaml
from ablation.config.overrides import quoted
from ablation.config.parser import TARGET
from ablation.errors import ConfigError, InputError

SAID = ("data", "model", "method")
"""Groups that a command names even where they are the defaults."""
ELSEWHERE = ("runs_dir", "data_dir", "retry", "extend", "tracking", "evaluation", "monitor")
"""Keys of a config that its training does not depend on."""
PLAIN = re.compile(r"[\w.*/]+")
"""Texts that Hydra's grammar takes without quotes."""
CLASSES = (TARGET, f"source.{TARGET}", f"spec.{TARGET}")
"""Keys of an option that a config cannot have otherwise and still be of it."""
FIRST = ("norm", "eps", "lr", "batch_size", "epochs", "augment", "seed", "init_from")
"""Keys that others are interpolated from: once these are set, fewer differ."""


def command(config: Config, composer: Composer) -> str | None:
    """Find the command line that trains the same weights; ``None`` if none is found.

    Args:
        config: of the run.
        composer: of ``conf/config.yaml``.
    """
    words = list(_choices(config))
    try:
        words += _own_data(config, composer, words)
        words += _switched_off(config, _composed(composer, words))
        for keys in (FIRST, ("attack",), ()):
            words += _changes(config, _composed(composer, words), keys)
        if validation.load(composer.plain(words)).train_id != config.train_id:
            return None
    except InputError:  # an option that is gone, or data that are
        return None
    return shlex.join(["ablation-train", *_needed(config, composer, words)])


def _needed(config: Config, composer: Composer, words: list[str]) -> list[str]:
    """The words without those that change nothing; data, model and method are always said."""
    for word in words[len(SAID) :]:
        fewer = [each for each in words if each != word]
        found, problems = validation.check(composer.plain(fewer))
        if found is not None and not problems and found.train_id == config.train_id:
            words = fewer
    return words


def _composed(composer: Composer, words: list[str]) -> Config:
    """A config on the way: rules between its keys may be broken yet.

    Raises:
        ConfigError: it is none.
    """
    config, problems = validation.check(composer.plain(words))
    if config is None:
        raise ConfigError(problems)
    return config


def _choices(config: Config) -> Iterator[str]:
    """Options of groups that come nearest to the config."""
    whole = config.container()
    for group in (*SAID, "optim", "schedule", "average"):
        name = str(whole[group].get("name"))
        is_option = any(path.stem == name for path in _files(group))
        if option := name if is_option else _nearest(group, whole[group]):
            yield f"{group}={option}"
    for name, node in whole["component"].items():
        if node != DISABLED:
            yield f"component/{name}={_nearest(f'component/{name}', node) or 'enabled'}"
    if config.scale != "full":
        yield f"scale={config.scale}"


def _nearest(group: str, node: Mapping[str, Any]) -> str | None:
    """The option whose file agrees most with a node, of those of its class."""
    best: tuple[int, str] | None = None
    known = _flat(node)
    for path in _files(group):
        option = _flat(read_yaml(path) or {})
        same_class = all(option[key] == known.get(key) for key in CLASSES if key in option)
        score = sum(1 if known.get(key) == value else -1 for key, value in option.items())
        if option and same_class and (best is None or score > best[0]):
            best = score, path.stem
    return None if best is None else best[1]


def _files(group: str) -> list[Path]:
    """The options of a group, those of plug-ins last."""
    return [path for folder in conf_dirs() for path in sorted((folder / group).glob("*.yaml"))]


def _own_data(config: Config, composer: Composer, words: list[str]) -> Iterator[str]:
    """What a source of the user's images would have to read them for."""
    node = composer.plain(words)["data"]
    for key in ("name", "classes", "mean", "std"):
        if node.get(key) in (None, "???"):
            yield f"data.{key}={_said(config.container()['data'][key])}"


def _switched_off(config: Config, found: Config) -> Iterator[str]:
    """Components that the method chooses, and the run did without."""
    for name, part in found.component.items():
        if part is not None and config.component.get(name) is None:
            yield f"component/{name}=disabled"


def _changes(config: Config, found: Config, keys: tuple[str, ...]) -> Iterator[str]:
    """What is still to be set, or removed, below some top keys; below all without any."""
    before, after = (_flat(_trained(each)) for each in (found, config))
    for key in sorted({*before, *after}):
        top = key.split(".")[0]
        if (keys and top not in keys) or top in ELSEWHERE or key == "scale":
            continue
        if key not in after:
            if not any(other.startswith(f"{key}.") for other in after):
                yield f"~{key}"
        elif key not in before or repr(before[key]) != repr(after[key]):
            yield f"{key}={_fraction(key, after[key]) or _said(after[key])}"


def _fraction(key: str, value: Any) -> str | None:
    """A radius as ``8/255``, where it is one."""
    is_radius = key.split(".")[-1] == "eps" and type(value) is float and len(repr(value)) > 6
    return f"{round(value * 255)}/255" if is_radius and round(value * 255) / 255 == value else None


def _trained(config: Config) -> dict[str, Any]:
    whole = config.container()
    whole["component"] = {k: v for k, v in whole["component"].items() if v != DISABLED}
    del whole["runtime"]["device"]
    return whole


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf."""
    if not isinstance(node, Mapping) or not node:
        return {key: node} if key else {}
    return {
        path: leaf
        for name, entry in node.items()
        for path, leaf in _flat(entry, f"{key}.{name}" if key else str(name)).items()
    }


def _said(value: Any) -> str:
    """A value as a person would type it, and Hydra reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(_said, value))}]"
    return quoted(dict(value) if isinstance(value, Mapping) else value)
