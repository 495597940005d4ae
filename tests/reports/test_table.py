"""From run directories to the cells of a table: what is shown, and why the rest is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from hydra import initialize_config_dir

from ablation.config import evaluations, folders
from ablation.config.overrides import variant
from ablation.errors import InputError
from ablation.reports.comparison import Interval
from ablation.reports.groups import compare_runs
from ablation.reports.statistics import cell_interval, contrasts, difference, interval
from ablation.reports.table import compare_table
from ablation.reports.transfer import matrices
from ablation.runs.launches import Launch
from ablation.sweeps.planning import Planner
from ablation.sweeps.published import Published, PublishedTable
from ablation.sweeps.tables import Arm, RowSpec, Select, Table
from tests.support.data_files import image_folder
from tests.support.fake_runs import fake_evaluation, fake_run

pytestmark = pytest.mark.usefixtures("composed_once")

COLUMNS = ("pgd20", "clean_val", "clean")
SET = ["evaluation=demo", "evaluation.val=[clean,pgd20]", "epochs=5", "lr=0.1"]


@pytest.fixture(autouse=True)
def hydra():
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        yield


def simple(**arms) -> Table:
    arms = arms or {"at": Arm(["method=at"]), "trades": Arm(["method=trades"], label="TRADES")}
    return Table("Mine", arms, set=SET, axes={"seed": [0, 1]})


def published(*keys, value=60.0, dataset="digits", model="tiny_cnn") -> PublishedTable:
    number = Published(value, f"{value}")
    return PublishedTable(
        COLUMNS,
        dict.fromkeys(COLUMNS, "percent"),
        {key: dict.fromkeys(COLUMNS, number) for key in keys},
        dict.fromkeys(keys, dataset),
        dict.fromkeys(keys, model),
    )


@pytest.fixture
def world(tmp_path):
    """Trains (in pretence) and reports in one folder."""

    class World:
        path = tmp_path

        def jobs(self, table, *cli):
            return Planner(table, [*cli, f"++runs_dir={tmp_path}"], check=False).plan().jobs

        def train(self, table, *cli, name="mine", values=None, **kwargs):
            for planned in self.jobs(table, *cli):
                point = planned.points[0]
                given = values(point) if values else {"pgd20": 40, "clean": 90, "clean_val": 88}
                changed = variant(cli, ("seed",))
                launch = Launch(planned.config.train_id, name, [point.arm], changed)
                fake_run(planned.config, given, launch=launch, **kwargs)

        def report(self, table, *cli, rows=None, numbers=None):
            return compare_table("mine", table, numbers, tmp_path, cli, rows)

    return World()


def cell(comparison, key, column):
    (row,) = [row for row in comparison.rows if row.key == key]
    return row.cells[column]


def test_seeds_become_a_mean_with_its_interval_beside_the_published_number(world):
    table = simple()
    world.train(table, values=lambda p: {"pgd20": 40 + 2 * int(p.axis[0][-1]), "clean": 90})
    found = world.report(table, numbers=published("at", "trades", value=43.0))
    pgd = cell(found, "at", "pgd20")
    interval = cell_interval(pgd)
    assert interval is not None
    assert (interval.mean, interval.n) == (41.0, 2)
    assert interval.half == pytest.approx(12.706, abs=1e-3)  # t(0.975, 1) * 1
    assert difference(pgd) == pytest.approx(-2.0)
    assert (pgd.tags, pgd.mismatch, pgd.absent) == ((), (), {})
    assert [row.label for row in found.rows] == ["at", "TRADES"]


def test_a_tables_extra_columns_come_last(world):
    table = replace(simple(), differences={"gap": ["clean", "pgd20"]}, extra=["seconds_per_step"])
    world.train(table)
    found = world.report(table)
    assert found.columns[-2:] == ("gap", "seconds_per_step")
    assert cell(found, "at", "seconds_per_step").absent == {"missing": 2}


def test_what_is_not_there_is_said_not_shown(world):
    arms = {f"a{i}": Arm([f"lr=0.{i}"]) for i in range(1, 7)}
    table = simple(**arms)
    configs = {p.points[0].arm: p.config for p in world.jobs(table, "seed=0")}
    fake_run(configs["a1"], {}, state="failed")
    fake_run(configs["a2"], {}, state="interrupted")
    fake_run(configs["a3"], {"clean": 90}, skip=("pgd20",))
    fake_run(configs["a4"], {"clean": 10, "pgd20": 10})
    fake_run(configs["a6"], {"clean": 10}, skip=("pgd20",))
    found = world.report(table, "seed=0", numbers=published(*arms))
    reasons = {row.key: dict(row.cells["pgd20"].absent) for row in found.rows}
    assert reasons == {
        "a1": {"failed": 1},
        "a2": {"interrupted": 1},
        "a3": {"not evaluated": 1},
        "a4": {"collapsed": 1},
        "a5": {"missing": 1},
        "a6": {"collapsed": 1},
    }
    assert not any(row.cells["pgd20"].samples for row in found.rows)
    assert len(cell(found, "a3", "clean").samples) == 1


def grid() -> Table:
    pick = [
        RowSpec("at", csv="at__clean", select=Select("clean")),
        RowSpec("at", csv="at__pgd", select=Select("pgd20")),
    ]
    return replace(simple(at=Arm(["method=at", "lr=0.1,0.2,0.3"])), rows=pick)


def test_a_row_is_selected_on_validation_never_on_test(world):
    scores = {  # validation clean, validation pgd20, test pgd20
        "lr=0.1": (95, 10, 30),
        "lr=0.2": (60, 50, 35),
        "lr=0.3": (50, 20, 99),
    }

    def values(point):
        clean, pgd, test = scores[point.grid[0]]
        return {"clean_val": clean, "pgd20_val": pgd, "pgd20": test, "clean": 90}

    world.train(grid(), values=values)
    found = world.report(grid(), numbers=published("at__clean", "at__pgd"))
    assert [s.value for s in cell(found, "at__clean", "pgd20").samples] == [30, 30]
    assert [s.value for s in cell(found, "at__pgd", "pgd20").samples] == [35, 35]
    assert cell(found, "at__clean", "clean_val").samples[0].value == 95
    assert found.rows[1].chosen == "lr=0.2 (best val pgd20 of 3)"


def test_a_selection_waits_for_every_candidate(world):
    for planned in world.jobs(grid())[:5]:
        fake_run(planned.config, {"clean": 90})
    found = world.report(grid(), numbers=published("at__clean", "at__pgd"))
    assert dict(cell(found, "at__pgd", "pgd20").absent) == {"pending": 5, "missing": 1}
    assert "5 of 6 runs done" in found.rows[0].chosen


def test_a_grid_without_selection_is_a_row_per_point(world):
    table = simple(at=Arm(["method=at", "lr=0.1,0.2"]))
    world.train(table)
    found = world.report(table)
    assert [row.key for row in found.rows] == ["at lr=0.1", "at lr=0.2"]


def test_runs_with_other_settings_are_tagged_and_never_averaged_with_the_recipe(world):
    table = simple()
    world.train(table, "epochs=2", "seed=0", values=lambda p: {"pgd20": 20, "clean": 90})
    found = world.report(table)
    pgd = cell(found, "at", "pgd20")
    assert [s.value for s in pgd.samples] == [20]
    assert pgd.tags == ("2 of 5 epochs",)
    assert "runs launched with: epochs=2 (most runs of this table)" in found.notes
    world.train(table, "seed=1")
    found = world.report(table)
    pgd = cell(found, "at", "pgd20")
    assert [s.value for s in pgd.samples] == [40]
    assert pgd.tags == ()
    assert any("epochs=2" in note for note in found.notes)
    again = world.report(table, "epochs=2")
    assert [s.value for s in cell(again, "at", "pgd20").samples] == [20]


def test_every_departure_has_its_words(world):
    table = simple(at=Arm(["method=at"]))
    cli = ("data.train_size=99", "evaluation.n=20", "method.terms.ce.coef=2", "model=mlp")
    world.train(table, *cli)
    tags = cell(world.report(table, *cli), "at", "pgd20").tags
    assert set(tags) == {
        *("data.train_size=99", "n=20", "method.terms.ce.coef=2", "model mlp"),
    }


def test_stand_in_data_and_models_are_tagged_against_what_was_published(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    numbers = published("at", dataset="cifar10", model="vgg16_bn")
    assert cell(world.report(table, numbers=numbers), "at", "pgd20").tags == (
        "data digits",
        "model tiny_cnn",
    )


def test_another_attack_is_not_compared(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table, "evaluation.attacks.pgd20.steps=5")
    found = world.report(table, "evaluation.attacks.pgd20.steps=5", numbers=published("at"))
    pgd = cell(found, "at", "pgd20")
    assert pgd.mismatch == ("steps 5, not 20",)
    assert difference(pgd) is None
    assert cell(found, "at", "clean").mismatch == ()


def test_an_evaluation_of_training_images_has_train_columns(world):
    arms = {"at": Arm(["method=at"]), "trades": Arm(["method=trades"])}
    table = replace(simple(**arms), set=[*SET, "evaluation.split=train", "evaluation.val=[]"])
    values = {"at": 60, "trades": 70}
    world.train(table, values=lambda p: {"pgd20_train": values[p.arm], "clean_train": 95})
    found = world.report(table)
    assert {"clean_train", "pgd20_train"} <= set(found.columns)
    assert all(column.endswith("_train") for column in found.columns)
    pgd = cell(found, "at", "pgd20_train")
    assert ([s.value for s in pgd.samples], pgd.mismatch, pgd.tags) == ([60, 60], (), ())
    assert pgd.params["split"] == "train"
    (paired,) = [each for each in contrasts(found, "at") if each.column == "pgd20_train"]
    assert paired.by_seed == Interval(10.0, 0.0, 2)
    assert paired.by_example == interval([0.0] * 120 + [100.0] * 20 + [0.0] * 60)
    other = compare_runs(sorted(world.path.glob("digits-*")), ["method"])
    assert set(other.columns) == set(found.columns)
    assert [s.value for s in cell(other, "trades", "pgd20_train").samples] == [70, 70]


@pytest.mark.parametrize("repeated", [False, True])
def test_own_images_are_found_where_the_runs_found_them(world, repeated):
    """Their mean comes from the images: the report plans the runs with the same ``data_dir``."""
    place = f"data_dir={image_folder(world.path / 'pets')}"
    table = simple()
    world.train(table, "data=image_folder", place)
    found = world.report(table, "data=image_folder", *([place] if repeated else []))
    measured = cell_interval(cell(found, "at", "pgd20"))
    assert measured is not None
    assert (measured.mean, measured.n) == (40, 2)
    moved = f"data_dir={world.path / 'nowhere'}"
    with pytest.raises(InputError, match="nowhere/train is missing"):
        world.report(table, "data=image_folder", moved)


def test_of_two_evaluations_the_tables_own_is_used(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table, "seed=0")
    (planned,) = world.jobs(table, "seed=0")
    attacks = {"pgd20": replace(planned.config.evaluation.attacks["pgd20"], steps=7)}
    other = replace(planned.config.evaluation, attacks=attacks, val=[])
    fake_evaluation(replace(planned.config, evaluation=other), {"pgd20": 77})
    found = world.report(table, "seed=0", numbers=published("at"))
    assert [s.value for s in cell(found, "at", "pgd20").samples] == [40]


def test_seeds_beyond_the_tables_are_counted_in(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table, "seed=0")
    world.train(table, "seed=7")
    pgd = cell(world.report(table), "at", "pgd20")
    assert [s.axis for s in pgd.samples] == ["seed=0", "seed=7"]
    assert dict(pgd.absent) == {"missing": 1}  # seed=1


@pytest.mark.parametrize(("cli", "seeds", "plans"), [((), [0, 7], 1), (("epochs=2",), [0], 2)])
def test_a_table_is_planned_once_and_once_more_for_what_was_changed(
    world, monkeypatch, cli, seeds, plans
):
    table = simple(at=Arm(["method=at"]))
    for seed in seeds:
        world.train(table, f"seed={seed}", *cli)
    planned = []
    plan = Planner.plan

    def counted(planner):
        planned.append(planner)
        return plan(planner)

    monkeypatch.setattr(Planner, "plan", counted)
    found = world.report(table)
    assert [s.axis for s in cell(found, "at", "pgd20").samples] == [f"seed={s}" for s in seeds]
    assert len(planned) == plans


def test_seeds_written_as_text_are_the_tables_own(world):
    table = replace(simple(at=Arm(["method=at"])), axes={"seed": ["0", "1"]})
    world.train(table)
    pgd = cell(world.report(table), "at", "pgd20")
    assert [s.axis for s in pgd.samples] == ["seed=0", "seed=1"]


def test_smoke_runs_never_enter_a_real_report(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table, "scale=smoke")
    real = world.report(table)
    assert real.scale == "full"
    assert dict(cell(real, "at", "pgd20").absent) == {"smoke": 2}
    smoke = world.report(table, "scale=smoke")
    assert (smoke.scale, smoke.name) == ("smoke", "mine-smoke")
    assert len(cell(smoke, "at", "pgd20").samples) == 2
    assert cell(smoke, "at", "pgd20").tags == ()


def test_rows_follow_the_csv_and_unavailable_ones_keep_their_published_number(world):
    table = replace(simple(), unavailable={"ghost": "not built"})
    world.train(table)
    found = world.report(table, numbers=published("trades", "ghost", "at"))
    assert [row.key for row in found.rows] == ["trades", "ghost", "at"]
    assert cell(found, "ghost", "pgd20").samples == ()
    assert cell(found, "ghost", "pgd20").published is not None
    assert "not available: not built (ghost)" in found.notes


def test_warnings_reach_the_row(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table, flags=("fgsm is below pgd20",))
    assert world.report(table).rows[0].flags == ("fgsm is below pgd20",)


def test_a_damaged_evaluation_is_named(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    file = next(world.path.glob("*/evaluations/*.json"))
    file.write_text("{")
    notes = world.report(table).notes
    assert f"left out: {file}: damaged; move it away and evaluate again" in notes


def test_any_runs_are_grouped_by_keys(world):
    table = simple(at=Arm(["method=at"]), awp=Arm(["method=at", "component/awp=enabled"]))
    world.train(table, values=lambda p: {"pgd20": 30 if p.arm == "at" else 50, "clean": 90})
    (world.path / "somebody-else").mkdir()
    paths = sorted(world.path.glob("digits-*"))
    found = compare_runs(paths, ["method", "component.awp"])
    values = {row.key: row.cells["pgd20"].samples[0].value for row in found.rows}
    assert values == {"at": 30, "at awp": 50}
    alone = compare_runs(paths, ["component.awp", "component.awp.gamma"])
    assert {row.key for row in alone.rows} == {"without awp, awp.gamma", "awp gamma=0.01"}
    mixed = compare_runs(paths, ["method"])
    assert {row.key for row in mixed.rows} == {"at without awp", "at awp"}
    assert [len(row.cells["pgd20"].samples) for row in mixed.rows] == [2, 2]
    assert mixed.notes == (
        "at: runs that differ in component.awp are rows of their own, each over its seeds",
    )


def test_only_seeds_are_averaged_whatever_else_differs(world):
    table = simple(at=Arm(["method=at"]))
    for cli in ((), ("epochs=3",), ("model=mlp",), ("data=mnist", "data.val_size=100")):
        world.train(table, *cli)
    world.train(table, "init_from=runs/digits-tiny_cnn-at-s0-0123456789", "seed=0")
    world.train(table, "init_from=runs/digits-tiny_cnn-at-s1-9876543210", "seed=1")
    found = compare_runs(sorted(world.path.glob("*-s?-*")), ["method"])
    assert {row.key: len(row.cells["pgd20"].samples) for row in found.rows} == {
        "at digits tiny_cnn epochs=5 eps=0.1 init_from=none": 2,
        "at digits tiny_cnn epochs=3 eps=0.1 init_from=none": 2,
        "at digits mlp epochs=5 eps=0.1 init_from=none": 2,
        "at mnist tiny_cnn epochs=5 eps=0.3 init_from=none": 2,
        "at digits tiny_cnn epochs=5 eps=0.1 init_from=digits-tiny_cnn-at": 2,
    }
    base = found.rows[0]
    for contrast in contrasts(found, base.key):
        (row,) = [row for row in found.rows if row.key == contrast.key]
        assert (contrast.by_seed is None) == (row.data != base.data)


def test_rows_of_several_data_sets_name_theirs(world):
    table = simple(at=Arm(["method=at"]), mart=Arm(["method=mart"]))
    world.train(table)
    found = compare_runs(sorted(world.path.glob("*-s?-*")), ["method"])
    assert {row.label for row in found.rows} == {"at", "mart"}
    world.train(simple(at=Arm(["method=at"])), "data=mnist", "data.val_size=100")
    found = compare_runs(sorted(world.path.glob("*-s?-*")), ["method"])
    assert {row.label for row in found.rows} == {
        "at digits eps=0.1",
        "at mnist eps=0.3",
        "mart digits",
    }
    assert {row.key for row in found.rows} >= {"mart"}


def test_a_training_counts_once_however_often_it_was_copied(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    first = min(world.path.glob("digits-*"))
    copy = world.path / "a-copy"
    shutil.copytree(first, copy)
    found = compare_runs([*sorted(world.path.glob("digits-*")), copy], ["method"])
    assert len(found.rows[0].cells["pgd20"].samples) == 2
    (note,) = found.notes
    assert note == f"counted once: {copy} is the same training as {first}"


@pytest.mark.parametrize("damage", ["gone", "cut", "short", "empty", "list", "bytes"])
def test_a_run_without_a_usable_config_is_named_and_left_out(world, damage):
    world.train(simple(at=Arm(["method=at"])))
    paths = sorted(world.path.glob("digits-*"))
    config = paths[0] / "config.yaml"
    whole = config.read_text()
    text = {"cut": whole + "{", "empty": "", "list": "[1, 2]", "bytes": "\xff"}
    text["short"] = whole.partition("\n")[0]
    config.unlink()
    if damage != "gone":
        config.write_bytes(text[damage].encode("latin-1"))
    found = compare_runs(paths, ["method"])
    assert len(found.rows[0].cells["pgd20"].samples) == 1
    (note,) = found.notes
    assert note.startswith("left out: ")
    assert str(config) in note
    # A table finds its runs by name, so that their numbers are still there.
    again = world.report(simple(at=Arm(["method=at"])))
    assert len(cell(again, "at", "pgd20").samples) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": 99.5}, "pgd20 is 99.5 of 200 there, and 40 of 200 by"),
        ({"value": -5}, "pgd20 is -5, which is no percent"),
        ({"value": 1e9}, "which is no percent"),
        ({"value": True}, "pgd20 is True, which is no percent"),
        ({"value": float("nan")}, "pgd20 is nan, which is no percent"),
        ({"value": "40"}, "pgd20 is '40', which is no percent"),
        ({"n": 100}, "pgd20 is 40 of 100 there, and 40 of 200 by"),
        ({"params": 3}, "damaged; move it away"),
    ],
)
def test_edited_numbers_are_not_believed(world, change, said):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    file = next(
        path
        for path in sorted(world.path.glob("*/evaluations/*.json"))
        if json.loads(path.read_text())["entries"][0]["split"] == "test"
    )
    record = json.loads(file.read_text())
    next(entry for entry in record["entries"] if entry["metric"] == "pgd20").update(change)
    file.write_text(json.dumps(record))
    for found in (world.report(table), compare_runs(world.path.glob("digits-*"), ["method"])):
        assert len(cell(found, "at", "pgd20").samples) == 1
        (note,) = [note for note in found.notes if "left out" in note]
        assert note.startswith(f"left out: {file}: ")
        assert said in note


def test_an_edited_parquet_is_not_believed(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    file = min(world.path.glob("*/evaluations/*.parquet"))
    examples = pd.read_parquet(file)
    examples.loc[:6, "pgd20_robust"] = False
    examples.to_parquet(file, index=False)
    assert any(file.stem in note for note in world.report(table).notes)
    file.write_bytes(file.read_bytes()[:100])
    assert any("is damaged; evaluate again" in note for note in world.report(table).notes)


def test_what_was_measured_is_shown_beside_the_published_columns(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table, "evaluation=quick", "evaluation.val=[]")
    found = world.report(table, "evaluation=quick", numbers=published("at"))
    assert found.columns == (*COLUMNS, "fgsm")
    assert cell(found, "at", "fgsm").samples[0].value == 50
    assert cell(found, "at", "fgsm").published is None


def test_smoke_runs_are_left_out_among_real_ones(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    world.train(table, "scale=smoke")
    found = compare_runs(sorted(world.path.glob("digits-*")), ["method"])
    assert found.scale == "full"
    assert len(found.rows[0].cells["pgd20"].samples) == 2
    assert "2 runs at smoke scale not shown" in found.notes


def test_nothing_to_compare_is_an_error(world):
    with pytest.raises(InputError, match="no evaluated run there"):
        compare_runs([], ["method"])


def test_an_averaged_runs_numbers_are_not_taken_for_raw_ones(world):
    table = simple(at=Arm(["method=at", "average=ema"]))
    world.train(table, "seed=0")
    found = world.report(table, "seed=0", "evaluation.weights=raw")
    assert dict(cell(found, "at", "pgd20").absent) == {"not evaluated": 1}
    assert evaluations.chosen_weights(world.jobs(table, "seed=0")[0].config) == "average"


def test_a_choice_that_the_command_line_narrows_is_tagged(world):
    def values(point):
        return {"clean_val": 90, "pgd20_val": 50, "pgd20": 35, "clean": 90}

    world.train(grid(), values=values)
    whole = cell(world.report(grid()), "at__pgd", "pgd20")
    assert whole.tags == ()
    narrowed = cell(world.report(grid(), "lr=0.2"), "at__pgd", "pgd20")
    assert narrowed.tags == ("1 of 3 grid points",)
    two = cell(world.report(grid(), "lr=0.2,0.3"), "at__pgd", "pgd20")
    assert two.tags == ("2 of 3 grid points",)
    free = replace(grid(), rows=[RowSpec("at")])  # no choice, so nothing is narrowed
    assert cell(world.report(free, "lr=0.2"), "at", "pgd20").tags == ()


def test_a_published_number_of_another_quantity_is_shown_and_not_compared(world):
    table = simple(at=Arm(["method=at"]))
    world.train(table)
    numbers = published("at")
    odd = replace(numbers.cells["at"]["pgd20"], note="not comparable: at other points")
    cells = {"at": {**numbers.cells["at"], "pgd20": odd}}
    found = world.report(table, numbers=replace(numbers, cells=cells))
    assert difference(cell(found, "at", "pgd20")) is None
    assert difference(cell(found, "at", "clean")) == 30
    assert cell(found, "at", "pgd20").published == odd


def test_transferred_attacks_are_in_a_matrix_and_in_no_column(world):
    world.train(simple())
    before = world.report(simple())
    configs = [planned.config for planned in world.jobs(simple())]
    for config in configs:
        for other in configs:
            if other.seed == config.seed and other is not config:
                fake_evaluation(config, {"pgd20": 70, "clean": 90}, source=other.run_name)
    after = world.report(simple())
    assert after.columns == before.columns
    assert cell(after, "at", "pgd20").samples == cell(before, "at", "pgd20").samples
    (matrix,) = [each for each in matrices(after) if each.column == "pgd20"]
    assert matrix.rows == matrix.sources == {"at": "at", "trades": "TRADES"}
    assert matrix.values == {("at", "trades"): [70, 70], ("trades", "at"): [70, 70]}
    assert matrix.own == {"at": [40, 40], "trades": [40, 40]}
