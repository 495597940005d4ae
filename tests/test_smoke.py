"""Every table of ours trains, attacks and reports: a grid point per arm, at smoke scale.

By default the last arm of every eighth table; ``make test-slow`` runs them all. What all of them
compose to is in the golden ids, and what they combine in ``test_cross``.
"""

from __future__ import annotations

import json

import pytest
from hydra import initialize_config_dir

from ablation.config import folders
from ablation.errors import DONE
from ablation.jobs import train as job
from ablation.reports.table import compare_table
from ablation.reports.text_tables import terminal
from ablation.runs.columns import OF_TRAINING
from ablation.runs.directory import Run
from ablation.sweeps.planning import Planner
from ablation.sweeps.published import load_published, published_path
from ablation.sweeps.request import open_table
from ablation.sweeps.tables import table_names, table_path
from tests.support.fake_runs import fake_run

pytestmark = pytest.mark.usefixtures("composed_once")

TABLES = {name: list(open_table(name).arms) for name in table_names([folders.sweeps_dir()])}
ARMS = [
    pytest.param(
        *(name, arm),
        marks=[] if arm == arms[-1] and turn % 8 == 0 else pytest.mark.slow,
        id=f"{name}-{arm}",
    )
    for turn, (name, arms) in enumerate(TABLES.items())
    for arm in arms
]


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_an_arm_of_a_table_runs_end_to_end(name, arm, tmp_path):
    places = [f"++runs_dir={tmp_path}", "++tracking.mode=disabled"]
    cli = ["scale=smoke", "++seed=0", *places]
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        table = open_table(name)
        plan = Planner(table, cli, [arm]).plan()
        source = table.arms[arm].source
        if source is not None:  # it goes on with the best runs of another arm
            for planned in Planner(table, cli, [source.arm]).plan().jobs:
                if source.weights:
                    assert job.train(planned.config.container()) == DONE
                else:  # pretend that they are done
                    fake_run(planned.config, {"pgd20_val": 50})
            plan = Planner(table, cli, [arm]).plan()
        assert not plan.problems
        first = next(j for j in plan.jobs if any(point.arm == arm for point in j.points))
        assert job.train(first.config.container()) == DONE
        csv = published_path(table_path(name, [folders.sweeps_dir()]))
        published = load_published(csv) if csv else None
        found = compare_table(name, table, published, tmp_path, cli, [arm])
    result = json.loads(Run(first.config.run_dir, first.config.train_id).result_path.read_text())
    assert result["scale"] == "smoke"
    measured = {entry["metric"] for entry in result["entries"]} - set(OF_TRAINING)
    assert measured == set(first.config.evaluation.attacks)
    assert found.scale == "smoke"
    assert "SMOKE" in terminal(found)
