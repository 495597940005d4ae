"""``robustbench.json``: only numbers that RobustBench would take, everything else null."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from ablation.jobs.robustbench import Facts, write_record
from ablation.runs.directory import Run

FACTS = Facts("cifar10", "resnet18", (8 / 255, "linf"), 10, 1, False)
AA = {"attack": "auto_attack", "version": "standard", "norm": "linf", "eps": 8 / 255}
FIELDS = (
    *("link", "name", "authors", "venue", "additional_data", "number_forward_passes", "dataset"),
    *("architecture", "threat_model", "eps", "clean_acc", "reported", "autoattack_acc"),
    *("footnote", "unreliable"),
)


def record(folder, facts=FACTS, n=10, checkpoint="best_robust", split="test", **params):
    """The record of a run with clean accuracy 80 and AutoAttack accuracy 41.5."""
    run = Run(folder, "0123456789")
    place = {"checkpoint": checkpoint, "weights": "raw", "split": split, "unit": "percent", "n": n}
    entries = [
        {**place, "metric": "clean", "value": 80.0, "params": {}},
        {**place, "metric": "aa", "value": 41.5, "params": {**AA, **params}},
    ]
    run.add_evaluation(checkpoint, "e", entries, pd.DataFrame({"index": [0]}))
    write_record(run, "best_robust", "raw", facts)
    return json.loads((folder / "robustbench.json").read_text())


def test_what_is_known_is_written_and_the_rest_is_null(tmp_path):
    found = record(tmp_path)
    assert tuple(sorted(found)) == tuple(sorted(FIELDS))
    assert {key: value for key, value in found.items() if value is not None} == {
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "architecture": "resnet18",
        "threat_model": "Linf",
        "eps": "8/255",
        "clean_acc": "80.00",
        "autoattack_acc": "41.50",
    }


@pytest.mark.parametrize(
    "params",
    [
        {"version": "custom"},
        {"attack": "pgd"},
        {"eps": 4 / 255},
        {"norm": "l2"},
        {"attack_from": "another"},
        {"temperature": 20.0},
    ],
)
def test_another_attack_is_no_autoattack_accuracy(tmp_path, params):
    found = record(tmp_path, **params)
    assert (found["clean_acc"], found["autoattack_acc"]) == ("80.00", None)


@pytest.mark.parametrize(
    "place", [{"n": 9}, {"checkpoint": "last"}, {"split": "val"}, {"facts": Facts(
        "cifar10", "resnet18", (8 / 255, "linf"), None)}]
)  # fmt: skip
def test_numbers_of_other_images_or_weights_are_left_out(tmp_path, place):
    found = record(tmp_path, **place)
    assert found["clean_acc"] is found["autoattack_acc"] is None
