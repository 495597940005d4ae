"""A pass on what is left of a batch: a single image, where BatchNorm needs two."""

from __future__ import annotations

import contextlib

import pytest
import torch

from ablation.budgets import Fixed
from ablation.errors import InputError
from ablation.models import ResNet, build_model
from ablation.terms import CrossEntropy
from ablation.training.method import Method, Slot, parse_passes
from ablation.training.step import train_step
from ablation.training.views import StepViews
from ablation.types import Batch, Clock
from tests.support.parts import Boundary, sgd

METHOD = Method(
    {"adv": Boundary(label=1)},
    Fixed(0.1),
    parse_passes("craft:adv", "nat", "adv", "step"),
    {"ce": Slot(CrossEntropy("nat")), "robust": Slot(CrossEntropy("adv"))},
)
"""Crafts points for images of class 0 only."""


def step(labels: list[int], size: int) -> None:
    net = build_model(ResNet((1, 1, 1, 1), width=2), channels=1, size=size, classes=3)
    x = torch.rand(len(labels), 1, size, size, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.tensor(labels), torch.arange(len(labels)))
    train_step(METHOD, net, sgd(net), batch, Clock(0, 0), seed=0)


def test_a_pass_on_a_single_image_says_what_is_wrong():
    with pytest.raises(InputError, match=r"pass adv: a single image .* larger batch_size"):
        step([0, 1, 2, 1], size=8)


@pytest.mark.parametrize(("labels", "size"), [([0, 0, 1], 8), ([1, 1, 2], 8), ([0, 1, 2], 16)])
def test_two_images_or_none_or_a_larger_map_pass(labels, size):
    step(labels, size)


def test_a_search_in_training_mode_says_it_too():
    net = build_model(ResNet((1, 1, 1, 1), width=2), channels=1, size=8, classes=3)
    batch = Batch(torch.rand(3, 1, 8, 8), torch.arange(3), torch.arange(3))
    views = StepViews(net, batch, Clock(0, 0), contextlib.nullcontext)
    with views.searching("train", None):
        assert views.forward(batch.x).shape == (3, 3)
        with pytest.raises(InputError, match="attack in training mode: a single image"):
            views.forward(batch.x[:1])
    with views.searching("eval", None):
        assert views.forward(batch.x[:1]).shape == (1, 3)
