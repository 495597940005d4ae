"""Hypersphere embedding and large-margin softmax: numbers, limits, gradients, steps, in float64."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation import models, terms
from ablation.errors import ConfigError
from ablation.models import HEADS, Mlp, build_model
from ablation.models.folding import Folded
from ablation.models.heads import psi
from ablation.models.net import Net
from ablation.training.method import Method
from ablation.training.step import train_step
from ablation.training.views import StepViews
from ablation.types import Clock
from tests.support.configs import compose_config
from tests.support.parts import Body, largest_difference, sgd, small_batch, small_net

FEATURES = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
COSINES = torch.tensor([[0.8, 0.1, -0.3]], dtype=torch.float64)
"""The specification's feature, its weights, and cosines given directly."""


def head(factory: Any, weight: Tensor = W) -> Any:
    built = factory(features=weight.shape[1], classes=weight.shape[0]).double()
    with torch.no_grad():
        built.linear.weight.copy_(weight)
    return built


def loss(built: Any, y: int, features: Tensor = FEATURES) -> float:
    label = torch.tensor([y])
    logits = built(features)
    return F.cross_entropy(built.loss_logits(features, logits, label), label).item()


# Hypersphere embedding


@pytest.mark.parametrize(
    ("scale", "margin", "expected"),
    [(10, 0.2, 0.0068379), (15, 0.2, 0.00055430), (10, 0, 0.00092815), (1, 0, 0.6040189)],
)
def test_he_loss_of_given_cosines(scale, margin, expected):
    built = models.Hypersphere(scale, margin)(2, 3)
    y = torch.tensor([0])
    logits = scale * COSINES
    adjusted = built.loss_logits(FEATURES, logits, y)  # type: ignore[operator]
    assert F.cross_entropy(adjusted, y).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("weights", ["normalized", "projected"])
@pytest.mark.parametrize(
    ("scale", "margin", "expected"),
    [(10, 0.2, 4.0195040), (15, 0.2, 6.0025268), (10, 0, 2.1281426)],
)
def test_he_of_a_feature(scale, margin, expected, weights):
    built = head(models.Hypersphere(scale, margin, weights))
    cosines = built(FEATURES) / scale
    assert cosines.tolist()[0] == pytest.approx([0.6, 0.8, 0.1414214], abs=1e-7)
    assert loss(built, 0) == pytest.approx(expected, abs=1e-7)


def test_he_logits_are_bounded_and_ignore_scales():
    built = head(models.Hypersphere(), 7 * W)
    torch.testing.assert_close(built(7 * FEATURES), head(models.Hypersphere())(FEATURES))
    logits = build("hypersphere")(1e3 * torch.rand(50, 2, 5, 5, dtype=torch.float64) - 500)
    assert logits.abs().max() <= 10 + 1e-12


def build(name: str) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(Body(), HEADS[name](features=6, classes=3), mean=None, std=None).double()


def test_projected_rows_have_norm_1_after_a_training_pass_and_the_linear_gradient():
    built = head(models.Hypersphere(weights="projected"))
    built.eval()
    before = built(FEATURES)
    torch.testing.assert_close(built.linear.weight, W)
    built.train()
    torch.testing.assert_close(built(FEATURES), before)
    rows = F.normalize(W)
    torch.testing.assert_close(built.linear.weight, rows)
    built(FEATURES)[0, 1].backward()
    wanted = torch.zeros(3, 2, dtype=torch.float64)
    wanted[1] = 10 * FEATURES[0] / 5
    torch.testing.assert_close(built.linear.weight.grad, wanted)


def test_normalized_rows_have_a_gradient_across_them():
    built = head(models.Hypersphere())
    built(FEATURES).square().sum().backward()
    assert (built.linear.weight.grad * W).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(built.linear.weight, W)


# Large-margin softmax


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (0, [1, 1, 1, 1]),
        (60, [0.5, -0.5, -1, -1.5]),
        (100, [-0.173648, -1.060307, -2.5, -3.233956]),
        (150, [-0.866025, -2.5, -4, -5.5]),
        (180, [-1, -3, -5, -7]),
    ],
)
def test_psi(degrees, expected):
    cosine = torch.tensor(math.cos(math.radians(degrees)), dtype=torch.float64)
    found = [psi(cosine, m).item() for m in (1, 2, 3, 4)]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_psi_falls_without_jumps(m):
    angles = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    values = psi(angles.cos(), m)
    assert (values.diff() <= 1e-12).all()
    assert values.diff().abs().max() <= m * math.pi / 20_000 + 1e-9
    knots = torch.arange(1, m, dtype=torch.float64) * math.pi / m
    left, right = psi((knots - 1e-9).cos(), m), psi((knots + 1e-9).cos(), m)
    torch.testing.assert_close(left, right, atol=1e-7, rtol=0)


def test_psi_has_finite_gradients_at_both_ends():
    cosine = torch.tensor([-1.0, 1.0, 1.0 + 1e-7], dtype=torch.float64, requires_grad=True)
    psi(cosine, 4).sum().backward()
    assert cosine.grad is not None
    assert cosine.grad.tolist() == pytest.approx([16, 16, 16], rel=1e-4)  # m^2


@pytest.mark.parametrize(
    ("m", "y", "target", "expected"),
    [(4, 0, -5.784, 13.7849125), (1, 0, 3.0, 5.0076207), (4, 1, -8.432, None)],
)
def test_l_softmax_of_a_feature(m, y, target, expected):
    built = head(models.LargeMargin(m))
    logits = built(FEATURES)
    assert logits.tolist() == [[3.0, 8.0, 1.0]]
    adjusted = built.loss_logits(FEATURES, logits, torch.tensor([y]))
    assert adjusted[0, y].item() == pytest.approx(target, abs=1e-7)
    others = [j for j in range(3) if j != y]
    assert torch.equal(adjusted[0, others], logits[0, others])
    if expected is not None:
        assert loss(built, y) == pytest.approx(expected, abs=1e-7)


def test_with_m_1_it_is_the_plain_logits():
    built = head(models.LargeMargin(1))
    logits = built(FEATURES)
    assert built.loss_logits(FEATURES, logits, torch.tensor([0])) is logits
    assert [name for name, _ in built.named_parameters()] == ["linear.weight"]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1000), (600, 593.866), (1000, 421.37), (5000, 16.2055), (10_000, 0.405648)],
)
def test_annealing(step, expected):
    assert models.Annealing()(step) == pytest.approx(expected, rel=2e-5)
    assert models.Annealing(floor=5.0)(30_000) == 5
    assert models.Annealing()(30_000) == pytest.approx(3.1e-6, rel=0.02)


def test_the_margin_is_let_in_by_the_step():
    """lambda = 5: (5 * 3 - 5.784) / 6 = 1.536."""
    body = nn.Flatten()
    built = head(models.LargeMargin(4, models.Annealing(base=5.0, gamma=1.0, power=1.0)))
    net = Net(body, built, mean=None, std=None)
    output, y = net.output(FEATURES), torch.tensor([0])
    assert net.loss_logits(output, y, 0)[0, 0].item() == pytest.approx(1.536)
    assert net.loss_logits(output, y, 10**9)[0, 0].item() == pytest.approx(-5.784, abs=1e-6)
    assert net.loss_logits(output, y)[0, 0].item() == pytest.approx(-5.784)


# Both, in a step


@pytest.mark.parametrize("name", ["hypersphere", "large_margin"])
def test_features_of_zero_have_finite_gradients(name):
    built: Any = HEADS[name](features=4, classes=3)
    features = torch.zeros(2, 4, requires_grad=True)
    y = torch.tensor([0, 1])
    adjusted = built.loss_logits(features, built(features), y)
    F.cross_entropy(adjusted, y).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert built.linear.weight.grad.isfinite().all()


def test_dead_units_under_a_penalty_on_gradients():
    """All features are 0 behind a ReLU, and the penalty is differentiated twice, in fp32."""
    net = build("hypersphere").float()
    with torch.no_grad():
        net.get_parameter("body.layers.4.weight").zero_()
        net.get_parameter("body.layers.4.bias").fill_(-1.0)
    batch = small_batch()
    single = replace(batch, x=batch.x.float())
    penalty = terms.EffectiveWeightNorm()(StepViews(net, single, Clock(0, 0), nullcontext))
    assert penalty.abs().max() == 0
    penalty.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def composed(*overrides: str) -> Method:
    return compose_config("eps=0.1", "attack.steps=2", *overrides).phases[-1].method


OPTIONS = [
    "hypersphere=enabled",
    "hypersphere=official",
    "large_margin_softmax=enabled",
    "large_margin_softmax=annealed",
]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["standard", "at", "trades", "mart"])
def test_any_method_trains_with_any_head(name, option):
    method = composed(f"method={name}", f"component/{option}", "component/emr=probe")
    assert method.head is not None
    net = small_net(head=method.head(6, 3))
    start = [p.clone() for p in net.parameters()]
    optimizer = sgd(net)
    for step in range(2):
        log, _ = train_step(
            method, net, optimizer, small_batch(step), Clock(0, step), seed=0, folded=Folded(net)
        )
        assert log.loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True))
    batch = small_batch()
    output = net.output(batch.x)
    adjusted = net.loss_logits(output, batch.y)
    true = F.one_hot(batch.y, 3) == 1
    assert (adjusted[true] < output.logits[true]).all()
    torch.testing.assert_close(adjusted[~true], output.logits[~true], rtol=0, atol=0)


def test_attack_and_kl_see_no_margin():
    """Two margins: same points, same divergence, another cross-entropy."""
    logs, points = [], []
    for margin in (0.0, 0.5):
        method = composed("method=trades", "component/hypersphere=enabled")
        assert method.head is not None
        net = build("hypersphere")
        net.head = head(models.Hypersphere(10.0, margin), net.get_parameter("head.linear.weight"))
        log, views = train_step(method, net, sgd(net), small_batch(), Clock(0, 0), seed=0)
        logs.append(log)
        points.append(views.x("adv"))
    assert torch.equal(*points)
    assert logs[0].parts["kl"] == logs[1].parts["kl"]
    assert logs[0].parts["ce"] < logs[1].parts["ce"]


def test_a_head_can_be_chosen_with_the_model():
    config = compose_config("model.head=large_margin")
    assert config.model.head == "large_margin"
    net = build_model(
        Mlp(hidden=1, width=8), channels=1, size=8, classes=10, head="hypersphere"
    ).eval()
    assert net(torch.rand(3, 1, 8, 8)).abs().max() <= 10
    other = build_model(Mlp(hidden=1, width=8), channels=1, size=8, classes=10).body
    assert largest_difference(net.body, other) == 0, "another head leaves the body as it is"


@pytest.mark.parametrize("component", ["hypersphere", "large_margin_softmax"])
def test_a_component_does_not_silently_replace_the_head_that_was_asked_for(component):
    with pytest.raises(ConfigError, match=r"model\.head=large_margin: a component brings another"):
        compose_config("model.head=large_margin", f"component/{component}=enabled")


def test_disabled_changes_nothing():
    off = ("component/hypersphere=disabled", "component/large_margin_softmax=disabled")
    assert compose_config(*off).train_id == compose_config().train_id
    assert compose_config(*off).phases[0].method.head is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["component/large_margin_softmax=enabled"], "set component/hypersphere=disabled or"),
        (
            ["component/awp=enabled", "component.hypersphere.weights=projected"],
            "component.hypersphere.weights=normalized or component/awp=disabled",
        ),
        (["component.hypersphere.scale=0"], "scale=0 must be positive"),
        (["component.hypersphere.margin=-1"], "margin=-1 not negative"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_config("component/hypersphere=enabled", *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [("m=0", "at least 1"), ("annealing={base: -1.0}", "no entry may be negative")],
)
def test_wrong_margins_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_config(
            "component/large_margin_softmax=enabled", f"component.large_margin_softmax.{override}"
        )
