"""``attack_from``: adversarial examples of one run, judged on another."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import yaml

from ablation.config.validation import load
from ablation.errors import DONE
from ablation.evaluation import Pgd
from ablation.jobs import evaluate
from ablation.jobs import train as job
from ablation.jobs.setup import build_net, load_images
from ablation.numerics.modes import evaluating
from ablation.runs.directory import Run
from ablation.runs.state_dicts import load_into
from tests.support.jobs import plain, run_of

CPU = torch.device("cpu")
ATTACK = ("evaluation=quick", "evaluation.n=40", "~evaluation.attacks.fgsm", "eps=0.1")
PGD = Pgd(20, 0.25, "clean")
GIVEN = ("evaluation.attacks.pgd20.start=clean", "evaluation.attacks.pgd20.step_size=eps/4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder):
    paths = []
    for seed in (0, 1):
        container = plain(folder, "epochs=4", "method=standard", "evaluation=none", f"seed={seed}")
        assert job.train(container) == DONE
        paths.append(run_of(container).path)
    return paths


def request(folder, *overrides):
    return plain(folder, *ATTACK, *GIVEN, *overrides, config_name="evaluate")


def network(path):
    run = Run.at(path)
    config = load(yaml.safe_load(run.config_path.read_text()))
    images = load_images(config, CPU)
    net = build_net(config, images.train, config.phases[-1].method, CPU)
    load_into(net, run.checkpoints.load_weights("best_robust", False), "it")
    return net, images.test


def entries(path):
    found = json.loads((path / "result.json").read_text())["entries"]
    return {(e["metric"], e["params"].get("attack_from")): e for e in found}


def test_points_made_on_one_network_are_judged_on_the_other(folder, runs, capsys):
    first, second = runs
    assert evaluate.run(request(folder, f"run={first}")) == DONE
    container = request(folder, f"run={first}", f"attack_from={second}")
    assert evaluate.check(container) == []
    assert evaluate.run(container) == DONE
    assert f"pgd20 from {second.name}" in capsys.readouterr().out
    found = entries(first)
    assert {("pgd20", None), ("pgd20", second.name)} <= found.keys()

    (target, test), (source, _) = network(first), network(second)
    table = pd.read_parquet(next(first.glob("evaluations/*.parquet")))
    rows = torch.tensor(table["index"].tolist())
    x, y = test.images[rows].float() / 255, test.labels[rows]
    with evaluating(target), evaluating(source):
        right = target(x).argmax(1) == y
        points = PGD(source, x, y, 0.1, "linf", torch.Generator())
        robust = right & (target(points).argmax(1) == y)
    assert found["pgd20", second.name]["value"] == pytest.approx(100 * robust.double().mean())
    assert found["pgd20", second.name]["value"] > found["pgd20", None]["value"]
    assert found["clean", None]["value"] == pytest.approx(100 * right.double().mean())


def test_the_record_says_whose_points_and_what_the_check_found(folder, runs):
    first, second = runs
    assert evaluate.run(request(folder, f"run={first}")) == DONE
    assert evaluate.run(request(folder, f"run={first}", f"attack_from={second}")) == DONE
    ids = {path.stem for path in first.glob("evaluations/*.json")}
    assert len(ids) == 2  # white-box and transferred
    assert evaluate.run(request(folder, f"run={first}", f"attack_from={second}")) == DONE
    assert {path.stem for path in first.glob("evaluations/*.json")} == ids
    result = json.loads((first / "result.json").read_text())
    (check,) = [each for each in result["checks"] if each["name"] == "transfer"]
    assert check["outcome"] == "passed"
    assert check["values"]["excess"] < -5
    assert json.loads((first / "robustbench.json").read_text())["clean_acc"] is None  # a subset


def test_all_pairs_of_several_runs_in_one_command(folder, runs, capsys):
    both = ",".join(map(str, runs))
    container = plain(
        folder, "evaluation=quick", "evaluation.n=10", "~evaluation.attacks.pgd20",
        f"run=[{both}]", f"attack_from='{folder}/*'", config_name="evaluate",
    )  # fmt: skip
    assert evaluate.check(container) == []
    assert evaluate.run(container) == DONE
    warned = capsys.readouterr().err
    for path, other in (runs, runs[::-1]):
        assert {("fgsm", None), ("fgsm", other.name)} <= entries(path).keys()
        assert f"attack_from={path} is the attacked run itself" in warned
    checks = json.loads((runs[1] / "result.json").read_text())["checks"]
    assert "not run" not in [each["outcome"] for each in checks if each["name"] == "transfer"]


def test_without_white_box_numbers_the_check_is_not_run(folder, runs):
    more = ("evaluation.n=11", "evaluation.seed=5", "eps=0.05")
    container = request(folder, f"run={runs[1]}", f"attack_from={runs[0]}", *more)
    assert evaluate.run(container) == DONE
    checks = json.loads((runs[1] / "result.json").read_text())["checks"]
    needs = [each["text"] for each in checks if each["outcome"] == "not run"]
    assert "needs the same attack on the network itself first: leave out attack_from" in needs


def changed(runs, tmp_path, **values):
    """A copy of a run's config with other values, as of another run."""
    saved = yaml.safe_load((runs[1] / "config.yaml").read_text())
    for key, value in values.items():
        place = saved
        *parents, last = key.split("__")
        for name in parents:
            place = place[name]
        place[last] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    return tmp_path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__name": "svhn"}, "data.name is 'svhn' there and 'digits' in the attacked run"),
        ({"data__classes": 9}, "data.classes is 9 there and 10 in the attacked run"),
        ({}, "it is not trained to the end"),
        ({"hydra": 3}, "its config.yaml: hydra=3: unknown key"),
    ],
)
def test_runs_that_do_not_share_their_images_are_refused_in_a_line(
    folder, runs, tmp_path, values, message
):
    other = changed(runs, tmp_path, **values)
    found = evaluate.check(request(folder, f"run={runs[0]}", f"attack_from={other}"))
    assert len(found) == 1
    assert found[0].startswith(f"attack_from={other}: ")
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("attack_from=nowhere",), "attack_from=nowhere: no run there"),
        (
            ("evaluation=emr_margins", "attack_from=RUN"),
            "it measures the network itself, so there is nothing to transfer",
        ),
    ],
)
def test_other_mistakes_are_told_first(folder, runs, overrides, message):
    texts = [text.replace("RUN", str(runs[1])) for text in overrides]
    container = plain(folder, f"run={runs[0]}", *texts, config_name="evaluate")
    found = evaluate.check(container)
    assert any(message in problem for problem in found), found
