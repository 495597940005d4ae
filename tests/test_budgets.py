"""Radii of training attacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ablation.budgets import Fixed


def test_a_fixed_radius_is_scaled_and_the_same_for_all():
    views: Any = SimpleNamespace(batch=SimpleNamespace(x=torch.zeros(3, 1, 2, 2)))
    assert torch.equal(Fixed(0.25)(views), torch.full((3,), 0.25))
    assert torch.equal(Fixed(0.25, 0.5)(views), torch.full((3,), 0.125))
    assert not Fixed(0, 0)(views).any()


@pytest.mark.parametrize("settings", [(-0.01, 1), (0.1, -0.01)])
def test_negative_radii_are_refused(settings):
    with pytest.raises(ValueError, match="must not be negative"):
        Fixed(*settings)
