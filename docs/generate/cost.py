"""What each table would take on an H100, kept in ``cost.json``: planning every table takes minutes.

``python -m docs.generate.cost`` writes the file anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from ablation.commands.cli import searching
from ablation.config.compose import Composer
from ablation.config.folders import sweeps_dir
from ablation.reports.overview import Need, needed_runs
from ablation.sweeps.h100 import estimate_on_h100
from ablation.sweeps.request import open_table
from ablation.sweeps.tables import table_names

FILE = Path(__file__).with_name("cost.json")
"""The estimates by name of the table."""


@dataclass(frozen=True)
class Cost:
    """A table from scratch.

    Attributes:
        runs: trainings; of candidates among which some are chosen, only those.
        hours: on one H100, to two digits: right to about a factor of three.
    """

    runs: int
    hours: float


def costs(names: Sequence[str]) -> dict[str, Cost]:
    """Estimate tables of ours, as ``ablation-report`` does."""
    with searching(None):
        composer, nowhere = Composer(), Path("no runs")
        needs = {
            name: list(needed_runs(open_table(name), nowhere, composer))
            for name in tqdm(names, desc="planning tables", disable=None)
        }
        return _estimated(needs)


def _estimated(needs: Mapping[str, Sequence[Need]]) -> dict[str, Cost]:
    once = {need.cost: need.config for table in needs.values() for need in table}
    estimates = zip(once, estimate_on_h100(list(once.values())), strict=True)
    seconds = {key: each.train_seconds + each.evaluation_seconds for key, each in estimates}
    return {
        name: Cost(
            round(sum(need.share for need in table)),
            float(f"{sum(need.share * seconds[need.cost] for need in table) / 3600:.2g}"),
        )
        for name, table in needs.items()
    }


def recorded() -> dict[str, Cost]:
    """The estimates of the file."""
    return {name: Cost(**values) for name, values in json.loads(FILE.read_text("utf-8")).items()}


def main() -> None:
    """Write the file anew."""
    found = {name: asdict(cost) for name, cost in costs(table_names([sweeps_dir()])).items()}
    FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
