"""The interface for Python: a run's network and numbers are those of the commands."""

from __future__ import annotations

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ablation
from ablation import api
from ablation.data import Digits
from ablation.errors import ConfigError, InputError
from ablation.evaluation import Fgsm

ROOT = Path(__file__).parents[1]
TINY = (
    *("epochs=1", "data.train_size=200", "data.val_size=100", "selection.n=50", "model=tiny_cnn"),
    *("evaluation=quick", "evaluation.n=100", "tracking.mode=disabled"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list[ablation.LoadedRun]]:
    folder = tmp_path_factory.mktemp("runs")
    chosen = (("method=at",), ("method=trades", "component/awp=enabled", "average=ema"))
    return folder, [ablation.train([*each, *TINY, f"runs_dir={folder}"]) for each in chosen]


def test_the_examples_in_the_docstring_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, test = Digits().load(Path())
    images, labels = test.images[:20].float() / 255, test.labels[:20]
    names = {"images": images, "labels": labels, "Fgsm": Fgsm}
    tests = doctest.DocTestFinder(recurse=False).find(api, globs=names)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for each in tests:
        runner.run(each)
    assert (runner.failures, runner.tries) == (0, 7)


def test_the_network_has_the_accuracy_that_is_recorded(runs):
    _, test = Digits().load(Path())
    for run in runs[1]:
        chosen = run.results.query("selected and metric == 'clean'").iloc[0]
        examples = ablation.results(run.path, examples=True)
        rows = torch.tensor(examples["index"].to_numpy())
        with torch.no_grad():
            predicted = run.net(test.images[rows] / 255).argmax(1)
        assert predicted.tolist() == examples["prediction"].tolist()
        accuracy = 100 * (predicted == test.labels[rows]).double().mean().item()
        assert chosen["value"] == pytest.approx(accuracy)
        assert not run.net.training


def test_weights_can_be_chosen(runs):
    _, (_, averaged) = runs
    assert averaged.weights == "average"
    raw = ablation.load_run(averaged.path, "last", "raw")
    assert (raw.checkpoint, raw.weights) == ("last", "raw")
    x = torch.rand(4, 1, 8, 8)
    assert not torch.equal(raw.net(x), averaged.net(x))
    again = ablation.load_run(str(averaged.path))
    assert torch.equal(again.net(x), averaged.net(x))


def test_every_number_has_a_row_that_says_where_it_is_from(runs):
    folder, (plain, averaged) = runs
    table = ablation.results(folder)
    assert set(table["run"]) == {plain.path.name, averaged.path.name}
    assert dict(zip(table["method"], table["components"], strict=True)) == {
        "at": "",
        "trades": "awp",
    }
    assert dict(zip(table["method"], table["average"], strict=True)) == {"at": "", "trades": "ema"}
    assert set(table["metric"]) == {"clean", "fgsm", "pgd20"}
    assert set(table["state"]) == {"done"}
    row = table.query("metric == 'pgd20'").iloc[0]
    assert (row["n"], row["unit"], row["params"]["steps"]) == (100, "percent", 20)


@pytest.mark.parametrize("form", [str, lambda path: f"{path}/*", lambda path: [path, path]])
def test_runs_are_named_in_many_ways_and_count_once(runs, form):
    folder, loaded = runs
    assert len(ablation.results(form(folder))) == sum(len(run.results) for run in loaded)


def test_examples_have_a_row_per_image_and_run(runs):
    folder, _ = runs
    table = ablation.results(folder, examples=True)
    assert len(table) == 200
    assert table.groupby("run")["index"].nunique().tolist() == [100, 100]
    means = 100 * table.groupby("run")["pgd20_robust"].mean()
    recorded = ablation.results(folder).query("metric == 'pgd20'").set_index("run")["value"]
    assert means.to_dict() == pytest.approx(recorded.to_dict())


def test_a_finished_run_is_found_not_trained_again(runs, capsys):
    folder, (plain, _) = runs
    before = (plain.path / "metrics.jsonl").stat().st_mtime_ns
    again = ablation.train(["method=at", *TINY, f"runs_dir={folder}"])
    assert again.path == plain.path
    assert (plain.path / "metrics.jsonl").stat().st_mtime_ns == before


def test_all_that_is_wrong_is_said_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError) as error:
        ablation.train(["method=trade", "nope=1", f"runs_dir={tmp_path}/runs"])
    assert len(error.value.problems) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("call", [ablation.load_run, ablation.results])
def test_what_is_not_there_is_named(tmp_path, call):
    with pytest.raises(InputError, match=r"nowhere: no run there"):
        call(tmp_path / "nowhere")


def test_weights_that_are_not_there_are_named(runs):
    _, (plain, _) = runs
    with pytest.raises(InputError, match="average=none; load weights='raw'"):
        ablation.load_run(plain.path, weights="average")
    (plain.path / "checkpoints" / "last.safetensors").rename(plain.path / "away")
    with pytest.raises(InputError, match="its weights last were deleted"):
        ablation.load_run(plain.path, "last")


def test_a_damaged_number_is_named_not_left_out(runs, tmp_path):
    _, (plain, _) = runs
    copy = shutil.copytree(plain.path, tmp_path / plain.path.name)
    file = next((copy / "evaluations").glob("*.json"))
    file.write_text("{")
    with pytest.raises(InputError, match=file.name):
        ablation.results(copy)


def test_importing_the_package_does_not_wait_for_torch():
    code = "import ablation, sys; print('torch' in sys.modules, ablation.train.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "ablation.api"]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = ablation.nope  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_notebook_runs_on_the_runs_of_a_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attacks = ["evaluation=demo", "epochs=8", "tracking.mode=disabled"]
    for method in ("at", "trades"):
        for seed in (0, 1):
            ablation.train([f"method={method}", f"seed={seed}", *attacks])
    cells = json.loads((ROOT / "examples" / "demo.ipynb").read_text("utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "cell", "exec"), names)  # noqa: S102
    assert set(names["numbers"]["arm"]) == {"at", "trades"}
    assert len(names["kept"]) == 360
    assert set(names["lost_by_at"].index) <= set(range(360))
    assert [entry.metric for entry in names["found"].entries] == ["pgd1", "pgd10", "pgd100"]
