"""The margin at boundary points: DyART's closed form (spec 7.6) and its filter."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ablation.components import (
    ClosedFormGradient,
    ExponentialLoss,
    FabMargin,
    MarginMaximization,
)
from ablation.models.net import Net
from ablation.training.method import Component
from ablation.training.step import total_loss
from tests.support.linear import CIRC, array, close
from tests.support.margins import (
    NEAR_WRONG_FAR,
    TWICE,
    along_scaling,
    arm,
    batch_of,
    costs,
    gradients,
    l3,
    linear_net,
    seen,
    two,
    weight_and_bias,
)


def disc_net() -> Net:
    """phi of class 0 is r^2 - ||x - 1/2||^2, r^2 = 0.09 a parameter."""

    class Disc(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square = nn.Parameter(torch.tensor(0.09))

        def forward(self, x: Tensor) -> Tensor:
            phi = self.square - ((x.flatten(1) - 0.5) ** 2).sum(1)
            return torch.stack([phi, 0 * phi], 1)

    net = Net(Disc(), nn.Identity(), mean=None, std=None).double()
    with torch.no_grad():
        net.get_parameter("body.square").fill_(0.09)  # in float64
    return net


def test_circ_taylor_overestimates_and_the_closed_form_is_the_true_derivative():
    net, batch = disc_net(), batch_of(CIRC.repeat(2, 1), [0, 0])
    taylor = 1 - costs(arm(MarginMaximization(gamma=1.0)), net, batch)[0]
    assert taylor.item() == pytest.approx(0.2583333, abs=1e-7)
    assert gradients(taylor, net)["body.square"].item() == pytest.approx(3.3333333, abs=1e-6)
    method = arm(MarginMaximization(gamma=1.0), FabMargin(start="clean"), ClosedFormGradient())
    margin = 1 - costs(method, net, batch)[0]
    # FAB stops up to 1.5% beyond (spec 5.6); the derivative there is that of its own level set.
    assert margin.item() == pytest.approx(0.1356537, rel=0.015)
    slope = gradients(margin, net)["body.square"].item()
    assert slope == pytest.approx(1.1867817, rel=0.015)
    point = seen(method, net, batch).x("boundary")[0].flatten()
    assert slope == pytest.approx(1 / (2 * (point - 0.5).sum().item()), rel=1e-7)


def test_box_closed_form_divides_by_the_whole_norm_as_dyarts_code():
    net = linear_net(array([[1.0, 1], [0, 0]]), array([-0.3, 0]))
    batch = batch_of(array([[0.1, 0.8]]).repeat(2, 1), [0, 0])
    margin = 1 - costs(arm(MarginMaximization(gamma=1.0), ClosedFormGradient()), net, batch)[0]
    weight, bias = weight_and_bias(margin, net)
    assert margin.item() == pytest.approx(0.5, abs=1e-12)
    close(bias[0], 0.5)
    close(weight[0], [0, 0.15])


@pytest.mark.parametrize(
    ("norm", "distance", "gradient"),
    [
        ("linf", 0.0692308, [0.1020710, 0.0710059, 0.0828402, 0.0902367]),
        ("l2", 0.1206723, [0.1902735, 0.1331011, 0.1472624, 0.1408597]),
    ],
)
def test_the_closed_form_on_l3_is_the_exact_gradient(norm, distance, gradient):
    net = l3()
    method = arm(MarginMaximization(gamma=1.0, norm=norm), ClosedFormGradient())
    margin = 1 - costs(method, net, TWICE)[0]
    assert margin.item() == pytest.approx(distance, abs=1e-7)
    weight, bias = weight_and_bias(margin, net)
    close(weight[0], gradient)
    close(weight[2], (-weight[0]).tolist())
    if norm == "linf":
        close(bias[0], 0.1923077)
    assert abs(along_scaling(margin, net)) < 1e-14
    exact = arm(MarginMaximization(gamma=1.0, norm=norm, gradient="exact"))
    also = gradients(1 - costs(exact, net, TWICE)[0], net)
    torch.testing.assert_close(weight, also["head.linear.weight"], atol=1e-8, rtol=0)


def surrogate(x: Tensor, reduction: str, *more: Component) -> tuple[Tensor, Tensor]:
    """Gradient of 1000 times the margin term with respect to (w, c) of TWO."""
    net = two()
    exponential = ExponentialLoss(reduction=cast(Any, reduction))
    method = arm(MarginMaximization(coef=1000), exponential, *more, ClosedFormGradient())
    _, parts = total_loss(method, seen(method, net, batch_of(x, [0, 0, 0])))
    weight, bias = weight_and_bias(parts["margin"], net)
    torch.testing.assert_close(weight[1], -weight[0])  # phi = z_0 - z_1
    return weight[0], bias[0]


def test_the_closed_form_is_dyarts_surrogate():
    weight, bias = surrogate(NEAR_WRONG_FAR, "batch")
    close(weight, [-23.458748, -21.783123], atol=1e-6)
    close(bias, -50.268745, atol=1e-6)
    weight, bias = surrogate(NEAR_WRONG_FAR, "correct")
    close(weight, [-35.188122, -32.674685], atol=1e-6)
    close(bias, -75.403118, atol=1e-6)


def test_the_closed_form_at_fabs_points_is_near_the_exact_points():
    weight, bias = surrogate(NEAR_WRONG_FAR, "batch", FabMargin())
    assert weight.tolist() == pytest.approx([-23.458748, -21.783123], rel=0.005)
    assert bias.item() == pytest.approx(-50.268745, rel=0.005)
    assert weight[0] != pytest.approx(-23.458748, rel=1e-6)


def test_margins_beyond_gamma_have_no_closed_form_gradient():
    weight, bias = surrogate(array([[0.6, 0.5], [0.4, 0.6], [0.95, 0.1]]), "batch")
    assert not weight.any()
    assert not bias.any()


def test_the_filter_drops_points_that_moved_in_all_pixels_without_a_crash():
    net = two()
    parts = ExponentialLoss(), FabMargin(start="clean"), ClosedFormGradient(filter="kkt")
    method = arm(MarginMaximization(coef=1000), *parts)
    views = seen(method, net, batch_of(NEAR_WRONG_FAR, [0, 0, 0]))
    facts = views.crafted("boundary").facts
    assert [facts[name].double().mean().item() for name in ("correct", "found", "kept")] == [
        2 / 3,
        2 / 3,
        0,
    ]
    assert total_loss(method, views)[1]["margin"] == 0
