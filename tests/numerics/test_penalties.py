"""Weighted logits in closed form; the penalties are compared with plain code in test_emr."""

from __future__ import annotations

import math

import pytest

from ablation.numerics.penalties import weighted_logit
from tests.support.linear import array, close


@pytest.mark.parametrize(("temperature", "share"), [(None, 1 / 2), (1.0, 3 / 4), (0.5, 9 / 10)])
def test_logits_are_weighted_by_their_softmax(temperature, share):
    a = math.log(3)
    z = array([[0, a], [0, -a], [a, 0]])
    close(weighted_logit(z, temperature), [share * a, (share - 1) * a, share * a])
