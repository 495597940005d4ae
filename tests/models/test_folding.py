"""The folded copy is the network in evaluation mode, and searches on it find the same points."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ablation.models import Cnn, Mlp, PreActResNet, ResNet, TinyCnn, Vgg, WideResNet, build_model
from ablation.models.folding import PRODUCTS, Folded
from ablation.models.heads import Hypersphere
from ablation.numerics.modes import BatchNorm
from ablation.training.step import train_step
from ablation.types import Clock
from tests.support.configs import compose_config
from tests.support.parts import largest_difference, sgd, small_batch, small_net


@pytest.mark.parametrize(
    ("spec", "pairs"),
    [
        (ResNet(width=8), 20),
        (PreActResNet(width=8), 8),
        (WideResNet(depth=10, width=1), 3),
        (WideResNet(depth=10, width=1, variant="emr"), 3),
        (Vgg(width=8), 13),
        (TinyCnn(), 3),
        (Cnn(width=8), 0),
        (Mlp(), 0),
    ],
)
def test_folding_keeps_the_function_and_follows_the_weights(spec, pairs):
    net = build_model(spec, channels=3, size=32, classes=10).double()
    folded = Folded(net)
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for _ in range(2):  # the weights move, the copy follows
        net.train()
        loss = net(x).square().sum()
        net.zero_grad()
        loss.backward()
        torch.optim.SGD(net.parameters(), 1e-3).step()
        net.eval()
        copy = folded.refresh()
        assert _norms(net) - _norms(copy) == pairs
        torch.testing.assert_close(copy(x), net(x), atol=1e-12, rtol=1e-10)
        grads = [torch.autograd.grad(m(p).sum(), p)[0] for m in (copy, net) for p in [_point(x)]]
        torch.testing.assert_close(grads[0], grads[1], atol=1e-12, rtol=1e-9)
    assert not any(p.requires_grad for p in copy.parameters())


def _norms(net: torch.nn.Module) -> int:
    return sum(isinstance(module, BatchNorm) for module in net.modules())


def _point(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


@pytest.mark.parametrize("method", ["at", "trades", "mart"])
def test_training_with_folded_searches_is_training_without(method):
    composed = compose_config(f"method={method}", "eps=8/255").phases[0].method
    plain, fast = small_net(), small_net()
    optimizer, other = sgd(plain), sgd(fast)
    folded = Folded(fast)
    for step in range(3):
        batch, clock = small_batch(step), Clock(0, step)
        train_step(composed, plain, optimizer, batch, clock, seed=0)
        train_step(composed, fast, other, batch, clock, seed=0, folded=folded)
    assert largest_difference(plain, fast) < 1e-12


def test_searches_in_train_mode_do_not_use_the_copy():
    composed = compose_config("attack.bn=train", "eps=8/255").phases[0].method
    plain, fast = small_net(), small_net()
    train_step(composed, plain, sgd(plain), small_batch(), Clock(0, 0), seed=0)
    folded = Folded(fast)
    train_step(composed, fast, sgd(fast), small_batch(), Clock(0, 0), seed=0, folded=folded)
    assert largest_difference(plain, fast) == 0


def test_a_folded_layer_has_the_bits_of_torchs_own_folding():
    net = build_model(Vgg(convs=(1, 1), width=4), channels=3, size=8, classes=10).float()
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    net.train()
    net(torch.rand(4, 3, 8, 8))
    folded = [m for m in Folded(net).refresh().modules() if isinstance(m, torch.nn.Conv2d)]
    for conv, norm, own in zip(convs, norms, folded, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
        )
        assert torch.equal(own.weight, weight)
        assert own.bias is not None
        assert torch.equal(own.bias, bias)


@pytest.mark.parametrize("head", ["linear", Hypersphere()])
@pytest.mark.parametrize("spec", [ResNet(width=4), PreActResNet(width=4), Mlp(width=8)])
def test_weights_stored_low_have_the_bits_of_weights_rounded_in_every_pass(spec, head):
    net = build_model(spec, channels=3, size=8, classes=10, head=head).float()
    folded, low = Folded(net), torch.bfloat16
    x, ends = torch.rand(4, 3, 8, 8), []
    for copy in (folded.refresh(), folded.refresh(low)):
        point = _point(x)
        with torch.autocast("cpu", low):
            z = copy(point)
            ends.append((z, *torch.autograd.grad(z.square().sum(), point)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    layers = [module for module in copy.modules() if isinstance(module, PRODUCTS)]
    kept = [layer for layer in layers if layer.weight.dtype != low]
    assert kept == ([] if head == "linear" else [copy.head.linear])  # its rows are normalised first
