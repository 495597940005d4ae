"""The identities of everything that can be asked for: presets, options, components, table arms.

``python -m tests.support.golden`` adds what is new to ``golden_ids.json``. It changes no identity
that is there already: a run on somebody's disk is found by it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hydra import initialize_config_dir

from ablation.config import compose, evaluations, folders, validation
from ablation.config import experiment as config
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import open_table
from ablation.sweeps.tables import Table, table_names
from tests.support.options import COMPONENTS, completed, options

PATH = Path(__file__).with_name("golden_ids.json")
GIVEN = {  # what comes from the images where it is not given: what these options once had
    "image_folder": (
        "data.classes=10",
        "data.mean=[0.485,0.456,0.406]",
        "data.std=[0.229,0.224,0.225]",
    ),
    "parquet": (
        "data.classes=10",
        "data.mean=[0.4914,0.4822,0.4465]",
        "data.std=[0.2471,0.2435,0.2616]",
    ),
}
GROUPS = ("method", "model", "optim", "schedule", "average", "evaluation", "scale", "recipe")

Ids = list[str]
"""``train_id``, then the ``eval_id`` of each evaluation."""


def single_runs(share: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Every option of every group, and every component variant on every method.

    Of both one in ``share``; of the components others with each method.
    """
    chosen = [f"{group}={option}" for group in GROUPS for option in options(group)]
    for text in chosen[::share]:
        yield text, [text, "epochs=110"]
    for option in options("data"):
        yield f"data={option}", [f"data={option}", "selection.n=null", *GIVEN.get(option, ())]
    for row, method in enumerate(options("method")):
        for component in COMPONENTS[row % share :: share]:
            overrides = [f"method={method}", *completed(component)]
            yield " ".join(overrides), overrides


def ids_of(found: config.Config) -> Ids:
    return [found.train_id, *evaluations.evaluation_ids(found)]


def run_ids(share: int, composer: compose.Composer) -> dict[str, Ids]:
    found = {}
    for name, overrides in single_runs(share):
        built, problems = validation.check(composer.plain(overrides))
        if built is not None and not problems:  # some components do not fit a method
            found[name] = ids_of(built)
    return found


def unchosen(table: Table) -> Table:
    """Arms that continue others with every grid point, as if all were chosen."""
    arms = {
        name: replace(arm, source=None, set=[*table.arms[arm.source.arm].set, *arm.set])
        if arm.source
        else arm
        for name, arm in table.arms.items()
    }
    return replace(table, arms=arms)


def table_ids(name: str, composer: compose.Composer) -> dict[str, Ids]:
    seed = ["++seed=0"]
    plan = Planner(unchosen(open_table(name)), seed, check=False, composer=composer).plan()
    assert not plan.problems, plan.problems
    points = [point for found in plan.points.values() for point in found]
    return {point.title: ids_of(point.config) for point in points if point.config}


def tables(share: int = 1) -> list[str]:
    """Names of our tables, of which one in ``share``."""
    return table_names([folders.sweeps_dir()])[::share]


def collect(share: int = 1) -> dict[str, Mapping[str, Ids]]:
    """All identities; of ``single_runs(share)`` and ``tables(share)``."""
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        composer = compose.Composer()
        found: dict[str, Mapping[str, Ids]] = {"runs": run_ids(share, composer)}
        for name in tables(share):
            found[f"table={name}"] = table_ids(name, composer)
    return found


def recorded() -> dict[str, dict[str, Ids]]:
    known: dict[str, dict[str, Ids]] = json.loads(PATH.read_text("utf-8"))
    return known


def main() -> None:
    known = recorded() if PATH.is_file() else {}
    added = 0
    for group, entries in collect().items():
        mine = known.setdefault(group, {})
        added += len(entries.keys() - mine.keys())
        mine |= {key: ids for key, ids in entries.items() if key not in mine}
    lines = [
        f"{json.dumps(group)}: {{\n"
        + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
        + "\n}"
        for group, entries in known.items()
    ]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    sys.stdout.write(f"{added} added to {PATH.name}\n")


if __name__ == "__main__":
    main()
