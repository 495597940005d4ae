"""What a report of a search says, of a study that no run stands behind."""

from __future__ import annotations

import csv
import io

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from ablation.errors import InputError
from ablation.reports import search as report
from ablation.sweeps import trials as sweep_trials
from ablation.sweeps.search import SearchRequest
from ablation.sweeps.spaces import Dimension, Search
from tests.support.configs import compose_config

SPACE = {
    "lr": Dimension(0.001, 1.0, log=True),
    "optim.momentum": Dimension(0.0, 0.9),
    "method": Dimension(choices=["at", "trades"]),
}


@pytest.fixture
def request_(tmp_path):
    def make(*overrides):
        base = compose_config(f"runs_dir={tmp_path}/runs", "evaluation=none", *overrides)
        cli = (f"++runs_dir={tmp_path}/runs", *overrides)
        return SearchRequest("mine", Search("Mine", SPACE), cli, None, 9, base)

    return make


def study(*values, pruned=(), failed=0):
    """A trial of three epochs per value, which only the learning rate decides."""
    found = optuna.create_study(direction="maximize")
    space = {key: sweep_trials.distribution(each) for key, each in SPACE.items()}
    for i, value in enumerate([*values, *pruned]):
        complete = i < len(values)
        curve = {1: value / 2, 2: value, 3: value - 1} if value else {}
        params = {"lr": 0.001 + value / 100, "optim.momentum": 0.1 * (i % 3), "method": "at"}
        found.add_trial(
            create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=value,
                params=params,
                distributions=space,
                user_attrs={"run": f"run-{i}"},
                intermediate_values=curve,
            )
        )
    for _ in range(failed):
        found.add_trial(create_trial(state=TrialState.FAIL, params={}, distributions={}))
    return found


def test_trials_are_ranked_and_pruned_ones_come_last(request_):
    rows = csv.DictReader(
        io.StringIO(report.as_csv(request_(), study(40.0, 60.0, 0.0, pruned=[50.0])))
    )
    found = [(row["run"], float(row["value"]), row["epoch"], row["state"]) for row in rows]
    assert found == [
        ("run-1", 60.0, "2", "complete"),
        ("run-0", 40.0, "2", "complete"),
        ("run-2", 0.0, "-", "diverged"),
        ("run-3", 50.0, "2", "pruned"),
    ]


def test_the_key_that_decides_has_the_importance():
    shares = report.importances(study(*(5.0 + 10 * i for i in range(9))))
    assert max(shares, key=lambda key: shares[key]) == "lr"
    assert sum(shares.values()) == pytest.approx(1)


def test_without_trials_that_differ_there_is_no_importance():
    assert report.importances(study()) == {}
    assert report.importances(study(50.0, 50.0)) == {}


def test_the_terminal_says_how_to_go_on(request_):
    text = report.terminal(request_("seed=4"), study(40.0, 60.0, pruned=[30.0], failed=2))
    assert text.splitlines()[:2] == ["Mine", "2 complete, 1 pruned, 2 failed"]
    assert "/runs/run-1" in text
    assert "seed=1,2,3 lr=0.601 optim.momentum=0.1 method=at" in text
    assert "seed=4" not in text.splitlines()[-1]
    assert "No test image was seen" in text


def test_a_trial_that_was_broken_off_and_went_on_counts_once(request_):
    found = study(40.0, failed=1)
    attributes = {"run": "run-0"}
    found.add_trial(
        create_trial(state=TrialState.FAIL, params={}, distributions={}, user_attrs=attributes)
    )
    assert report.terminal(request_(), found).splitlines()[1] == "1 complete, 1 failed"


def test_a_study_without_trials_is_no_error(request_):
    text = report.terminal(request_(), study())
    assert text.splitlines() == ["Mine", "no trials", "importance: too few complete trials"]


def test_the_markdown_has_a_row_per_trial(request_):
    lines = report.markdown(request_(), study(*(10.0 + i for i in range(15)))).splitlines()
    assert sum("| complete |" in line for line in lines) == 15


def test_the_figure_has_every_trial_in_every_panel(request_):
    drawn = report.figure(request_(), study(40.0, 60.0, pruned=[30.0]))
    panels = [axes for axes in drawn.axes if axes.axison]
    assert [axes.get_xlabel() for axes in panels] == ["trial", "lr", "momentum", "method"]
    for axes in panels:
        marked = [line for line in axes.lines if line.get_marker() == "o"]
        heights = np.concatenate([np.asarray(line.get_ydata()) for line in marked])
        assert sorted(heights.tolist()) == [30, 40, 60]
    assert [axes.get_xscale() for axes in panels] == ["linear", "log", "linear", "linear"]


def test_a_search_of_smoke_runs_is_marked(request_):
    drawn = report.figure(request_("scale=smoke"), study(40.0))
    assert [text.get_text() for text in drawn.texts if text.get_text() == "SMOKE"] == ["SMOKE"]


def test_a_search_that_has_not_begun_is_said(request_, tmp_path):
    with pytest.raises(InputError, match="no such study"):
        report.publish_search(request_(), str(tmp_path / "out"), plots=False)
    assert not (tmp_path / "out").exists()
