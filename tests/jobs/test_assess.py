"""What ``ablation-evaluate`` refuses before it writes anything, and several runs at once."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys

import pandas as pd
import pytest
import yaml

from ablation.errors import DONE, ConfigError
from ablation.jobs import evaluate
from ablation.jobs import train as job
from tests.support.jobs import plain, run_of


def problems(tmp_path, *overrides):
    """Of a bare checkpoint, on the digits."""
    (tmp_path / "net.pt").write_bytes(b"")
    container = plain(
        *(tmp_path, f"checkpoint={tmp_path}/net.pt", "data=digits", "model=tiny_cnn"),
        *("evaluation=quick", *overrides),
        config_name="evaluate",
    )
    return evaluate.check(container)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eps=8", "did you mean 8/255?"),
        ("eps=-1", "a radius is not negative"),
        ("++evaluation.eps=8", "evaluation.eps=8: pixels lie in [0, 1]"),
        ("evaluation.seed=-1", "between 0 and 2^63"),
        ("evaluation.seed=" + "9" * 30, "at most 9223372036854775807"),
        ("evaluation.n=0", "at least 1; null means all"),
        ("evaluation.n=999", "there are 360 test images; set evaluation.n=360 or null"),
        ("evaluation.batch_size=0", "at least 1"),
        ("evaluation.checkpoints=[]", "name some"),
        ("evaluation.checkpoints=[last]", "a bare checkpoint is one"),
        ("evaluation.weights=average", "one set of weights"),
        ("evaluation.val=[nope]", "only metrics of evaluation.attacks"),
        ("evaluation.split=val", "no train or val images"),
        ("evaluation=emr_margins", "no train or val images"),
        ("data.name=../../x", "it names a folder"),
        ("model.name='a/b'", "it names a folder"),
        ("model.head=conic", "model.head='conic'"),
        ("model.spec.width=100000", "at most 10000"),
        ("data.std=[0]", "one positive std per mean"),
        ("device=tpu", "device=tpu: choose auto"),
    ],
)
def test_a_request_is_checked_before_anything_is_written(tmp_path, override, message):
    assert problems(tmp_path) == []
    found = problems(tmp_path, override)
    assert any(message in problem for problem in found), found
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for seed in (0, 1):
        container = plain(folder, "epochs=1", "evaluation=none", f"seed={seed}")
        assert job.train(container) == DONE
        paths.append(run_of(container).path)
    return paths


def request(runs, *overrides):
    texts = ("evaluation=quick", "evaluation.n=10", "~evaluation.attacks.pgd20", *overrides)
    return plain(runs[0].parent, *texts, config_name="evaluate")


def test_several_runs_are_evaluated_in_turn(runs):
    named = ",".join(map(str, runs))
    for given in (f"run=[{named}]", f"run='{runs[0].parent}/*'"):
        container = request(runs, given)
        assert evaluate.check(container) == []
        assert evaluate.run(container) == DONE
        assert all(len(list(path.glob("evaluations/*.json"))) == 1 for path in runs)


def test_workers_share_an_evaluation_and_write_it_once(runs, tmp_path):
    """Three processes; the result is that of one, in a copy of the run."""
    alone = tmp_path / runs[0].name
    shutil.copytree(runs[0], alone)
    before = set(alone.glob("evaluations/*.json"))
    texts = ("evaluation=quick", "evaluation.n=60", "evaluation.batch_size=7")
    assert evaluate.run(request([alone], f"run={alone}", *texts)) == DONE
    containers = [request(runs, f"run={runs[0]}", *texts, f"worker={k}") for k in range(3)]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=lambda each: sys.exit(evaluate.run(each)), args=(container,))
        for container in containers
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [DONE] * 3
    (record,) = set(alone.glob("evaluations/*.json")) - before
    together = runs[0] / "evaluations" / record.name
    one, other = (json.loads(path.read_text()) for path in (record, together))
    for each in (one, other):
        del each["meta"]["seconds"]
    assert one == other
    tables = [pd.read_parquet(path.with_suffix(".parquet")) for path in (record, together)]
    assert tables[0].equals(tables[1])
    assert not list(together.parent.glob("*.partial"))
    assert evaluate.run(containers[0]) == DONE, "it is there: nothing is done"


def test_a_worker_needs_a_run(tmp_path):
    found = problems(tmp_path, "worker=1")
    assert any("processes that share run=<run>" in problem for problem in found), found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eps=8", "did you mean 8/255?"),
        ("evaluation.weights=average", "the run keeps no average"),
        ("evaluation.val=[nope]", "only metrics of evaluation.attacks"),
        ("data=digits", "remove data= and model="),
    ],
)
def test_what_a_run_lacks_is_told_first(runs, override, message):
    found = evaluate.check(request(runs, f"run={runs[0]}", override))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.getcwd []", "constructor for the tag"),
        ("a: &a [*a]", "aliases"),
        ("- 1", "no config of a run"),
        ("", "no config of a run"),
        ("data: 3", "config.yaml: data=3: expected a mapping"),
    ],
)
def test_a_config_that_is_none_is_a_line(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    container = plain(tmp_path, f"run={tmp_path}", config_name="evaluate")
    found = evaluate.check(container)
    assert any(message in problem for problem in found), found
    with pytest.raises(ConfigError):
        evaluate.run(container)


def test_an_edited_config_runs_nothing(runs, tmp_path):
    saved = yaml.safe_load((runs[0] / "config.yaml").read_text())
    saved["hydra"] = {"callbacks": {"x": {"_target_": "builtins.open"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    found = evaluate.check(plain(tmp_path, f"run={tmp_path}", config_name="evaluate"))
    assert any("hydra" in problem and "unknown key" in problem for problem in found), found
