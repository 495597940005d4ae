"""The divergence between two views, exact and with the constant of mart.py."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from ablation.crafters import BoundarySearch, LinearSearch
from ablation.numerics.functional import kl_divergence, kl_divergence_official
from ablation.terms import KL
from ablation.training.method import Slot
from ablation.training.views import StepViews
from ablation.types import Clock, Crafted
from tests.support.margins import STANDARD
from tests.support.parts import small_batch, small_net


def views() -> StepViews:
    """Clean images, and other images in the place of adversarial ones."""
    made = StepViews(small_net(), small_batch(), Clock(0, 0), nullcontext)
    made.add("adv", Crafted(small_batch(1).x))
    made.run("nat")
    made.run("adv")
    return made


@pytest.mark.parametrize(
    ("constants", "divergence"), [("exact", kl_divergence), ("official", kl_divergence_official)]
)
def test_the_clean_prediction_is_the_target(constants, divergence):
    made = views()
    loss = KL("nat", "adv", constants)(made)
    expected = divergence(made.logits("nat"), made.logits("adv"))
    assert torch.equal(loss, expected)
    assert loss.shape == (8,)
    assert not torch.allclose(loss, divergence(made.logits("adv"), made.logits("nat")), rtol=1e-3)


def test_the_constant_is_inside_the_logarithm_of_the_perturbed_prediction():
    z = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    certain = torch.tensor([[40.0, 0.0]], dtype=torch.float64)  # p' of the second class is 4e-18
    exact, official = kl_divergence(z, certain), kl_divergence_official(z, certain)
    entropy = torch.log(torch.tensor(0.5)).item()
    assert exact.item() == pytest.approx(entropy + 20)
    second = torch.tensor(1e-12 + 4.248354255291589e-18, dtype=torch.float64).log().item()
    assert official.item() == pytest.approx(entropy - 0.5 * second, rel=1e-9)


@pytest.mark.parametrize("subset", [False, True])
def test_a_divergence_needs_both_views_of_every_sample(subset):
    method = STANDARD.with_crafter("boundary", BoundarySearch(LinearSearch(), subset=subset))
    found = list(method.with_term("kl", Slot(KL("nat", "boundary"))).problems())
    assert any("terms.kl needs every sample" in problem for problem in found) == subset
