"""BatchNorm that counts some samples of a batch alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ablation.numerics.modes import BatchNormReplay, MaskedBatchNorm

COUNTED = torch.tensor([True, False, True, True, False])


def layers(dims: int) -> nn.Sequential:
    """Two BatchNorms with weights of their own, the second with a momentum of its own."""
    kind = nn.BatchNorm2d if dims == 4 else nn.BatchNorm1d
    net = nn.Sequential(kind(3), nn.Tanh(), kind(3, momentum=0.4)).double().train()
    g = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=g)
    return net


def points(dims: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, *(4, 2)[: dims - 2], generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("dims", "number"), [(2, 3), (2, 2), (4, 3), (4, 1)])
def test_samples_that_count_have_the_numbers_of_a_batch_of_their_own(dims, number):
    alone, counted = layers(dims), COUNTED & (COUNTED.cumsum(0) <= number)
    masked, x = copy.deepcopy(alone), points(dims).requires_grad_()
    expected = alone(x[counted])
    with MaskedBatchNorm(counted):
        found = masked(x)[counted]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for (name, a), b in zip(masked.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0, msg=name)
    ours, theirs = (
        torch.autograd.grad(out.pow(3).sum(), [x, *net.parameters()])
        for out, net in ((found, masked), (expected, alone))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)
    assert float(ours[0][counted].abs().amax()) > 0


def test_one_number_of_a_channel_is_its_mean_without_deviation():
    net, x = nn.BatchNorm1d(3, momentum=0.4).double().train(), points(2)
    with MaskedBatchNorm(torch.arange(5) == 2):
        assert torch.equal(net(x)[2], x.new_zeros(3))
    torch.testing.assert_close(net.running_mean, 0.4 * x[2], atol=1e-12, rtol=0)
    torch.testing.assert_close(net.running_var, x.new_full((3,), 0.6), atol=1e-12, rtol=0)


def test_statistics_that_do_not_move_are_replayed_as_they_are():
    net = nn.BatchNorm1d(3, momentum=0.0).double().train()
    replay = BatchNormReplay(net)
    net(points(2))
    replay.mark()
    for statistics in (net.running_mean, net.running_var):
        assert statistics is not None
        statistics += 1
    replay.replay()
    assert net.running_mean is not None
    assert torch.equal(net.running_mean, torch.ones(3).double())
    assert int(net.num_batches_tracked or 0) == 2


def test_without_samples_that_count_the_running_statistics_stay():
    net = layers(4)
    before = copy.deepcopy(net.state_dict())
    with MaskedBatchNorm(torch.zeros(5, dtype=torch.bool)):
        assert net(points(4)).isfinite().all()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("num_batches_tracked")


def test_evaluation_mode_is_torchs():
    net, x = layers(4).eval(), points(4)
    with MaskedBatchNorm(COUNTED):
        found = net(x)
    assert torch.equal(found, net(x))
