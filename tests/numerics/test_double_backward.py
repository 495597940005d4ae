"""Convolutions and BatchNorm that are cheap to differentiate twice, against torch's own."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from ablation.models import ResNet, build_model
from ablation.numerics.double_backward import TwiceDifferentiable

torch.manual_seed(0)
CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "uneven": nn.Conv2d(4, 6, (3, 1), stride=(1, 2), padding=(0, 1)),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "dilation": nn.Conv2d(4, 6, 3, dilation=2),
    "same": nn.Conv2d(4, 6, 3, padding="same"),
    "reflect": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
}


def network(name: str, affine: bool = True) -> nn.Sequential:
    """A convolution between others, with what is around it in the networks of the papers."""
    norm = nn.BatchNorm2d(6, affine=affine)
    norm.running_mean = torch.randn(6)
    norm.running_var = torch.rand(6) + 0.5
    middle = (copy.deepcopy(CONVOLUTIONS[name]), norm, nn.ReLU(inplace=True))
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *middle)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)).double()


def derivatives(net: nn.Module, x: torch.Tensor, cheap: bool) -> list[torch.Tensor]:
    """Logits, the input gradient of their smooth function, and a penalty's to the parameters."""
    points = x.clone().requires_grad_()
    with TwiceDifferentiable() if cheap else contextlib.nullcontext():
        z = net(points)
    (first,) = torch.autograd.grad(z.logsumexp(1).sum(), points, create_graph=True)
    loss = first.square().sum() + z.square().sum()
    return [z, first, *torch.autograd.grad(loss, list(net.parameters()))]


def assert_same(net: nn.Module, x: torch.Tensor) -> None:
    pairs = zip(derivatives(net, x, True), derivatives(net, x, False), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_first_and_second_derivatives_are_torchs(name, layout):
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64).contiguous(memory_format=layout)
    assert_same(network(name).eval().to(memory_format=layout), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_either_mode(training, affine):
    net = network("plain", affine).train(training)
    assert_same(net, torch.randn(3, 3, 9, 9, dtype=torch.float64))


def test_a_residual_network():
    net = build_model(ResNet(blocks=(1, 1)), channels=3, size=8, classes=4).double().eval()
    assert_same(net, torch.rand(2, 3, 8, 8, dtype=torch.float64))


def test_frozen_parameters_take_no_gradient():
    net = network("plain").eval()
    net[2].requires_grad_(False)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    with TwiceDifferentiable():
        z = net(x)
    (first,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    first.square().sum().backward()
    assert net.get_parameter("2.weight").grad is None
    assert net.get_parameter("0.weight").grad is not None


def test_running_statistics_may_move_on_before_the_backward_pass():
    net = network("plain").eval()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    expected = derivatives(net, x, False)[2:]
    points = x.clone().requires_grad_()
    with TwiceDifferentiable():
        z = net(points)
    (first,) = torch.autograd.grad(z.logsumexp(1).sum(), points, create_graph=True)
    with torch.no_grad():
        net.train()(x)
    found = torch.autograd.grad(first.square().sum() + z.square().sum(), list(net.parameters()))
    torch.testing.assert_close(list(found), expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_parameters_cannot_be_differentiated_again():
    net = network("plain").eval()
    with TwiceDifferentiable():
        z = net(torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True))
    (first,) = torch.autograd.grad(
        z.square().sum(), net.get_parameter("2.weight"), create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()
