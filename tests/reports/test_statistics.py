"""Intervals, differences and paired contrasts against closed forms and scipy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ablation.errors import InputError
from ablation.evaluation import Fgsm, Request, Spsa, evaluate
from ablation.random import generator
from ablation.reports.comparison import Cell, Comparison, Contrast, Interval, Row, Sample
from ablation.reports.statistics import cell_interval, contrasts, difference, interval
from ablation.runs.columns import Column
from ablation.sweeps.published import Published

NUMBERS = st.floats(-1e3, 1e3)


def test_three_values_give_students_t_with_two_degrees_of_freedom():
    found = interval([84.0, 85.0, 86.0])
    assert (found.mean, found.n) == (85.0, 3)
    assert found.half == pytest.approx(4.302652729696142 / math.sqrt(3), rel=1e-10)


def test_t14_1_six_runs():
    found = interval([56.9, 57.1, 57.3, 57.2, 57.4, 57.0])
    assert found.mean == pytest.approx(57.15)
    assert found.half == pytest.approx(0.196331, abs=1e-6)


def test_two_values_give_half_their_distance_times_t_with_one_degree_of_freedom():
    assert interval([1.0, 3.0]).half == pytest.approx(12.706204736432095)


def test_one_value_has_no_interval_and_none_is_an_error():
    assert interval([7.5]) == Interval(7.5, None, 1)
    with pytest.raises(ValueError, match="no values"):
        interval([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"must be finite: \[(nan|inf)\]"):
        interval([1.0, bad])


@given(NUMBERS, st.integers(2, 20))
def test_equal_values_have_exactly_their_mean_and_no_width(value, n):
    assert interval([value] * n) == Interval(value, 0.0, n)


@given(st.lists(NUMBERS, min_size=2, max_size=30))
def test_scipy_gives_the_same_interval(values):
    found = interval(values)
    mean, scale = np.mean(values), scipy.stats.sem(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scale
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.half == pytest.approx(half, abs=1e-9)


@given(st.lists(NUMBERS, min_size=2, max_size=10), NUMBERS)
def test_a_shift_moves_the_mean_and_keeps_the_width(values, shift):
    plain, moved = interval(values), interval([value + shift for value in values])
    assert moved.mean == pytest.approx(plain.mean + shift, abs=1e-9)
    assert moved.half == pytest.approx(plain.half, abs=1e-9)


def cell(*values, column="pgd20", **more):
    samples = tuple(
        Sample(f"seed={seed}", value, 10_000, f"run{seed}") for seed, value in enumerate(values)
    )
    return Cell(column, samples=samples, **more)


def test_a_cells_interval_is_over_its_runs():
    assert cell_interval(cell(50.0, 52.0, 54.0)) == interval([50.0, 52.0, 54.0])
    assert cell_interval(Cell("aa", absent={"missing": 3})) is None


def test_the_difference_is_measured_minus_published():
    published = Published(50.0, "50.00")
    assert difference(cell(50.0, 52.0, published=published)) == 1.0
    assert difference(cell(50.0, 52.0)) is None
    assert difference(Cell("aa", published=published)) is None
    assert difference(cell(50.0, published=published, mismatch=("steps 10, not 20",))) is None


def table(*rows):
    return Comparison("t", "T", ("pgd20",), rows)


def row(key, found, arm=""):
    return Row(key, key.upper(), arm or key, {"pgd20": found})


def test_contrasts_pair_repetitions_by_name():
    base = row("at", cell(50.0, 60.0))
    other = replace(cell(52.0, 63.0), samples=tuple(reversed(cell(52.0, 63.0).samples)))
    (found,) = contrasts(table(base, row("trades", other)), "at")
    assert found == Contrast("trades", "at", "pgd20", interval([3.0, 2.0]), None)


def test_only_common_repetitions_count():
    (found,) = contrasts(table(row("at", cell(50.0)), row("trades", cell(51.0, 99.0))), "at")
    assert found.by_seed == Interval(1.0, None, 1)


def test_rows_without_a_common_repetition_have_no_number():
    late = replace(cell(51.0), samples=(Sample("seed=7", 51.0, 10_000, "r"),))
    (found,) = contrasts(table(row("at", cell(50.0)), row("trades", late)), "at")
    assert (found.by_seed, found.by_example) == (None, None)


def test_cells_under_different_attacks_are_not_contrasted():
    weak = cell(50.0, mismatch=("steps 10, not 20",))
    (found,) = contrasts(table(row("at", weak), row("trades", cell(51.0))), "at")
    assert found.by_seed is None
    (found,) = contrasts(table(row("at", weak), row("trades", weak)), "at")
    assert found.by_seed == Interval(0.0, None, 1)


def test_cells_without_runs_are_left_out():
    empty = Cell("pgd20", absent={"missing": 3})
    comparison = table(row("at", cell(50.0)), row("trades", empty), Row("mart", "M", "mart", {}))
    assert contrasts(comparison, "at") == ()


def test_the_row_is_found_by_key_before_arm():
    comparison = table(row("1", cell(1.0), "at"), row("at", cell(2.0), "other"))
    assert [found.against for found in contrasts(comparison, "at")] == ["at"]
    assert [found.against for found in contrasts(comparison, "other")] == ["at"]


def test_an_unknown_row_is_answered_with_the_keys():
    with pytest.raises(InputError, match="'tardes' is no row of the table; give one of: at, x"):
        contrasts(table(row("at", cell(1.0)), row("x", cell(1.0), "trades")), "tardes")


def test_an_arm_of_several_rows_is_answered_with_their_keys():
    comparison = table(row("1", cell(1.0), "at"), row("2", cell(1.0), "at"), row("3", cell(1.0)))
    with pytest.raises(InputError, match=r"'at' is the arm of 2 rows; give a key: 1, 2$"):
        contrasts(comparison, "at")


def evaluated(path, robust, *, column="pgd20", seed=0, index=None, labels=None):
    """A sample as an evaluation leaves it: a Parquet file, and a value rounded through JSON."""
    metric = Column.parse(column).metric
    name = "clean_correct" if metric == "clean" else f"{metric}_robust"
    index = range(len(robust)) if index is None else index
    frame = pd.DataFrame(
        {
            "index": list(index),
            "label": [i % 10 for i in index] if labels is None else labels,
            name: pd.array(robust, dtype="boolean"),
        }
    )
    frame.to_parquet(path, index=False)
    seen = [bool(value) for value in robust if value is not None]
    value = json.loads(json.dumps(100 * sum(seen) / len(seen)))
    return Sample(f"seed={seed}", value, len(seen), path.stem, path)


def only(found):
    assert len(found) == 1
    return found[0]


def contrast(ours, theirs, column="pgd20"):
    rows = [
        Row(key, key, key, {column: Cell(column, samples=tuple(samples))})
        for key, samples in (("at", theirs), ("new", ours))
    ]
    return only(contrasts(Comparison("t", "T", (column,), tuple(rows)), "at"))


def test_examples_are_joined_by_index(tmp_path):
    ours = evaluated(tmp_path / "a.parquet", [True, True, False, True], index=[3, 1, 2, 9])
    theirs = evaluated(tmp_path / "b.parquet", [False, True, True], index=[1, 2, 3])
    found = contrast([ours], [theirs])
    # +100 for image 1, -100 for image 2, 0 for image 3; image 9 has no partner.
    assert found.by_example.n == 3
    assert found.by_example.mean == pytest.approx(0.0)
    assert found.by_example.half == pytest.approx(4.302652729696142 * 100 / math.sqrt(3))


def test_examples_are_averaged_over_repetitions_first(tmp_path):
    ours = [
        evaluated(tmp_path / "a0.parquet", [True, True, False]),
        evaluated(tmp_path / "a1.parquet", [True, False, False], seed=1),
    ]
    theirs = [
        evaluated(tmp_path / "b0.parquet", [False, True, False]),
        evaluated(tmp_path / "b1.parquet", [True, False, True], seed=1),
    ]
    found = contrast(ours, theirs)
    assert found.by_example == interval([50.0, 0.0, -50.0])
    assert found.by_seed == interval([ours[0].value - theirs[0].value, -100 / 3])


@given(st.data())
def test_both_means_agree_where_all_evaluate_the_same_examples(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs")
    n = data.draw(st.integers(2, 12))
    outcomes = st.lists(st.booleans(), min_size=n, max_size=n)
    ours, theirs = (
        [
            evaluated(folder / f"{name}{seed}.parquet", data.draw(outcomes), seed=seed)
            for seed in range(2)
        ]
        for name in "ab"
    )
    found = contrast(ours, theirs)
    assert found.by_example.mean == pytest.approx(found.by_seed.mean, abs=1e-9)
    assert found.by_example.half is not None
    assert math.isfinite(found.by_example.half)


def test_examples_that_an_attack_left_out_do_not_count(tmp_path):
    ours = evaluated(tmp_path / "a.parquet", [True, None, True, False])
    theirs = evaluated(tmp_path / "b.parquet", [False, True, None, False])
    found = contrast([ours], [theirs])
    assert found.by_example == interval([100.0, 0.0])


@pytest.mark.parametrize("column", ["clean", "clean_val", "clean_train", "pgd20_val", "aa_train"])
def test_examples_of_every_split_have_the_metrics_own_column(tmp_path, column):
    ours = evaluated(tmp_path / "a.parquet", [True, True, False], column=column)
    theirs = evaluated(tmp_path / "b.parquet", [True, False, False], column=column)
    assert contrast([ours], [theirs], column).by_example == interval([0.0, 100.0, 0.0])


@pytest.mark.parametrize("loss", ["no path", "no file", "not parquet", "no column"])
def test_a_lost_file_or_column_leaves_the_seeds(tmp_path, loss):
    theirs = evaluated(tmp_path / "b.parquet", [True, False])
    ours = evaluated(tmp_path / "a.parquet", [True, True])
    if loss == "no path":
        ours = replace(ours, examples=None)
    elif loss == "no file":
        ours.examples.unlink()
    elif loss == "not parquet":
        ours.examples.write_text("torn")
    else:
        evaluated(ours.examples, [True, True], column="aa")
    found = contrast([ours], [theirs])
    assert found.by_seed == Interval(50.0, None, 1)
    assert found.by_example is None


def test_one_lost_file_among_the_repetitions_is_not_averaged_over(tmp_path):
    ours = [evaluated(tmp_path / f"a{s}.parquet", [True, True], seed=s) for s in range(2)]
    theirs = [evaluated(tmp_path / f"b{s}.parquet", [True, False], seed=s) for s in range(2)]
    ours[1].examples.unlink()
    found = contrast(ours, theirs)
    assert found.by_seed.n == 2
    assert found.by_example is None


def test_indices_of_other_images_are_not_joined(tmp_path):
    ours = evaluated(tmp_path / "a.parquet", [True, True], labels=[3, 4])
    theirs = evaluated(tmp_path / "b.parquet", [True, False], labels=[3, 5])
    assert contrast([ours], [theirs]).by_example is None


def test_rows_without_a_common_example_have_no_number_by_example(tmp_path):
    ours = evaluated(tmp_path / "a.parquet", [True], index=[0])
    theirs = evaluated(tmp_path / "b.parquet", [True], index=[1])
    assert contrast([ours], [theirs]).by_example is None


def evaluate_network(path, seed):
    """Samples by metric of an untrained network, as an evaluation writes them."""
    images = torch.randint(0, 256, (60, 1, 4, 4), generator=generator(0, "test"), dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    attacks = {"clean": None, "fgsm": Fgsm(), "spsa": Spsa(4, 2, n=25)}
    found = evaluate(net, images, torch.arange(60) % 3, Request(attacks, 0.02, n=40))
    found.examples.to_parquet(path, index=False)
    return {
        entry.metric: Sample("seed=0", entry.value, entry.n, path.stem, path)
        for entry in found.entries
    }


def test_an_evaluations_examples_average_to_its_values(tmp_path):
    ours = evaluate_network(tmp_path / "a.parquet", 1)
    theirs = evaluate_network(tmp_path / "b.parquet", 2)
    table = pd.read_parquet(tmp_path / "a.parquet")
    for metric, n in (("clean", 40), ("fgsm", 40), ("spsa", 25)):
        name = "clean_correct" if metric == "clean" else f"{metric}_robust"
        assert ours[metric].value == pytest.approx(100 * table[name].dropna().mean(), abs=1e-9)
        found = contrast([ours[metric]], [theirs[metric]], metric)
        assert found.by_example.n == n
        assert found.by_example.mean == pytest.approx(found.by_seed.mean, abs=1e-9)
        assert found.by_seed.mean != 0
