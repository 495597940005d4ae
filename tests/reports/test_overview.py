"""Every table at a glance: which runs it needs, shares and has, and what the rest would take."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import pytest
import yaml
from hydra import initialize_config_dir

from ablation.config import folders
from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.errors import InputError
from ablation.reports import overview as module
from ablation.reports.overview import Cost, Need, overview, publish_overview
from ablation.runs.launches import Launch
from ablation.sweeps.planning import Planner
from ablation.sweeps.tables import Arm, From, Select, Table
from tests.support.configs import compose_config
from tests.support.fake_runs import fake_run

SET = ["evaluation=demo", "epochs=2"]
TABLE = Table("Mine", {"a": Arm(["lr=0.1"]), "b": Arm(["lr=0.2"])}, set=SET, axes={"seed": [0, 7]})


@pytest.fixture
def composer():
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        yield Composer()


def rows(text: str) -> dict[str, list[str]]:
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 5}


def test_the_runs_of_every_seed_are_those_of_the_plan(composer, tmp_path):
    found = [need.run for need in module.needed_runs(TABLE, tmp_path, composer)]
    plan = Planner(TABLE, [f"++runs_dir={tmp_path}"], check=False, composer=composer).plan()
    assert sorted(found) == sorted(job.config.run_name for job in plan.jobs)
    assert len(found) == 4


def test_what_is_done_and_what_failed_is_read_from_the_runs(composer, tmp_path):
    needs = list(module.needed_runs(TABLE, tmp_path, composer))
    fake_run(needs[0].config, {})
    fake_run(needs[3].config, {}, state="failed")
    again = {n.run: n.state for n in module.needed_runs(TABLE, tmp_path, composer)}
    assert [again[need.run] for need in needs] == ["done", "new", "new", "failed"]


def test_of_an_arm_that_waits_all_candidates_count_in_part(composer, tmp_path):
    last = Arm(["epochs=9"], source=From("a", 1, Select("pgd20")))
    arms = {"a": Arm(["lr=0.1,0.2,0.3"]), "last": last}
    table = replace(TABLE, arms=arms, set=[*SET, "evaluation.val=[pgd20]"])
    needs = list(module.needed_runs(table, tmp_path, composer))
    waiting = [need for need in needs if need.state == "pending"]
    assert len(needs) == 12
    assert {need.config.epochs for need in waiting} == {9}
    assert sum(need.share for need in waiting) == pytest.approx(2)


@functools.cache
def config() -> Config:
    return compose_config("evaluation=demo")


def need(seed=0, state="new", share=1.0, **changes) -> Need:
    return Need(replace(config(), seed=seed, **changes), state, share)


def test_a_shared_run_counts_once_in_the_total():
    here = [need(0, "done"), need(1), need(2, "failed")]
    there = [need(1), need(3), need(0, share=0.5, epochs=77, state="pending")]
    costs = {need().cost: Cost(7200, 3600, 3e6), there[2].cost: Cost(72_000, 36_000, 4e6)}
    launched = {"here": {need(1).run, "elsewhere"}, "there": {"elsewhere"}}
    titles = {"here": "Here", "there": "There"}
    text = overview({"here": here, "there": there}, titles, launched, costs, ["cpu"])
    found = rows(text)
    assert found["here"] == ["3", "1", "1", "1", "1", "4 h", "2 h", "6.0 MB", "Here"]
    assert found["there"] == ["2", "1", "0", "0", "1", "14 h", "7 h", "8.0 MB", "There"]
    assert found["total"] == ["4", "1", "1", "1", "1", "16 h", "8 h", "11 MB"]
    assert "estimates" in text
    assert "on this machine (cpu)" in text
    assert "assumed, not measured" in text


def test_seeds_cost_the_same_and_other_settings_do_not():
    assert need(1).cost == need(0).cost
    assert need(epochs=77).cost != need().cost


def test_a_table_that_is_all_done_takes_nothing():
    text = overview({"here": [need(0, "done")]}, {"here": "Here"}, {}, {}, [])
    assert rows(text)["here"] == ["1", "0", "1", "0", "0", "0 h", "0 h", "-", "Here"]


@pytest.mark.parametrize(
    ("hours", "told"),
    [(0.0321, "0.032 h"), (47.4, "47 h"), (48, "2 days"), (290, "12 days"), (17_532, "2 years"),
     (920_000, "100 years")],
)  # fmt: skip
def test_times_have_a_unit_that_can_be_pictured(hours, told):
    costs = {need().cost: Cost(3600 * hours, 0, 0)}
    text = overview({"here": [need()]}, {"here": "Here"}, {}, costs, ["cpu"])
    assert rows(text)["here"][5] == told


def test_the_users_own_tables_are_listed_and_a_broken_one_is_named(
    composer, tmp_path, monkeypatch, capsys
):
    tables, runs = tmp_path / "tables", tmp_path / "runs"
    tables.mkdir()
    content = {"title": "My own", "arms": {"a": {"set": ["lr=0.1"]}}, "axes": {"seed": [0, 1]}}
    (tables / "mine.yaml").write_text(yaml.safe_dump({**content, "set": SET}))
    (tables / "broken.yaml").write_text("title: Broken\narms: {}\n")
    monkeypatch.setattr(module, "table_names", lambda _: ["broken", "mine"])
    (first, *_) = module.needed_runs(TABLE, runs, composer)
    other = replace(first.config, epochs=77)
    fake_run(other, {}, launch=Launch(other.train_id, "mine", ["a"], ["epochs=77"]))
    publish_overview(runs, str(tables))
    out = capsys.readouterr().out
    line = rows(out)["mine"]
    assert (line[:5], line[-1]) == (["2", "0", "0", "0", "1"], "My own")
    assert float(line[5].removesuffix(" h")) > 0
    assert "left out: broken: broken.yaml: arms: a table needs at least one" in out


def test_a_folder_of_runs_that_is_a_file_is_refused(composer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "table_names", lambda _: [])
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="cannot be listed"):
        publish_overview(tmp_path / "runs")
