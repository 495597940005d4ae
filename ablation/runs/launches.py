"""Which recipe a run follows, which tables and arms it serves: written when it is launched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ablation.runs.directory import Run


@dataclass(frozen=True)
class Launch:
    """Who asked for this job: written by the sweeper, no part of the experiment.

    Attributes:
        planned_id: the ``train_id`` that was planned; a job that finds another one refuses.
        table: name of the table, or ``None`` for a plain sweep.
        arms: the table's arms that this run serves.
        overrides: what the command line changed in the table, its axes apart.
        group: for tracking: table, row, its grid point, and ``overrides``; empty in a plain sweep.
    """

    planned_id: str
    table: str | None = None
    arms: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    group: str = ""


def note_launch(run: Run, launch: Launch) -> None:
    """Keep which table and arms the run serves: reports find runs with overrides by it.

    Raises:
        InputError: the directory cannot be written.
    """
    known = recorded_launches(run)
    entry = {key: getattr(launch, key) for key in ("table", "arms", "overrides")}
    if launch.table is not None and entry not in known:
        # W&B knows a run by one group: that of its first table.
        group = {} if known else {"group": launch.group}
        run.note(launches=[*known, entry], **group)


def note_recipe(run: Run, recipe: str | None) -> None:
    """Keep which option of ``conf/recipe`` the run's settings come from, if any.

    Raises:
        InputError: the directory cannot be written.
    """
    if recipe is not None:
        run.note(recipe=recipe)


def recorded_recipe(run: Run) -> str | None:
    """The recipe that the run was asked for with."""
    status = run.status()
    return None if status is None else status.facts.get("recipe")


def recorded_launches(run: Run) -> list[dict[str, Any]]:
    """Tables, arms and overrides that asked for this run."""
    status = run.status()
    return [] if status is None else list(status.facts.get("launches", []))


def recorded_group(run: Run) -> str | None:
    """The group of its first table's row; ``None`` if no table asked for the run."""
    status = run.status()
    return None if status is None else status.facts.get("group")
