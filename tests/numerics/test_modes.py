"""BatchNorm that counts some samples of a batch alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ablation.numerics.modes import MaskedBatchNorm

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


@pytest.mark.parametrize("dims", [2, 4])
def test_samples_that_count_have_the_numbers_of_a_batch_of_their_own(dims):
    alone = layers(dims)
    masked, x = copy.deepcopy(alone), points(dims).requires_grad_()
    expected = alone(x[COUNTED])
    with MaskedBatchNorm(COUNTED):
        found = masked(x)[COUNTED]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for (name, a), b in zip(masked.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0, msg=name)
    ours, theirs = (
        torch.autograd.grad(out.pow(3).sum(), [x, *net.parameters()])
        for out, net in ((found, masked), (expected, alone))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)
    assert float(ours[0][COUNTED].abs().amax()) > 0


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
