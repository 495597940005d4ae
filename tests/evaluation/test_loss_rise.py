"""The rise of the loss under attack: MWPB's Theorem 1, where it holds and where it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ablation.errors import NonFiniteError
from ablation.evaluation import LossRise, Pgd, Request, describe, evaluate
from ablation.reports.deviations import IMMATERIAL, mismatches
from ablation.reports.publish import UNDRAWN
from tests.support.configs import compose_config

EPS = 8 / 255


def attack(**more) -> Pgd:
    given: dict[str, Any] = {"eps": EPS, "norm": "linf", "step_size": 0.25} | more
    return Pgd(steps=10, start="clean", **given)


class Linear(nn.Module):
    """Two classes with logits 0 and w x + b, of images [N, 1, 1, 2]."""

    def __init__(self, *weight: float, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(z), z], 1)


def inner(n=40, seed=0):
    """Images that the attack leaves inside [0, 1], and labels."""
    rng = torch.Generator().manual_seed(seed)
    x = EPS + (1 - 2 * EPS) * torch.rand(n, 1, 1, 2, generator=rng)
    return x, torch.randint(2, (n,), generator=rng)


def run(net, x, y, measure=None, **more):
    measure = LossRise(attack()) if measure is None else measure
    found = evaluate(net, x, y, Request({"clean": None, "rise": measure}, 0.1, **more))
    return found.entries[1], found


# In closed form -----------------------------------------------------------------------------------


def test_a_linear_network_obeys_the_theorem_and_its_rise_saturates():
    net, (x, y) = Linear(30.0, -50.0, bias=8.0), inner()
    entry, found = run(net, x, y)
    sign = 2 * y.double() - 1
    margin = sign * (x.flatten(1).double() @ torch.tensor([30.0, -50.0]).double() + 8)
    shift = 80 * EPS  # eps ||w||_1
    clean, attacked = (torch.nn.functional.softplus(-m) for m in (margin, margin - shift))
    rise = torch.tensor(found.examples["rise"].to_numpy())
    loss = torch.tensor(found.examples["rise_clean_loss"].to_numpy())
    torch.testing.assert_close(loss, clean, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rise, attacked - clean, atol=4e-5, rtol=1e-4)
    assert rise.max() == pytest.approx(shift, abs=1e-3)  # far on the wrong side, CE is linear
    assert (rise <= shift + 1e-4).all()
    assert entry.value > 0.99
    assert entry.params["mean_rise"] == pytest.approx(rise.mean().item())


def test_to_first_order_the_rise_is_the_share_of_the_loss_that_theorem_1_has():
    """(1 - exp(-CE)) eps ||w||_1, of a small radius."""
    net, (x, y) = Linear(3.0, -2.0), inner()
    _, found = run(net, x, y, LossRise(attack(eps=1e-3)))
    loss, rise = (found.examples[name].to_numpy() for name in ("rise_clean_loss", "rise"))
    np.testing.assert_allclose(rise, (1 - np.exp(-loss)) * 5e-3, rtol=5e-3)


def test_where_high_losses_lie_in_flat_regions_the_theorem_is_wrong():
    class Bent(nn.Module):
        """Steep where class 1 is right, flat where it is wrong."""

        def forward(self, x: Tensor) -> Tensor:
            u = x.flatten(1)[:, 0] - 0.5
            z = torch.where(u > 0.1, 10 * u, 0.01 * u - 3)
            return torch.stack([torch.zeros_like(z), z], 1)

    x = torch.tensor([0.05, 0.15, 0.25, 0.7, 0.8, 0.9]).view(6, 1, 1, 1)
    entry, found = run(Bent(), x, torch.ones(6).long())
    assert found.examples["clean_correct"].tolist() == 3 * [False] + 3 * [True]
    # Within the flat half the rise hardly differs; each of its losses is above all of the others.
    assert entry.value < 0
    assert entry.params["pair_share"] < 0.5
    assert entry.params["pair_share_correct"] == 1
    assert entry.params["correlation_correct"] == pytest.approx(1)
    assert entry.params["correct"] == 3


def test_confident_images_differ_in_their_loss():
    """In fp32 the cross-entropy is 0 at every logit gap above 16.6."""
    values = LossRise(attack(eps=0.0)).measure(
        lambda x: torch.stack([x.flatten(1)[:, 0] * 40, torch.zeros(len(x))], 1),
        torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1, 1).requires_grad_(),
        torch.zeros(3).long(),
    )
    torch.testing.assert_close(
        values[:, 1], torch.exp(-torch.tensor([20.0, 24.0, 28.0]).double()), atol=0.0, rtol=1e-4
    )
    assert (values[:, 0] == 0).all()


# In an evaluation ---------------------------------------------------------------------------------


def test_the_records_keep_rise_and_clean_loss_of_the_images_measured():
    net, (x, y) = Linear(3.0, -2.0), inner()
    entry, found = run(net, x, y, LossRise(attack(), n=15))
    measured = found.examples[["rise", "rise_clean_loss"]].notna()
    assert measured["rise"].equals(measured["rise_clean_loss"])
    assert (measured["rise"].sum(), entry.n, entry.unit) == (15, 15, "correlation")
    whole = run(net, x, y)[1].examples
    for name in ("rise", "rise_clean_loss"):
        kept = found.examples[name].dropna()
        np.testing.assert_allclose(kept, whole.loc[kept.index, name], atol=1e-6)


def test_where_all_losses_are_the_same_there_is_no_correlation():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * torch.zeros(1, 2)

    x, _ = inner(5)
    entry, found = run(Constant(), x, torch.zeros(5).long())
    assert math.isnan(entry.value)
    assert math.isnan(entry.params["pair_share"])
    (flag,) = (flag for flag in found.flags if flag.startswith("rise:"))
    assert flag.endswith("all the same: no correlation")


def test_logits_that_are_not_finite_at_a_point_are_an_error():
    class Cliff(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)[:, 0]
            z = torch.where(z < 0.5, torch.full_like(z, -torch.inf), z)
            return torch.stack([torch.zeros_like(z), z], 1)

    with pytest.raises(NonFiniteError, match="points found by the attack of loss_rise"):
        run(Cliff(), torch.full((1, 1, 1, 1), 0.51), torch.ones(1).long())


def test_its_numbers_compare_where_the_attack_is_the_same():
    net, (x, y) = Linear(3.0, -2.0), inner()
    params = run(net, x, y)[0].params
    wanted = describe(LossRise(attack()), 0.3, "l2", 10)
    assert mismatches(params, wanted) == ()
    assert set(params) - set(wanted) <= set(IMMATERIAL)
    for other in (attack(eps=0.2), attack(norm="l2"), attack(step_size=0.5)):
        assert mismatches(params, describe(LossRise(other), 0.3, "linf", 10))


def test_the_preset_measures_training_and_test_images_at_the_radius_of_training():
    config = compose_config("evaluation=mwpb_diagnostics", "eps=0.2", "evaluation.eps=0.05")
    train, test = (config.evaluation.attacks[name] for name in ("loss_rise_train", "loss_rise"))
    assert isinstance(train, LossRise)
    assert isinstance(test, LossRise)
    assert (train.split, train.n, test.split, test.n) == ("train", 1000, None, None)
    assert train.attack == test.attack
    facts = test.describe(0.05, 10)
    assert (facts["eps"], facts["steps"], facts["start"]) == (0.2, 10, "clean")
    assert facts["step_size"] == pytest.approx(2 / 255)


def test_the_report_tells_a_command_that_runs():
    """``ablation-evaluate`` refuses the preset without a radius and a norm."""
    assert "evaluation=mwpb_diagnostics eps=8/255 norm=linf" in UNDRAWN["loss_rise"]
