"""What a run directory says: its state, and every number in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ablation.config import evaluations
from ablation.config.experiment import Config
from ablation.errors import InputError
from ablation.reports.comparison import Absence
from ablation.reports.deviations import mismatches
from ablation.runs.columns import Column, named, verdict_column
from ablation.runs.directory import Run
from ablation.runs.evaluations import TRAINING
from ablation.runs.status import State
from ablation.text import printable

COLLAPSED = 1.25
"""Clean accuracy up to so many times chance, and two standard errors, is chance: a network that
predicts one class has 11.35% on MNIST, which is 1.135 times chance."""

LIMITS = {"percent": (0.0, 100.0), "correlation": (-1.0, 1.0)}
"""What a number can be, by its unit."""

FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""As safe as ``yaml.safe_load``, and ten times as fast where libyaml is there."""


@dataclass(frozen=True)
class Measurement:
    """One measured number: an entry of an evaluation in a run directory.

    Attributes:
        metric: name, for example ``pgd20``.
        split: ``test``, ``val`` or ``train``.
        checkpoint: name of the weights.
        weights: raw or average.
        value: in ``unit``.
        unit: percent, margin, radius or correlation.
        n: examples it is taken over.
        params: of the attack.
        flags: warnings of the evaluation.
        eval_id: hash of the evaluation, or ``TRAINING``.
        examples: Parquet file of the evaluation, a line per example; ``None`` if it is gone.
    """

    metric: str
    split: str
    checkpoint: str
    weights: str
    value: float
    unit: str
    n: int
    params: Mapping[str, Any]
    flags: tuple[str, ...]
    eval_id: str
    examples: Path | None

    @property
    def column(self) -> str:
        """Name of its column, for example ``clean_val`` or ``pgd20_from_<run>``."""
        return Column(named(self.metric, self.params), self.split).name

    @property
    def source(self) -> str | None:
        """Name of the run whose examples attacked; ``None`` for the network's own."""
        return self.params.get("attack_from")

    @property
    def whole(self) -> bool:
        """Whether it is over the whole split: a random subset is hardly ever the first n images.

        What training recorded is of all images that it trained on.
        """
        if self.eval_id == TRAINING:
            return True
        return self.examples is not None and _last_index(self.examples) == self.n - 1

    def is_of(self, checkpoint: str, weights: str) -> bool:
        """Tell whether it is of these weights; of their average too if training recorded it."""
        kinds = (self.weights, weights) if self.eval_id == TRAINING else (self.weights,)
        return self.checkpoint == checkpoint and weights in kinds


@dataclass(frozen=True)
class Directory:
    """What a run directory says.

    Attributes:
        name: of the run.
        state: ``None`` if the run never started.
        measurements: all its numbers that can be believed.
        problems: what is damaged, unreadable or contradicts itself, a line per file.
    """

    name: str
    state: State | None
    measurements: tuple[Measurement, ...]
    problems: tuple[str, ...] = ()

    @property
    def absence(self) -> Absence:
        """Why a number is not there."""
        if self.state is None:
            return "missing"
        return "not evaluated" if self.state == "done" else self.state


def read(path: Path) -> Directory:
    """Read a run directory; it need not exist. A file that cannot be used is named, not an end."""
    run = Run.at(path)
    numbers: list[Measurement] = []
    problems: list[str] = []
    try:
        status = run.status()
        state: State | None = "interrupted" if run.config_path.is_file() else None
        state = state if status is None else status.state
        files = sorted(run.evaluations.glob("*.json"))
        if files and not run.config_path.is_file():
            problems.append(f"{run.config_path} is missing; its numbers count by the run's name")
    except OSError as error:
        return Directory(path.name, None, (), (f"left out: {path}: {error.strerror}",))
    for file in files:
        try:
            numbers += _numbers(file)
        except (InputError, OSError) as error:
            problems.append(f"left out: {file}: {getattr(error, 'strerror', None) or error}")
    return Directory(path.name, state, tuple(numbers), tuple(problems))


def _numbers(file: Path) -> list[Measurement]:
    """The numbers of an evaluation.

    Raises:
        InputError: the file is damaged, a number is impossible, or not that of its Parquet file.
    """
    table = file.with_suffix(".parquet")
    examples = table if table.is_file() else None
    try:
        record = json.loads(file.read_bytes())
        numbers = [
            Measurement(
                metric=str(entry["metric"]),
                split=str(entry["split"]),
                checkpoint=str(entry["checkpoint"]),
                weights=str(entry["weights"]),
                value=_plausible(entry),
                unit=str(entry["unit"]),
                n=int(entry["n"]),
                params=dict(entry["params"]),
                flags=tuple(map(printable, record["flags"])),
                eval_id=str(record["eval_id"]),
                examples=examples,
            )
            for entry in record["entries"]
            if entry["value"] is not None
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("damaged; move it away and evaluate again") from error
    if examples is not None:
        _recount(examples, numbers)
    return numbers


def _plausible(entry: Mapping[str, Any]) -> float:
    """An entry's value.

    Raises:
        InputError: there is no such number.
    """
    value, unit = entry["value"], entry["unit"]
    known = type(value) in (int, float) and math.isfinite(value)
    low, high = LIMITS.get(unit, (-math.inf, math.inf))
    if not known or not low <= value <= high:
        raise InputError(f"{entry['metric']} is {value!r}, which is no {unit}; evaluate again")
    return float(value)


def _recount(examples: Path, numbers: Sequence[Measurement]) -> None:
    """Count accuracies again from the lines per example.

    Raises:
        InputError: one is another, or the Parquet file cannot be read.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(examples)
        verdicts = {number.metric: verdict_column(number.metric) for number in numbers}
        present = [name for name in verdicts.values() if name in table.schema_arrow.names]
        columns = table.read(columns=present)
        for number in numbers:
            name = verdicts[number.metric]
            if number.unit == "percent" and name in present:
                robust = columns.column(name).drop_null().cast(arrow.int64()).to_numpy()
                share = 100 * robust.mean() if len(robust) else math.nan
                if len(robust) != number.n or not math.isclose(share, number.value, abs_tol=1e-6):
                    raise InputError(
                        f"{number.metric} is {number.value:g} of {number.n} there, and "
                        f"{share:g} of {len(robust)} by {examples.name}; evaluate again"
                    )
    except (OSError, ValueError, TypeError, arrow.ArrowException) as error:
        raise InputError(f"{examples.name} is damaged; evaluate again") from error


def _last_index(examples: Path) -> int | None:
    """The largest index in a file of examples, from its footer."""
    import pyarrow.parquet as parquet  # most cells do without

    try:
        footer = parquet.read_metadata(examples)
        column = footer.schema.names.index("index")
        groups = [footer.row_group(i).column(column) for i in range(footer.num_row_groups)]
        return max((int(group.statistics.max) for group in groups), default=None)
    except (OSError, ValueError, AttributeError):  # damaged, or without statistics
        return None


def collapsed(measurements: Iterable[Measurement], classes: int) -> bool:
    """Tell whether the clean accuracy on most images is at chance level."""
    clean = [number for number in measurements if number.metric == "clean"]
    if not clean:
        return False
    best = max(clean, key=lambda number: (number.split == "test", number.n))
    chance = 1 / classes
    noise = 2 * math.sqrt(chance * (1 - chance) / max(1, best.n))
    return best.value <= 100 * (COLLAPSED * chance + noise)


def selected(config: Mapping[str, Any]) -> tuple[str, str]:
    """Checkpoint and weights, as ``config.evaluations`` chooses them from a parsed config."""
    names = {"robust": "best_robust", "clean": "best_clean"}
    checkpoints = value_at(config, "evaluation.checkpoints")
    usual = names.get(value_at(config, "selection.metric"), "last")
    weights = value_at(config, "evaluation.weights")
    averaged = "average" if config.get("average") else "raw"
    return (checkpoints[0] if checkpoints else usual), weights or averaged


def stands_for(config: Config, number: Measurement) -> bool:
    """Tell whether a number is of the weights that a run stands for."""
    return number.is_of(evaluations.checkpoints(config)[0], evaluations.chosen_weights(config))


def measured(
    config: Config, directory: Directory, column: str, wanted: Mapping[str, Any]
) -> Measurement | Absence:
    """Find a run's number for a column, or why there is none.

    The run's own evaluation comes first; then, of others of the same weights, that with the attack
    nearest to the wanted one, on most images.
    """
    mine = [number for number in directory.measurements if stands_for(config, number)]
    candidates = [number for number in mine if number.column == column]
    if directory.state == "failed":
        return "failed"
    if collapsed(mine, config.data.classes):
        return "collapsed"
    if not candidates:
        return directory.absence
    own = evaluations.evaluation_ids(config)
    return min(
        candidates, key=lambda f: (f.eval_id not in own, len(mismatches(f.params, wanted)), -f.n)
    )  # fmt: skip


def asked_columns(config: Config) -> list[str]:
    """Columns of a config's own attacks and measures, in its order; not those of ``val``."""
    own = replace(config, evaluation=replace(config.evaluation, val=[]))
    splits = {name: node.split for node in evaluations.evaluations(own) for name in node.attacks}
    return [Column(name, splits[name]).name for name in config.evaluation.attacks]


def saved_config(run: Run) -> Mapping[str, Any]:
    """A run's saved config.

    Raises:
        InputError: it cannot be read.
    """
    try:
        config = yaml.load(run.config_path.read_text("utf-8"), Loader=FAST)  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{run.config_path} cannot be read ({text}): move it away") from error
    if not isinstance(config, Mapping):
        raise InputError(f"{run.config_path} holds no settings: move it away")
    return config


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """A dotted key's value; ``None`` if it is not there."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
