"""AWP by itself: when it moves which weights how far, and that it puts them back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.ascents import AdversarialWeightPerturbation as Awp
from ablation.types import Clock


class Two(nn.Module):
    """Two weights, of which only the first is in the loss, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        self.spare_weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))


def moved(awp: Awp, epoch: int = 0) -> tuple[Tensor, int]:
    """The first weight inside, and how often the loss was asked for."""
    net, calls = Two(), []

    def closure(net: Any, terms: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(terms)
        return (2 * net.weight[0, 0] + net.bias.sum()), {}

    with awp(net, closure, Clock(epoch, 0)):
        inside = net.weight.detach().clone()
        assert torch.equal(net.spare_weight, torch.ones(2, 2))
        assert torch.equal(net.bias, torch.ones(2))
    torch.testing.assert_close(net.weight.detach(), torch.tensor([[3.0, 4.0]]))
    return inside, len(calls)


@pytest.mark.parametrize(("awp", "way"), [(Awp(), 0.05), (Awp(0.2), 1.0), (Awp(1.0), 5.0)])
def test_a_weight_moves_by_a_share_of_its_norm_up_the_gradient(awp, way):
    inside, _ = moved(awp)
    torch.testing.assert_close(inside, torch.tensor([[3.0 + way, 4.0]]))


@pytest.mark.parametrize(
    ("awp", "epoch", "calls"),
    [(Awp(0.1, start=1), 0, 0), (Awp(0.1, start=1), 1, 1), (Awp(0.0), 3, 0)],
)
def test_before_its_start_and_without_gamma_it_costs_nothing(awp, epoch, calls):
    inside, asked = moved(awp, epoch)
    assert asked == calls
    assert (inside == torch.tensor([[3.0, 4.0]])).all() == (calls == 0)


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        Awp(-0.01)
