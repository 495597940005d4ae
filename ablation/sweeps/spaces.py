"""Search files: which keys of the config are searched, between which values, and how.

A search is ``multirun_sweeps/searches/<name>.yaml``. Needs no Optuna, as it is read before every
command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ablation.config.folders import read_yaml
from ablation.config.parser import Parser
from ablation.errors import ConfigError, InputError
from ablation.text import did_you_mean

FOLDER = "searches"
"""Of search files, inside a folder of table files."""


@dataclass(frozen=True)
class Dimension:
    """The values that a key may take: an interval, or a list.

    Attributes:
        low: least value.
        high: largest value.
        log: draw uniformly in the logarithm.
        step: only ``low``, ``low + step``, ...; ``None`` means any value.
        choices: instead of an interval.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.choices:
            if self.low is not None or self.high is not None:
                raise ValueError("give low and high, or choices, not both")
            if not all(isinstance(value, bool | int | float | str) for value in self.choices):
                raise ValueError("choices are numbers, words, true or false")
            return
        if self.low is None or self.high is None:
            raise ValueError("an empty range; give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"an empty range; low={self.low:g} must be below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} must be positive where log=true")
        if self.step is not None and (self.step <= 0 or self.log):
            raise ValueError(f"step={self.step:g}: a positive number, without log=true")

    def extremes(self) -> list[Any]:
        """Values that the config must be able to take: the ends, or every choice."""
        return self.choices or [self.low, self.high]


@dataclass(frozen=True)
class Search:
    """A search file.

    Attributes:
        title: for people.
        space: by key of the config, its values.
        set: overrides of every trial.
        trials: how many, pruned ones included.
        sampler: what proposes the next trial.
        pruner: what ends trials early, by their validation accuracy after each epoch: ``median``,
            below the median of the others; ``halving``, not in the best quarter (ASHA).
        warmup: epochs that every trial trains.
        seed: of the sampler.
    """

    title: str
    space: Mapping[str, Dimension]
    set: list[str] = field(default_factory=list)
    trials: int = 50
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "halving", "none"] = "median"
    warmup: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError("space: empty; name at least one key")
        if self.trials < 1:
            raise ValueError(f"trials={self.trials}: at least 1")
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup}: 0 epochs or more")


def override(key: str, value: Any) -> str:
    """``lr=0.0123457``: six digits, so that a person can type the run's command."""
    if isinstance(value, float):
        return f"{key}={value:.6g}"
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def search_names(folders: Sequence[Path]) -> list[str]:
    """Searches that can be asked for.

    Args:
        folders: of table files.
    """
    return sorted({path.stem for folder in folders for path in (folder / FOLDER).glob("*.yaml")})


def open_search(name: str, folders: Sequence[Path]) -> Search:
    """Read and check a search file; the first folder that has it wins.

    Raises:
        InputError: there is none of this name.
        ConfigError: with everything that is wrong with it.
    """
    for folder in folders:
        if name in search_names([folder]):  # a name, never a path
            return _load(folder / FOLDER / f"{name}.yaml")
    raise InputError(f"search={name}: {did_you_mean(name, search_names(folders))}")


def _load(path: Path) -> Search:
    parser = Parser()
    search = parser.parse(Search, read_yaml(path), "")
    if not isinstance(search, Search) or parser.problems:
        raise ConfigError([f"{path.name}: {problem}" for problem in parser.problems])
    if not search.title.isprintable():
        raise ConfigError([f"{path.name}: title={search.title!r}: one line, no control characters"])
    return search


def missing_optuna() -> str | None:
    """Say what to install before a search can run; ``None`` if nothing."""
    if find_spec("optuna") is not None:
        return None
    return "search= needs Optuna, which is not installed: pip install 'ablation[search]'"
