"""Hydra's own node: which of its keys may be set, by whom, and to what.

Hydra imports and calls whatever this node names. So a command line may set a few of its keys, to
plain values; option files fewer; table files none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablation.config.overrides import repository
from ablation.config.parser import TARGET, Parser
from ablation.text import did_you_mean, one_line

NUMBERS: Mapping[str, Any] = {
    "hydra.sweeper.max_batch_size": int | None,
    "hydra.launcher.jobs": int | None,
    "hydra.launcher.n_jobs": int | None,
    "hydra.launcher.per_gpu": int,
    "hydra.launcher.gpus": list[int | str] | str | None,
    "hydra.launcher.gpus_per_job": int,
}
"""Keys that option files may set, too, and what they hold."""
COMMAND_LINE = (
    *("hydra/launcher", "hydra.launcher", "hydra.sweeper.plan", "hydra.sweeper.max_batch_size"),
    *("hydra.verbose", "hydra.job.env_set", "hydra.job.env_copy"),
)
"""Keys that a command line may set, with what lies below them."""
REMEDIES: Mapping[str, str] = {
    "hydra.run": "set runs_dir, where runs and sweeps lie",
    "hydra.sweep": "set runs_dir, where runs and sweeps lie",
    "hydra.mode": "write -m",
    "hydra.sweeper": "sweeps have one planner; it has the keys plan and max_batch_size",
    "hydra.callbacks": "callbacks are not run",
    "hydra.searchpath": "write --config-dir <folder>",
}
RECORDS = (
    *("hydra.overrides", "hydra.runtime"),
    *("hydra.job.override_dirname", "hydra.job.config_name"),
)
"""Where Hydra notes what was composed."""


def sets_hydra(override: Override) -> bool:
    """Check that an override sets a key of Hydra's node, or puts an option there."""
    places = (override.key_or_group, override.package or "")
    return any(place.replace("/", ".").split(".")[0] == "hydra" for place in places)


def command_line_problems(overrides: Sequence[Override]) -> list[str]:
    """What a command line sets in Hydra's node although it may not, one line each."""
    return [
        f"{override.input_line}: {remedy}"
        for override in overrides
        if sets_hydra(override) and (remedy := _remedy(override))
    ]


def _remedy(override: Override) -> str | None:
    key = override.key_or_group
    if override.is_sweep_override():
        return "several values of a key of Hydra make no sweep; give one"
    if override.package is not None or not _below(key, COMMAND_LINE):
        known = [remedy for place, remedy in REMEDIES.items() if _below(key, [place])]
        return known[0] if known else f"remove it; of Hydra's keys set only {_listed()}"
    if key == "hydra.launcher":
        return "set its keys one by one, as in hydra.launcher.jobs=2"
    if override.is_delete():
        return "nothing of Hydra's can be removed; set another value"
    if TARGET in key.split(".") or _names_class(override.value()):
        return f"a plain value belongs here, nothing with {TARGET}"
    return None


def _listed() -> str:
    return ", ".join(key for key in COMMAND_LINE if not key.startswith("hydra.job"))


def option_file_problems(composed: DictConfig, own: DictConfig) -> list[str]:
    """What option files set in Hydra's node although they may not, one line each.

    Args:
        composed: with every chosen option and Hydra's node.
        own: the same of this package's files and the command line's overrides of Hydra alone.
    """
    before, after = dict(_leaves(own.hydra)), dict(_leaves(composed.hydra))
    return [
        f"{key}={after.get(key)!r}: an option file may not set it; remove it there"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not _below(key, (*RECORDS, *NUMBERS))
    ]


def value_problems(composed: DictConfig) -> list[str]:
    """What is wrong with the values of a sweep's settings, one line each."""
    parser = Parser()
    for key, hint in {**NUMBERS, "hydra.sweeper.plan": bool}.items():
        try:
            value = OmegaConf.select(composed, key)
        except OmegaConfBaseException as error:
            parser.problems.append(f"{key}: {one_line(error)}")
            continue
        if value is not None:
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            parser.parse(hint, value, key)
    most = OmegaConf.select(composed, "hydra.sweeper.max_batch_size")
    if isinstance(most, int) and most < 1:
        parser.problems.append(f"hydra.sweeper.max_batch_size={most}: at least 1; null means all")
    return parser.problems


def launcher_problems(composed: DictConfig, loader: ConfigLoader) -> list[str]:
    """Keys that the chosen launcher does not have, one line each."""
    name = composed.hydra.runtime.choices["hydra/launcher"]
    option = repository(loader).load_config(f"hydra/launcher/{name}")
    known = [str(key) for key in option.config if key != TARGET] if option is not None else []
    return [
        f"hydra.launcher.{key}={composed.hydra.launcher[key]}: unknown key of the launcher {name}; "
        f"{did_you_mean(str(key), known)}"
        for key in composed.hydra.launcher
        if key not in (*known, TARGET)
    ]


def reads_other_files(loader: ConfigLoader) -> bool:
    """Check that options may come from folders beside this package's."""
    known = ("hydra", "main", "schema")
    return any(entry.provider not in known for entry in loader.get_search_path().get_path())


def _below(key: str, places: Sequence[str]) -> bool:
    """Check that a key is one of these places or lies below one; ``/`` separates groups."""
    return any(
        f"{key}.".replace("/", ".").startswith(f"{place}.".replace("/", ".")) for place in places
    )


def _names_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return TARGET in map(str, value) or any(map(_names_class, value.values()))
    return isinstance(value, list) and any(map(_names_class, value))


def _leaves(node: Any, path: str = "hydra") -> Iterator[tuple[str, Any]]:
    """Every plain value of a node with its dotted key, not resolved."""
    node = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, node
