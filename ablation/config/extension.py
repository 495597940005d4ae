"""More epochs for a trained run: which run a config goes on from, and whether it may.

A run may be extended where its training is, bit for bit, the beginning of the longer one. The
longer run then has the id that it would have had from the start, and remembers its parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation.config.experiment import Config
from ablation.config.folders import has_file, read_saved_config
from ablation.config.validation import load
from ablation.errors import ConfigError, InputError
from ablation.runs.directory import Run, find_runs, first_difference
from ablation.training.optim import rates

LOOKS = 16
"""Places in an epoch at which two schedules are compared: some change with every step."""


def parent_of(config: Config) -> Run:
    """The run that ``extend`` names, or the longest that fits in the folder of runs it names.

    Raises:
        ConfigError: there is none, or it is not the beginning of this one.
    """
    place = Path(str(config.extend)).expanduser()
    if has_file(place / "config.yaml"):
        if problems := list(_differences(config, Run.at(place))):
            raise ConfigError([f"extend={config.extend}: {problem}" for problem in problems])
        return Run.at(place)
    stem = config.run_name.removesuffix(config.train_id)
    same = [run for run in find_runs(place) if run.path.name == f"{stem}{run.train_id}"]
    fitting = [run for run in same if not any(_differences(config, run))]
    if fitting:
        return max(fitting, key=lambda run: (int(run.config()["epochs"]), run.path.name))
    why = [f"extend={run.path}: {text}" for run in same for text in _differences(config, run)]
    raise ConfigError(why or [f"extend={config.extend}: no run there is named {stem}..."])


def extension_problems(config: Config) -> list[str]:
    """Check that the run to extend is there, finished, and the beginning of this one."""
    own = Run(config.run_dir, config.train_id)
    if config.extend is None or own.checkpoints.resumable():
        return []
    try:
        parent_of(config)
    except ConfigError as error:
        return list(error.problems)
    except InputError as error:  # a folder that cannot be listed
        return [f"extend={config.extend}: {error}"]
    return []


def _differences(config: Config, run: Run) -> Iterator[str]:
    """Why a run is not the beginning of a config's training, most telling first."""
    try:
        parent = load(read_saved_config(run.path))
    except ConfigError as error:
        yield from error.problems
        return
    if parent.train_id != run.train_id:
        yield "an older version trained it; this one would train it otherwise, so train anew"
        return
    found = first_difference(_compared(parent), _compared(config))
    if found is not None:
        key, before, now = found
        yield f"{key} is {before!r} there and {now!r} here; only epochs and schedule may differ"
    elif parent.epochs >= config.epochs:
        yield f"it has epochs={parent.epochs}; set epochs to more than that"
    else:
        yield from _departures(parent, config, run)
    status = run.status()
    if status is None or not status.facts.get("trained"):
        yield "it is not trained to the end; finish its training first"
    elif not run.checkpoints.resumable():
        yield "its step_... checkpoints were deleted; init_from starts from its last weights"


def _compared(config: Config) -> dict[str, Any]:
    return {**config.identity(), "epochs": None, "schedule": None}


def _departures(parent: Config, config: Config, run: Run) -> Iterator[str]:
    """Where the longer training would have gone another way within the parent's epochs."""
    shorter = replace(config.phases[-1], epochs=parent.phases[-1].epochs)
    if (*config.phases[:-1], shorter) != parent.phases:
        yield (
            f"a part of the method begins at a share of all epochs, so {config.epochs} epochs "
            f"begin otherwise than {parent.epochs}; train anew"
        )
        return
    every, trained = config.selection.every, sum(phase.epochs for phase in parent.phases)
    if trained % every:
        yield f"its last epoch was validated out of turn (selection.every={every}); train anew"
    for at, phase in enumerate(parent.phases):
        for number in range(phase.epochs * LOOKS):
            epoch = number / LOOKS
            before, now = (
                rates(c.phases, at, epoch, c.schedule, c.lr, c.optim.momentum)
                for c in (parent, config)
            )
            if before != now:
                yield (
                    f"over {config.epochs} epochs the schedule gives epoch {int(epoch)} another "
                    f"learning rate ({now[0]:.4g}) than over the {parent.epochs} of that run "
                    f"({before[0]:.4g}), so that run is not the beginning of this one; "
                    f"init_from={run.path} starts a new training from its last weights (runs "
                    f"with schedule=constant, or piecewise before a milestone, can be extended)"
                )
                return
