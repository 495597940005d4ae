"""A training step launches no more on a GPU than the recorded table says; none is needed."""

from __future__ import annotations

import json

import pytest

from benchmarks.launches import FIGURES, ROWS, counted
from tests.support.sampling import some_of

HELD = ("at", "trades", "dyart", "at, emr approximate")


@pytest.mark.parametrize("row", some_of(HELD, 4))
def test_a_step_launches_what_the_table_says(row):
    recorded = json.loads(FIGURES.read_text())
    assert recorded.keys() == ROWS.keys()
    (found,) = counted({row: ROWS[row]}, ("resnet18",)).values()
    for column, number in found.items():
        assert 0.9 * recorded[row][column] < number <= recorded[row][column], column
