"""What a boundary search hands on: points, rows, facts; and the settings it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ablation.crafters import BoundarySearch, FabSearch, LinearSearch
from ablation.numerics.boundary import Boundary
from ablation.types import Batch, Crafted
from tests.support.linear import B3, W3, array, close

RADII = torch.full((4,), 0.1)


@dataclass(frozen=True)
class Told:
    """A search whose result is known: points 0.1 up, linearised 0.2 up."""

    found: tuple[bool, ...]
    gradients: int = 3

    def __call__(self, phi: Any, x: Tensor, eps: Tensor, norm: Any, rng: Any) -> Boundary:
        found = torch.tensor(self.found)
        distance = torch.where(found, 0.1, torch.inf)
        value = array([1.0, 1, 0, -1])
        return Boundary(x + 0.1, distance, found, value, x + 0.2)


def batch() -> Batch:
    x = torch.full((4, 4), 0.5, dtype=torch.float64)
    return Batch(x, torch.zeros(4, dtype=torch.long), torch.arange(4))


def crafted(found: tuple[bool, ...], **settings: Any) -> Crafted:
    views: Any = SimpleNamespace(batch=batch(), forward=lambda x: x @ W3.T + B3)
    search = BoundarySearch(Told(found), **settings)
    return search(views, RADII, torch.Generator())


def test_the_whole_batch_is_handed_on_with_which_are_correct_and_found():
    got = crafted((True, False, True, False))
    assert got.rows is None
    assert torch.equal(got.x, batch().x + 0.1)
    assert got.aux["correct"].tolist() == [True, True, False, False]  # phi > 0
    assert {name: whose.tolist() for name, whose in got.facts.items()} == {
        "correct": [True, True, False, False],
        "found": [True, False, True, False],
    }
    assert torch.equal(crafted((True,) * 4, point="last_iterate").x, batch().x + 0.2)


def test_a_subset_is_what_was_found_with_the_gradients_there():
    got = crafted((False, True, False, True), subset=True)
    assert got.rows is not None
    assert got.rows.tolist() == [1, 3]
    assert got.x.shape == (2, 4)
    assert got.aux["found"].tolist() == [False, True, False, True]
    z = got.x @ W3.T + B3
    rival = 1 + int(z[0, 2] > z[0, 1])
    close(got.aux["grad_norm"], [(W3[0] - W3[rival]).abs().sum().item()] * 2)
    assert not got.x.requires_grad


@pytest.mark.parametrize(("found", "rows"), [((True, False, False, False), []), ((True,) * 4, 4)])
def test_a_single_point_is_left_out_for_batchnorm_cannot_normalise_it(found, rows):
    got = crafted(found, subset=True)
    assert len(got.x) == (rows or 0)
    assert got.facts["found"].tolist() == list(found)


def test_the_filter_keeps_some_of_what_was_found():
    assert "kept" not in crafted((True,) * 4, subset=True).facts
    got = crafted((True,) * 4, subset=True, filtered=True)  # all pixels moved alike: none is flat
    assert not got.facts["kept"].any()
    assert got.facts["found"].all()
    assert len(got.x) == 0


@pytest.mark.parametrize(("subset", "steps"), [(False, 3), (True, 4)])
def test_a_subset_costs_a_gradient_more(subset, steps):
    assert BoundarySearch(Told((True,) * 4), subset=subset).steps == steps


def test_a_search_counts_its_gradients():
    assert FabSearch(steps=5, restarts=3).gradients == 15
    assert LinearSearch().gradients == 1


@pytest.mark.parametrize(
    "settings",
    [
        *({"steps": 0}, {"restarts": 0}, {"eta": 0.99}, {"beta": 0}, {"beta": 1.01}),
        *({"alpha_max": -0.01}, {"alpha_max": 1.01}),
    ],
)
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FabSearch(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        *({"steps": 1, "restarts": 1}, {"eta": 1}, {"beta": 1}, {"beta": 0.01}),
        *({"alpha_max": 0}, {"alpha_max": 1}),
    ],
)
def test_settings_at_their_limits_are_legal(settings):
    FabSearch(**settings)
