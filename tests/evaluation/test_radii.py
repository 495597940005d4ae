"""The radii that a trained network would give images as they are (MWPB, eq. 2 to 4)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ablation.config import evaluations
from ablation.evaluation import MarginWeightedRadius, Request, describe, evaluate
from ablation.reports.deviations import mismatches
from tests.support.configs import compose_config

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.5, 1.0]])
LABELS = torch.tensor([0, 2])
BASE = 8 / 255
RADII = [0.040038, 0.027948]


class Pixels(nn.Module):
    """Logits are pixels, six to a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)


def test_radii_have_their_closed_form():
    measure = MarginWeightedRadius(alpha=0.58, base=BASE)
    found = measure.measure(lambda x: LOGITS, torch.zeros(2, 1, 1, 3), LABELS)
    assert found.tolist() == pytest.approx(RADII, abs=5e-7)


@pytest.mark.parametrize(("alpha", "base"), [(0.0, BASE), (0.0, 0.031)])
def test_without_alpha_every_radius_is_the_base_and_none_below(alpha, base):
    measure = MarginWeightedRadius(alpha=alpha, base=base)
    reading = measure.read(
        measure.measure(lambda x: LOGITS, torch.zeros(2, 1, 1, 3), LABELS), torch.ones(2).bool()
    )
    assert reading.value == base
    assert reading.facts["below_base"] == 0


@pytest.mark.parametrize(("margin", "radius"), [(-1.0, 0.017565), (0.0, BASE), (1.0, 0.056033)])
def test_sure_networks_give_the_extremes(margin, radius):
    logits = torch.tensor([[100.0 * margin, 0.0]])
    found = MarginWeightedRadius(alpha=0.58, base=BASE).measure(
        lambda x: logits, torch.zeros(1, 1, 1, 2), torch.tensor([0])
    )
    assert found.item() == pytest.approx(radius, abs=5e-7)


def test_the_number_is_of_all_images_with_its_distribution():
    images = (LOGITS / 6).view(2, 1, 1, 3)
    measure = MarginWeightedRadius(alpha=0.58, base=BASE)
    request = Request({"radius_clean_images": measure}, eps=0.1, split="train")
    found = evaluate(Pixels(), images, LABELS, request)
    (entry,) = [each for each in found.entries if each.metric == "radius_clean_images"]
    assert (entry.unit, entry.split, entry.n) == ("radius", "train", 2)
    assert entry.value == pytest.approx(sum(RADII) / 2, abs=1e-6)
    assert entry.params["below_base"] == 0.5
    assert entry.params["min"] == pytest.approx(RADII[1], abs=1e-6)
    assert entry.params["max"] == pytest.approx(RADII[0], abs=1e-6)
    assert entry.params["q50"] == pytest.approx(sum(RADII) / 2, abs=1e-6)
    examples = found.examples["radius_clean_images"].tolist()
    assert examples == pytest.approx(RADII, abs=1e-6)
    wanted = describe(measure, 0.2, "linf", 3)
    assert mismatches(entry.params, wanted) == ()
    other = describe(MarginWeightedRadius(alpha=0.42, base=BASE), 0.2, "linf", 3)
    assert mismatches(entry.params, other) == ("alpha 0.58, not 0.42",)


def test_an_evaluation_measures_them_on_training_images():
    config = compose_config("evaluation=mwpb_radii")
    test, train = evaluations.evaluations(config)
    assert (test.split, list(test.attacks)) == ("test", ["clean"])
    assert (train.split, list(train.attacks)) == ("train", ["radius_clean_images"])
    measure = train.attacks["radius_clean_images"]
    assert isinstance(measure, MarginWeightedRadius)
    assert math.isclose(measure.base, BASE)


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match=r"base=-0\.1 must not be negative"):
        MarginWeightedRadius(alpha=1.0, base=-0.1)
