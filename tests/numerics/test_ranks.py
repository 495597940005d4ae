"""Rank correlation and pairs in order, beside all pairs written out and scipy's own."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ablation.numerics.ranks import pair_share, rank_correlation

FEW = st.integers(-2, 2).map(float)
ANY = st.floats(-1e6, 1e6)
PAIRS = st.one_of(
    st.lists(st.tuples(FEW, FEW), max_size=40),
    st.lists(st.tuples(ANY, FEW), max_size=40),
    st.lists(st.tuples(ANY, ANY), max_size=40),
)


def columns(pairs):
    found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def all_pairs(first, second):
    """The share with one comparison per pair."""
    apart = [
        (a, b) if a[0] < b[0] else (b, a)
        for a, b in combinations(zip(first, second, strict=True), 2)
        if a[0] != b[0]
    ]
    return np.mean([low[1] < high[1] for low, high in apart]) if apart else math.nan


def middle_ranks(values):
    """Rank from 1; equal ones share the mean of their places."""
    return np.array(
        [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]
    )


@given(PAIRS)
def test_the_share_of_pairs_is_that_of_all_pairs_written_out(pairs):
    first, second = columns(pairs)
    assert pair_share(first, second) == pytest.approx(all_pairs(first, second), nan_ok=True)


@given(PAIRS)
def test_the_correlation_is_that_of_ranks_counted_one_by_one(pairs):
    first, second = columns(pairs)
    found = rank_correlation(first, second)
    if len({*first}) < 2 or len({*second}) < 2:
        assert math.isnan(found)
        return
    a, b = (middle_ranks(each) - (len(each) + 1) / 2 for each in (first, second))
    assert found == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-12)
    assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert -1 <= found <= 1


@pytest.mark.parametrize(
    ("first", "second", "correlation", "share"),
    [
        ([], [], math.nan, math.nan),
        ([1], [1], math.nan, math.nan),
        ([1, 2], [5, 7], 1, 1),
        ([1, 2], [7, 5], -1, 0),
        ([1, 1], [7, 5], math.nan, math.nan),
        ([1, 2], [5, 5], math.nan, 0),  # a tie in the second is not in order
        ([1, 1, 2], [5, 7, 6], 0, 0.5),  # a tie in the first is no pair
        ([1, 2, 3, 4], [1, 2, 4, 3], 0.8, 5 / 6),
    ],
)
def test_cases_by_hand(first, second, correlation, share):
    first, second = (np.array(each, dtype=np.float64) for each in (first, second))
    assert rank_correlation(first, second) == pytest.approx(correlation, nan_ok=True)
    assert pair_share(first, second) == pytest.approx(share, nan_ok=True)


def test_as_many_images_as_a_test_set_has():
    """Of 50,000,000 pairs those in order are known: where one half is shifted below the other."""
    first = np.arange(10_000.0)
    second = np.roll(first, 5000)
    assert pair_share(first, second) == pytest.approx(2 * math.comb(5000, 2) / math.comb(10_000, 2))
