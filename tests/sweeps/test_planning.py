"""From a table and a command line to jobs."""

from __future__ import annotations

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from ablation.config import compose, folders
from ablation.config.overrides import layered, letting_in, variant
from ablation.errors import ConfigError
from ablation.sweeps.planning import Planner, choose_rows, ranking
from ablation.sweeps.tables import Arm, From, RowSpec, Select, Table
from hydra_plugins.ablation_plugins.sweeper import POOL, SLURM, ArmsSweeper
from tests.support.fake_runs import fake_run

pytestmark = pytest.mark.usefixtures("composed_once")

PGD = Select("pgd20")
SET = ["epochs=3", "evaluation=demo", "evaluation.val=[pgd20]"]


@pytest.fixture(autouse=True)
def hydra():
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        yield


def table(**arms: Arm) -> Table:
    return Table("Test", arms, set=SET, axes={"seed": [0, 1]})


def planned(which: Table, *cli: str, rows=None):
    return Planner(which, list(cli), rows).plan()


def titles(plan):
    return [job.title for job in plan.jobs]


TWO = {
    "at": Arm(["method=at", "lr=0.1,0.01"]),
    "awp": Arm(["method=at", "component/awp=enabled", "component.awp.gamma=0.005"]),
}


def test_an_arms_grid_and_the_axes_are_crossed():
    plan = planned(table(**TWO))
    assert not plan.problems
    assert titles(plan) == [
        *("at lr=0.1 seed=0", "at lr=0.1 seed=1", "at lr=0.01 seed=0", "at lr=0.01 seed=1"),
        *("awp seed=0", "awp seed=1"),
    ]
    assert [job.config.seed for job in plan.jobs] == [0, 1, 0, 1, 0, 1]
    assert {job.config.epochs for job in plan.jobs} == {3}


def test_a_planned_job_is_what_hydra_composes_from_its_overrides():
    for job in planned(table(**TWO), "eps=8/255", "method.terms.ce.coef=0.5").jobs:
        again = compose_config_of(job.points[0].overrides)
        assert again.train_id == job.config.train_id


def compose_config_of(overrides):
    from hydra import compose as hydra_compose

    from ablation.config.validation import load

    texts = [letting_in(text) for text in overrides]
    return load(compose.to_plain(hydra_compose("config", texts)))


def test_the_command_line_wins_over_the_arm_and_the_table():
    plan = planned(table(**TWO), "lr=0.5", "epochs=7", "seed=4")
    assert titles(plan) == ["at seed=4", "awp seed=4"]
    assert {(job.config.lr, job.config.epochs) for job in plan.jobs} == {(0.5, 7)}


def test_ranges_and_choices_are_grids_too():
    plan = planned(table(a=Arm(["batch_size=range(32,65,32)", "lr=choice(0.1,0.2)"])), "seed=0")
    assert titles(plan) == [
        *("a batch_size=32 lr=0.1 seed=0", "a batch_size=32 lr=0.2 seed=0"),
        *("a batch_size=64 lr=0.1 seed=0", "a batch_size=64 lr=0.2 seed=0"),
    ]


def test_disabling_a_component_drops_the_arms_keys_of_it_and_equal_arms_run_once():
    plan = planned(table(at=Arm(["method=at"]), awp=TWO["awp"]), "component/awp=disabled", "seed=0")
    assert not plan.problems
    assert plan.notices == [
        "awp: component.awp.gamma=0.005 is dropped, component/awp=disabled wins"
    ]
    assert titles(plan) == ["at seed=0 (also awp)"]


def test_all_problems_are_found_before_anything_starts_grouped_by_row():
    arms = {
        "good": Arm(["method=at"]),
        "typo": Arm(["method=at", "epoch=3"]),
        "off": Arm(["method=at", "component.awp.gamma=0.1", "lr=0.1,-1"]),
        "empty": Arm(["lr=choice()"]),
        "between": Arm(["lr=interval(0,1)"]),
    }
    plan = planned(table(**arms))
    text = "\n".join(plan.problems)
    assert "epoch=3: unknown key; did you mean epochs? (in row typo)" in text
    assert "component.awp.gamma=0.1: no effect, component.awp is disabled" in text
    assert "(in row off)" in text
    assert "lr=-1: must be positive" in text
    assert "off (job lr=-1 seed=0 and 1 more)" in text
    assert "empty: " in text
    assert "between: lr=interval(0,1): list the values" in text
    assert not plan.jobs


def test_an_empty_range_is_an_empty_grid():
    plan = planned(table(a=Arm(["batch_size=range(5,5)"])))
    assert plan.problems == ["a: batch_size=range(5,5): an empty grid"]


def test_a_problem_of_every_row_is_said_once_without_their_names():
    assert planned(table(**TWO), "lr=-1").problems == ["lr=-1: must be positive"]


def test_a_problem_of_some_jobs_of_a_plain_sweep_names_them():
    sweep = Table("sweep", {"": Arm()}, axes={"seed": [0, 1], "batch_size": [64, 9999]})
    assert [problem.rpartition(" (")[2] for problem in planned(sweep).problems] == [
        "in job seed=0 batch_size=9999 and 1 more)"
    ]


def test_rows_choose_arms_by_name_or_by_printed_row():
    which = Table("T", TWO, rows=[RowSpec("at", csv="at__best", select=PGD), RowSpec("awp")])
    assert choose_rows(which, ["awp", "at__best"]) == ["awp", "at"]
    with pytest.raises(ConfigError, match="row=nope: choose from at, awp"):
        choose_rows(which, ["nope"])
    assert titles(planned(which, "seed=0", rows=["awp"])) == ["awp"]


def test_later_layers_win_key_by_key():
    assert layered(["lr=1", "method=at"], ["++lr=2"], ["component/awp=enabled"]) == [
        *("method=at", "++lr=2", "component/awp=enabled"),
    ]


def test_a_variant_is_what_changes_numbers():
    cli = ["++seed=0,1", "++runs_dir=x", "++epochs=5", "hydra/launcher=pool", "scale=smoke",
           "++tracking.mode=disabled", "++runtime.device=cpu"]  # fmt: skip
    assert variant(cli, ["seed"]) == ["epochs=5", "scale=smoke"]
    assert variant(["runtime.devices=4", "lr=1"], []) == ["lr=1"]
    replicas = ["runtime.batch_norm=replica", "runtime.devices=4"]
    assert variant(replicas, []) == replicas


# What the run directories say


def test_states_come_from_the_run_directories(tmp_path):
    cli = ("seed=0", f"runs_dir={tmp_path}")
    arms = {f"a{lr}": Arm([f"lr=0.{lr}"]) for lr in range(1, 6)}
    first = planned(table(**arms), *cli)
    assert {job.state for job in first.jobs} == {"new"}
    configs = [job.config for job in first.jobs]
    fake_run(configs[0], {})
    fake_run(configs[1], {}, state="failed")
    fake_run(configs[2], {}, state="interrupted")
    (tmp_path / configs[3].run_name).mkdir()  # a refused job leaves no more than a folder
    states = [job.state for job in planned(table(**arms), *cli).jobs]
    assert states == ["done", "failed", "partial", "new", "new"]


def test_a_new_evaluation_makes_a_finished_run_partial(tmp_path):
    cli = ("seed=0", f"runs_dir={tmp_path}")
    fake_run(planned(table(at=TWO["awp"]), *cli).jobs[0].config, {})
    (job,) = planned(table(at=TWO["awp"]), *cli, "evaluation.n=7").jobs
    assert job.state == "partial"


def continued(weights: bool = False) -> Table:
    arms = {
        "search": Arm(["method=at", "lr=0.1,0.2,0.3", "batch_size=64"]),
        "long": Arm(["epochs=9"], source=From("search", 2, PGD, weights)),
    }
    return table(**arms)


def test_an_arm_that_continues_another_waits_with_all_its_candidates_checked(tmp_path):
    cli = ("seed=0", f"runs_dir={tmp_path}")
    plan = planned(continued(), *cli)
    assert [(w.arm, w.top, w.candidates, w.source) for w in plan.pending] == [
        ("long", 2, 3, "search")
    ]
    assert len(plan.jobs) == 3
    wrong = continued()
    assert wrong.arms["long"].set is not None
    arms = {**wrong.arms, "long": Arm(["lr=-1"], source=wrong.arms["long"].source)}
    assert planned(table(**arms), *cli).problems == ["lr=-1: must be positive (in row long)"]


def test_it_takes_the_best_on_validation_once_all_are_done(tmp_path):
    cli = ("seed=0,1", f"runs_dir={tmp_path}")
    planner = Planner(continued(), list(cli))
    scores = {"0.1": (30, 40), "0.2": (70, 20), "0.3": (10, 20)}  # by seed; 0.2 is best on test
    for job in planner.plan().jobs:
        value = scores[f"{job.config.lr:g}"][job.config.seed]
        fake_run(job.config, {"pgd20_val": value, "pgd20": 50 if job.config.lr != 0.2 else 99})
    plan = planner.plan()
    assert not plan.pending
    chosen = [point.title for point in plan.points["long"]]
    assert chosen == [
        *("long lr=0.2 seed=0", "long lr=0.2 seed=1", "long lr=0.1 seed=0", "long lr=0.1 seed=1"),
    ]
    assert {job.config.epochs for job in plan.jobs[6:]} == {9}
    assert {job.config.batch_size for job in plan.jobs[6:]} == {64}


def test_it_may_start_from_their_weights(tmp_path):
    planner = Planner(continued(weights=True), ["seed=0", f"runs_dir={tmp_path}"])
    for job in planner.plan().jobs:
        run = fake_run(job.config, {"pgd20_val": 100 * job.config.lr})
        (run.path / "checkpoints" / "last.safetensors").touch()
    plan = planner.plan()
    assert not plan.problems
    first = plan.jobs[3].config
    assert first.init_from is not None
    assert first.init_from == str(plan.jobs[2].config.run_dir)  # lr=0.3


def test_ranking_ignores_failed_grid_points_and_waits_for_the_rest(tmp_path):
    planner = Planner(continued(), ["seed=0", f"runs_dir={tmp_path}"])
    points = planner.plan().points["search"]
    configs = [point.config for point in points if point.config is not None]
    fake_run(configs[0], {}, state="failed")
    fake_run(configs[1], {"pgd20_val": 10})
    assert ranking(points, PGD) is None
    fake_run(configs[2], {"pgd20_val": 20})
    assert ranking(points, PGD) == [("lr=0.3",), ("lr=0.2",)]


def test_choosing_a_row_runs_the_arm_it_continues():
    plan = planned(continued(), "seed=0", rows=["long"])
    assert plan.notices == ["long continues search: it runs too"]
    assert len(plan.jobs) == 3


def test_helpers_agree_with_the_command_line():
    plain = compose.Composer().plain(["method=trades", "method.terms.kl.coef=3", "~component.awp"])
    assert plain["method"]["terms"]["kl"]["coef"] == 3
    assert "awp" not in plain["component"]


def test_a_recipe_lies_below_what_tables_arms_and_the_command_line_set():
    arms = {
        "mine": Arm(["method=at"]),
        "other": Arm(["method=at", "recipe=mwpb", "schedule=cosine"]),
    }
    recipes = Table("Test", arms, set=["recipe=lma", "epochs=3", "schedule=constant"])
    plan = planned(recipes, "lr=0.5", "data=digits")
    mine, other = (plan.points[name][0].config for name in arms)
    assert mine is not None
    assert other is not None
    assert (mine.recipe, other.recipe) == ("lma", "mwpb")
    assert (mine.epochs, mine.lr, mine.batch_size) == (3, 0.5, 100)
    assert (other.epochs, other.lr, other.batch_size) == (3, 0.5, 128)
    assert [type(each.schedule).__name__ for each in (mine, other)] == ["Constant", "Cosine"]
    assert plan.notices == []


def test_a_recipe_on_the_command_line_fills_in_and_says_so():
    plan = planned(table(**TWO), "recipe=lma", "data=digits", "schedule=cosine", "seed=0")
    assert not plan.problems
    assert plan.notices == [
        "recipe=lma: fills in only what the table and its rows do not set themselves"
    ]
    assert {(job.config.epochs, job.config.batch_size) for job in plan.jobs} == {(3, 100)}
    assert planned(Table("sweep", {"": Arm()}), "recipe=lma", "data=digits").notices == []


@pytest.mark.parametrize(
    ("device", "place", "problem"),
    [
        ("cuda", "here", "0 CUDA devices are visible"),
        ("cuda", "pool", "0 CUDA devices are visible"),
        ("cuda:1", "pool", "choose with hydra.launcher.gpus=[1]"),
        ("cuda", "elsewhere", None),
        ("cuda:1", "elsewhere", None),
        ("tpu", "elsewhere", "choose auto, cpu, cuda"),
    ],
)
def test_a_device_is_checked_where_the_jobs_run(device, place, problem, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arms = {"at": Arm(["method=at", f"runtime.device={device}"])}
    problems = Planner(table(**arms), place=place).plan().problems
    assert (problem is None) == (not problems)
    assert problem is None or problem in problems[0]


@pytest.mark.parametrize(
    ("launcher", "place"),
    [
        ({"_target_": SLURM}, "elsewhere"),
        ({"_target_": POOL, "gpus": "auto"}, "pool"),
        ({"_target_": POOL, "gpus": None}, "here"),
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, "here"),
    ],
)
def test_launchers_say_where_jobs_run(launcher, place):
    sweeper = ArmsSweeper(plan=False, max_batch_size=None)
    sweeper.config = OmegaConf.create({"hydra": {"launcher": launcher}})
    assert sweeper.place == place
