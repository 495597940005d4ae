"""``ablation-report`` as a user meets it: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ablation.commands import cli, report
from ablation.config import compose, folders, overrides
from ablation.data.images import ImageSet
from ablation.errors import DONE, ConfigError, InputError
from ablation.evaluation import AutoAttack, LossRise, Pgd
from ablation.jobs import evaluate as assess
from ablation.jobs.attack import Subject
from ablation.jobs.summary import result_table
from ablation.reports import plots, publish
from ablation.runs.directory import find_runs
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import open_table
from tests.support.configs import compose_config, compose_plain
from tests.support.fake_runs import fake_evaluation, fake_run

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.fixture
def runs(tmp_path):
    """Two arms of the demo, three seeds."""
    folders.register_components()
    place = tmp_path / "runs"
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        cli_ = [f"++runs_dir={place}"]
        for job in Planner(open_table("demo"), cli_, ["at", "trades"]).plan().jobs:
            better = job.points[0].arm == "trades"
            values = {"clean": 90, "apgd_ce": 50 if better else 40 + job.config.seed}
            fake_run(job.config, values)
    return place


@pytest.fixture
def go(tmp_path):
    def run(*arguments):
        texts = [overrides.letting_in(text) for text in report.take_in(list(arguments))]
        with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
            container = compose.to_plain(hydra_compose("report", texts))
        problems = report.check(container)
        if problems:
            raise ConfigError(problems)
        return report.run(container)

    yield run
    GlobalHydra.instance().clear()


def test_a_table_is_printed_and_written(go, runs, tmp_path, capsys):
    assert go("table=demo", f"runs_dir={runs}", f"out={tmp_path}/out", "against=at") == DONE
    out = capsys.readouterr().out
    assert "41.0 ±2.5 (3)" in out
    assert "missing 3" in out
    assert "+9.0 ±2.5 (3) *" in out
    with (tmp_path / "out/demo/table.csv").open() as file:
        rows = {(row["key"], row["column"]): row for row in csv.DictReader(file)}
    assert float(rows["at", "apgd_ce"]["mean"]) == pytest.approx(41.0)
    assert rows["at", "apgd_ce"]["n_runs"] == "3"
    assert rows["mart", "apgd_ce"]["mean"] == ""
    assert "41.0" in (tmp_path / "out/demo/table.md").read_text()
    assert r"\toprule" in (tmp_path / "out/demo/table.tex").read_text()
    assert (tmp_path / "out/demo/clean_against_robust.png").stat().st_size > 1000


def test_a_table_without_numbers_does_not_replace_one_that_has_some(go, runs, tmp_path, capsys):
    place = f"out={tmp_path}/out"
    assert go("table=demo", f"runs_dir={runs}", place, "against=at") == DONE
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/demo").iterdir()}
    assert go("table=demo", f"runs_dir={tmp_path}/none", place) == DONE
    assert "not written: no number here, and " in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/demo").iterdir()} == before
    assert go("table=demo", f"runs_dir={tmp_path}/none", f"out={tmp_path}/new") == DONE
    assert (tmp_path / "new/demo/table.csv").exists()


def test_what_an_earlier_report_drew_is_removed_with_a_word(go, runs, tmp_path, capsys):
    arguments = ("table=demo", f"runs_dir={runs}", f"out={tmp_path}/out")
    assert go(*arguments) == DONE
    (tmp_path / "out/demo/broken_by.png").touch()
    assert "removed there" not in capsys.readouterr().out
    assert go(*arguments) == DONE
    assert "removed there, of an earlier report: broken_by.png\n" in capsys.readouterr().out


def test_collapsed_runs_are_named_among_what_is_not_drawn(go, runs, tmp_path, capsys):
    arguments = ("table=demo", f"runs_dir={runs}", f"out={tmp_path}/out")
    assert go(*arguments) == DONE
    assert "not drawn: runs at chance level" not in capsys.readouterr().out
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        for job in Planner(open_table("demo"), [f"++runs_dir={runs}"], ["mart"]).plan().jobs:
            fake_run(job.config, {"clean": 10, "apgd_ce": 10})
    assert go(*arguments) == DONE
    assert "not drawn: runs at chance level (collapsed): MART (3)\n" in capsys.readouterr().out


def test_margins_over_epochs_are_drawn_where_runs_have_them(go, runs, tmp_path, capsys):
    def curves() -> set[str]:
        folder = tmp_path / "out/demo"
        return {p.name for p in folder.glob("*.png")} & {
            *("margin_quantiles.png", "effective_margins.png")
        }

    arguments = ("table=demo", f"runs_dir={runs}", f"out={tmp_path}/out")
    assert go(*arguments) == DONE
    assert curves() == set()
    out = capsys.readouterr().out
    assert "not drawn: margin_quantiles: no run measured margins (monitor.enabled=true)" in out
    assert "not drawn: effective_margins: " in out
    run = next(run for run in find_runs(runs) if "trades" in run.path.name)
    quantiles = {f"margin_q{q}": q / 1000 for q in (0, 25, 50, 75, 100)}
    run.log({"epoch": 0, "margin_split": "val", "margin_norm": "linf", **quantiles})
    assert go(*arguments) == DONE
    assert curves() == {"margin_quantiles.png"}
    out = capsys.readouterr().out
    assert "margin_quantiles.pdf" in out
    assert "not drawn: margin_quantiles" not in out
    assert go(f"runs={runs}", "by=method", f"out={tmp_path}/any") == DONE
    assert (tmp_path / "any/runs/margin_quantiles.png").is_file()


def test_radii_of_training_are_drawn_where_runs_recorded_them(go, runs, tmp_path, capsys):
    arguments = ("table=demo", f"runs_dir={runs}", f"out={tmp_path}/out")
    assert go(*arguments) == DONE
    out = capsys.readouterr().out
    assert "not drawn: radius_histogram: no run recorded a radius of each image in training" in out
    assert "mean_radius" not in out
    run = next(run for run in find_runs(runs) if "trades" in run.path.name)
    entry = {
        "checkpoint": "best_robust",
        "weights": "raw",
        "metric": "mean_radius",
        "split": "train",
        "value": 0.043,
        "unit": "radius",
        "n": 3,
        "params": {"eps": 0.1},
    }
    columns = {"index": [0, 1, 2], "radius": np.array([0.042, 0.043, 0.044], np.float32)}
    with run.reopen():
        run.add_recorded("best_robust", [entry], columns)
    assert go(*arguments) == DONE
    out = capsys.readouterr().out
    assert "radius_histogram.pdf" in out
    assert "not drawn: radius_histogram" not in out
    assert "0.0430 (1/3)" in out
    assert (tmp_path / "out/demo/radius_histogram.png").stat().st_size > 1000
    with (tmp_path / "out/demo/table.csv").open() as file:
        rows = {(row["key"], row["column"]): row for row in csv.DictReader(file)}
    assert float(rows["trades", "mean_radius"]["mean"]) == 0.043
    assert rows["trades", "mean_radius"]["unit"] == "radius"


def test_rises_of_the_loss_are_a_column_and_a_figure(go, runs, tmp_path, capsys):
    arguments = (f"runs={runs}", "by=method", f"out={tmp_path}/out")
    assert go(*arguments) == DONE
    assert "not drawn: loss_rise: no row has the rise of the loss" in capsys.readouterr().out
    run = next(run for run in find_runs(runs) if "trades" in run.path.name)
    measure = LossRise(Pgd(10, 0.25, "clean", eps=0.1, norm="linf"))
    node = replace(compose_config("evaluation=none").evaluation, attacks={"loss_rise": measure})
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 1, 3, 3), generator=rng, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(60) % 10)
    net: Any = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 10))
    with run.reopen():
        Subject("best_robust", "raw", 0.1, "linf", node).record(run, net, images, lambda: False)
    (entry,) = (e for e in json.loads(run.result_path.read_text())["entries"]
                if e["metric"] == "loss_rise")  # fmt: skip
    assert f"loss_rise  test   {entry['value']:.3f}  correlation" in result_table(run)
    assert go(*arguments) == DONE
    out = capsys.readouterr().out
    assert f"{entry['value']:.3f} (1/3)" in out
    assert (tmp_path / "out/runs/loss_rise.png").is_file()
    file = next(f for f in run.evaluations.glob("*.json") if '"loss_rise"' in f.read_text())
    record = json.loads(file.read_text())
    record["entries"][0]["value"] = 1.5
    file.write_text(json.dumps(record))
    assert go(*arguments) == DONE
    assert "loss_rise is 1.5, which is no correlation; evaluate again" in capsys.readouterr().out
    assert not (tmp_path / "out/runs/loss_rise.png").exists()


def test_seconds_are_shown_on_request_alone(go, runs, tmp_path, capsys):
    for run in find_runs(runs):
        run.log({"epoch": 0, "phase": "main", "images_per_second": 1000.0})
        status = json.loads((run.path / "status.json").read_text())
        (run.path / "status.json").write_text(json.dumps({**status, "device": "cpu"}))
    size = compose_config("data=digits").batch_size
    for given in ((f"runs={runs}", "by=method"), ("table=demo", "row=at", f"runs_dir={runs}")):
        arguments = (*given, f"out={tmp_path}/out", "plots=false")
        go(*arguments)
        assert "seconds_per_step" not in capsys.readouterr().out
        go(*arguments, "extra=seconds_per_step")
        out = capsys.readouterr().out
        assert "seconds_per_step (s)" in out
        assert f"{size / 1000:.3g}" in out
        with pytest.raises(ConfigError, match="seconds_per_step"):
            go(*arguments, "extra=[seconds]")


FIGURE3 = {2 * i: 80.0 - 5 * i for i in range(1, 9)}
"""Robust accuracy by radius in 1/255, as the test runs have it."""


@pytest.fixture
def swept(runs):
    """The runs, with what ``ablation-evaluate run=... evaluation=emr_figure3`` adds to them."""
    node = compose_config("evaluation=emr_figure3").evaluation
    values = {"clean": 90, **{f"aa_eps{k}": value for k, value in FIGURE3.items()}}
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        planner = Planner(open_table("demo"), [f"++runs_dir={runs}"], ["at", "trades"])
        for job in planner.plan().jobs:
            fake_evaluation(replace(job.config, evaluation=node), values)
    return runs


def drawn(monkeypatch):
    """The sweeps that the figure is given, call by call."""
    found = []
    monkeypatch.setattr(
        plots, "robust_over_eps", lambda table, sweeps, strict: found.append((table, sweeps))
    )
    return found


def test_accuracy_over_eps_is_drawn_where_an_attack_was_run_at_two_radii(
    go, swept, tmp_path, capsys
):
    figure = tmp_path / "out/runs/robust_over_eps.png"
    assert go(f"runs={swept}", "by=method", f"out={tmp_path}/out") == DONE
    assert figure.stat().st_size > 1000
    out = capsys.readouterr().out
    assert "robust_over_eps.pdf" in out
    assert "not drawn: robust_over_eps" not in out


def test_accuracy_over_eps_needs_another_radius(go, runs, tmp_path, capsys):
    stale = tmp_path / "out/runs/robust_over_eps.png"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    assert go(f"runs={runs}", "by=method", f"out={tmp_path}/out") == DONE
    assert not stale.exists()
    reason = "not drawn: robust_over_eps: no row has one attack at two radii (ablation-evaluate"
    assert reason in capsys.readouterr().out


def test_radii_are_read_from_the_runs(go, swept, tmp_path, monkeypatch):
    found = drawn(monkeypatch)
    go(f"runs={swept}", "by=method", f"out={tmp_path}/out")
    ((table, sweeps),) = found
    (sweep,) = [sweep for sweep in sweeps if sweep.metric == "aa"]
    assert sweep.norm == "linf"
    assert sweep.eps == {
        (row.key, f"aa_eps{k}"): pytest.approx(k / 255) for row in table.rows for k in FIGURE3
    }
    assert not any(column == "clean" for each in sweeps for _, column in each.eps)


def test_only_the_radius_and_a_step_that_goes_with_it_may_differ():
    def same(before, after):
        return bool(set(publish._but_for_eps(before)) & set(publish._but_for_eps(after)))

    pgd = {"attack": "pgd", "steps": 20, "step_size": 0.01, "eps": 0.04, "seed": 0, "norm": "linf"}
    assert same(pgd, pgd | {"eps": 0.08})
    assert same(pgd, pgd | {"eps": 0.08, "step_size": 0.02, "seed": 1, "eps_text": "x"})
    assert not same(pgd, pgd | {"eps": 0.08, "step_size": 0.015})
    assert not same(pgd, pgd | {"eps": 0.08, "steps": 10})
    assert not same(pgd, pgd | {"eps": 0.08, "norm": "l2"})
    square = {"attack": "square", "queries": 5000, "eps": 0.0, "norm": "linf"}
    assert same(square, square | {"eps": 0.1})


def test_margins_at_adversarial_points_are_no_accuracy_over_eps(go, runs, tmp_path, monkeypatch):
    for run in find_runs(runs):
        for file in run.evaluations.glob("*.json"):
            record = json.loads(file.read_text())
            for entry in record["entries"]:
                entry["unit"] = "margin"
            file.write_text(json.dumps(record))
    found = drawn(monkeypatch)
    go(f"runs={runs}", "by=method", f"out={tmp_path}/out")
    assert [sweeps for _, sweeps in found] == [[]]


def test_the_radii_of_emrs_figure_are_an_evaluation(runs):
    config = compose_config("evaluation=emr_figure3", "eps=0.031")
    attacks = config.evaluation.attacks
    assert list(attacks) == ["clean", *(f"aa_eps{k}" for k in FIGURE3)]
    assert [attacks[f"aa_eps{k}"] for k in FIGURE3] == [AutoAttack(eps=k / 255) for k in FIGURE3]
    asked = [f"run='{next(iter(find_runs(runs))).path}'", "evaluation=emr_figure3"]
    assert assess.check(compose_plain(*asked, config_name="evaluate")) == []


def test_keys_of_the_runs_are_told_from_its_own():
    taken = report.take_in(["table=demo", "epochs=5", "component/awp=disabled", "seed=0,1",
                            "by=method,component.awp", "tracking.mode=offline", "-m"])  # fmt: skip
    assert taken == [
        *("table=demo", "by=[method,component.awp]", "tracking.mode=offline", "-m"),
        "overrides=['epochs=5','component/awp=disabled','seed=0,1']",
    ]


def test_overrides_find_the_runs_launched_with_them(go, runs, tmp_path, capsys):
    assert go("table=demo", "row=at", "seed=2", f"runs_dir={runs}", "plots=false",
              f"out={tmp_path}/out") == DONE  # fmt: skip
    assert "42.0 (1)" in capsys.readouterr().out
    go("table=demo", "row=at", "epochs=3", f"runs_dir={runs}", "plots=false", f"out={tmp_path}/o")
    assert "42.0" not in capsys.readouterr().out


def test_any_runs_side_by_side(go, runs, tmp_path, capsys):
    assert go(f"runs={runs}", "by=method", f"out={tmp_path}/out", "plots=false") == DONE
    out = capsys.readouterr().out
    assert "\nat " in out
    assert "50.0 ±0.0 (3)" in out


def test_images_that_one_arm_keeps_are_listed(go, runs, tmp_path, capsys):
    arguments = (f"runs_dir={runs}", f"out={tmp_path}/out", "examples=at,trades")
    assert go("table=demo", *arguments) == DONE
    out = capsys.readouterr().out
    assert "images that at and trades keep under APGD-CE, of 200 test images" in out
    assert "only trades keeps (seed=0): 80, 81, 82" in out
    assert "only at keeps (seed=0): none" in out
    assert "examples.pdf" in out
    assert (tmp_path / "out/demo/examples.png").stat().st_size > 1000
    with (tmp_path / "out/demo/examples.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 20 + 18 + 16  # 50% against 40%, 41% and 42% of 200 images
    assert {(line["column"], line["kept_by"]) for line in lines} == {("apgd_ce", "trades")}
    assert go("table=demo", *arguments, "metric=clean") == DONE
    out = capsys.readouterr().out
    assert "not drawn: examples: no image is kept by one of them alone" in out
    assert not (tmp_path / "out/demo/examples.png").exists()
    assert go(f"runs={runs}", "by=method", *arguments[1:], "plots=false") == DONE
    assert "only trades keeps (seed=2): 84, 85" in capsys.readouterr().out


def test_which_part_of_autoattack_broke_what_is_drawn(go, runs, tmp_path, capsys):
    arguments = (f"runs={runs}", "by=method", f"out={tmp_path}/out")
    assert go(*arguments) == DONE
    reason = "not drawn: broken_by: no run recorded which part of AutoAttack broke an image"
    assert reason in capsys.readouterr().out
    run = next(run for run in find_runs(runs) if "trades" in run.path.name)
    attack = AutoAttack(version="custom", n_iter=2, queries=2)
    node = replace(compose_config("evaluation=none").evaluation, attacks={"aa": attack})
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 1, 3, 3), generator=rng, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(40) % 10)
    net: Any = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 10))
    with run.reopen():
        Subject("best_robust", "raw", 0.1, "linf", node).record(run, net, images, lambda: False)
    assert go(*arguments) == DONE
    assert "broken_by.pdf" in capsys.readouterr().out
    assert (tmp_path / "out/runs/broken_by.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["against=at"], "against=: only with table=<name> or runs=<folder>"),
        (["strict=true"], "strict=true: only with table=<name> or claims=<paper>"),
        (["clams=dose"], "clams=dose: only with table=, claims= or search=; did you mean claims?"),
        (["claims=dos"], "claims=dos: did you mean dose?"),
        (["claims=nobody"], "claims=nobody: choose from dose, emr, lma, mwpb, all"),
        (["claims=dose,emrr"], "claims=emrr: did you mean emr?"),
        (["claims=mwpb", "table=mwpb"], "table=mwpb: no claim of mwpb rests on it; choose from"),
        (["claims=all", "table=emr_table1"], "claims=all: not with table="),
        (["claims=dose", "runs=x"], "runs=: not with claims="),
        (["claims=dose", "search=lma"], "search=: not with claims="),
        (["claims=dose", "table=dose_table1", "row=dyart"], "row=: not with claims="),
        (
            ["claims=dose", "table=dose_table1", "dashboard=true"],
            "dashboard=true: not with claims=",
        ),
        (["search=lma", "table=demo"], "table= and search=: give one of them"),
        (["search=lmaa"], "search=lmaa: did you mean lma?"),
        (["table=demo", "runs=x"], "table= and runs=: give one of them"),
        (["table=dem"], "table=dem: did you mean demo?"),
        (["table=demo", "row=nope"], "row=nope"),
        (["runs=/nowhere/at/all"], "runs=/nowhere/at/all: no such folder"),
        (["runs=x", "epochs=4"], "epochs=4: not with runs="),
        (["runs=x", "dashboard=true"], "dashboard=true: only with table="),
        (["table=demo", "epoch=4"], "epoch=4: unknown key; did you mean epochs?"),
        (["table=demo", "against=nope"], "nope"),
        (["table=demo", "examples=at"], "examples=: give two rows, as examples=at,trades"),
        (["table=demo", "metric=aa"], "metric=: only with examples=<row>,<row>"),
        (["search=lma", "examples=at,trades"], "examples=: not with search="),
        (
            ["table=demo", "examples=at,tardes"],
            "examples=tardes: no row of the table; did you mean trades?",
        ),
        (["table=demo", "strict=maybe"], "strict='maybe': expected true or false"),
    ],
)
def test_mistakes_are_named(go, arguments, message, tmp_path):
    with pytest.raises(InputError) as caught:
        go(*arguments, f"out={tmp_path}/out")
    assert message in str(caught.value)


def test_claims_are_judged_and_written(go, tmp_path, capsys):
    assert go("claims=dose,mwpb", f"runs_dir={tmp_path}/runs", f"out={tmp_path}/out") == DONE
    out = capsys.readouterr().out
    assert "dose_D1: untested (missing)" in out
    assert "dose_D8: not decidable (confounded: burn-in and lambda (25, 1000) change too" in out
    assert "in miniature: ablation-report claims=mwpb table=mwpb_small" in out
    for paper in ("dose", "mwpb"):
        files = {path.name for path in (tmp_path / f"out/claims_{paper}").iterdir()}
        assert files == {"claims.md", "claims.tex", "claims.json"}


def test_without_a_key_all_tables_are_listed(go, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ablation.reports.overview.table_names", lambda _: ["demo"])
    assert go(f"runs_dir={tmp_path}/runs") == DONE
    assert re.search(r"^demo +18 +0 +0 +0 +0 ", capsys.readouterr().out, re.MULTILINE)


def test_a_folder_that_cannot_be_written_is_named(go, runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        go("table=demo", f"runs_dir={runs}", f"out={tmp_path}/file", "plots=false")


def test_the_command_line_says_what_it_takes(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ablation-report", "--help"])
    with pytest.raises(SystemExit):
        cli.run("report", report.run, report.check)
    assert "ablation-report table=demo against=at" in capsys.readouterr().out


@pytest.mark.parametrize("named", ["{run}", "{runs}", "{runs}/*"])
def test_a_run_that_lost_its_config_is_named_however_it_is_asked_for(go, tmp_path, capsys, named):
    pattern = "method=at evaluation=demo evaluation.val=[] seed="
    for seed in (0, 1):
        fake_run(
            compose_config(*f"{pattern}{seed} runs_dir={tmp_path}/runs".split()),
            {"pgd20": 40, "clean": 90},
        )
    lost, kept = sorted((tmp_path / "runs").iterdir())
    (lost / "config.yaml").unlink()
    asked = named.format(run=f"[{lost},{kept}]", runs=tmp_path / "runs")
    assert go(f"runs={asked}", "by=method", "plots=false", f"out={tmp_path}/out") == DONE
    out = capsys.readouterr().out
    assert "left out: " in out
    assert str(lost / "config.yaml") in out
