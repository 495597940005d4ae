"""Summaries of a number of each image."""

from __future__ import annotations

import pytest
import torch

from ablation.numerics.summaries import distribution, share_below


def test_a_distribution_is_that_of_the_values():
    found = distribution(torch.tensor([4.0, 0.0, 2.0, 1.0, 3.0]))
    wanted = {"mean": 2, "min": 0, "max": 4, "q05": 0.2, "q25": 1, "q50": 2, "q75": 3, "q95": 3.8}
    assert found == pytest.approx(wanted)
    assert set(distribution(torch.tensor([7.0])).values()) == {7.0}


@pytest.mark.parametrize("limit", [8 / 255, 0.031, 0.1])
def test_values_at_the_limit_are_not_below_it_however_they_round(limit):
    assert share_below(torch.full((4,), limit), limit) == 0
    assert share_below(torch.tensor([0.5 * limit, limit, limit, 2 * limit]), limit) == 0.25
