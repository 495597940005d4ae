"""Penalties by themselves: DOSE's settings, where they end, and what is refused."""

from __future__ import annotations

import math

import pytest

from ablation.terms.margin_penalties import Exponential, Hinge
from tests.support.linear import GAMMA, array, close

MARGINS = array([-0.1, 0, GAMMA / 2, GAMMA, 1])


def test_the_settings_are_doses():
    close(Hinge()(MARGINS), [GAMMA + 0.1, GAMMA, GAMMA / 2, 0, 0])
    close(Exponential()(MARGINS[1:]), [1 / 3, math.exp(-1.5 * GAMMA) / 3, 0, 0])


@pytest.mark.parametrize(
    ("penalty", "settings"),
    [(Hinge, {"gamma": 0}), (Exponential, {"gamma": 0}), (Exponential, {"alpha": 0})],
)
def test_a_penalty_of_nothing_is_refused(penalty, settings):
    with pytest.raises(ValueError, match="must be positive"):
        penalty(**settings)
    penalty(**dict.fromkeys(settings, 0.01))
