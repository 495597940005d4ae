"""Averages of weights: their arithmetic against closed forms, and when they count."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ablation.averages import Ema, Swa, estimate_statistics
from ablation.types import Average, Clock

VALUES = (3.0, -1.0, 4.0, 1.5)
"""The only weight after each step; it is 10 before the first."""


class Scalar(nn.Module):
    """One weight, one float buffer and one counter."""

    running: Tensor
    count: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.register_buffer("running", torch.tensor(value, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.running.fill_(2 * value)
            self.count += 1


def scalar(average: Average) -> Scalar:
    assert isinstance(average.model, Scalar)
    return average.model


def followed(spec: Ema | Swa, epochs=(0, 0, 0, 0)) -> tuple[list[float], Average]:
    """Weights of the average after each step."""
    net = Scalar(10.0)
    average = spec.attach(net)
    values = []
    for step, (epoch, value) in enumerate(zip(epochs, VALUES, strict=True)):
        net.become(value)
        average.update(net, Clock(epoch, step))
        values.append(scalar(average).weight.item())
    return values, average


def test_swa_is_the_plain_mean_of_the_weights_after_every_step():
    values, average = followed(Swa())
    assert values == pytest.approx([3, 1, 2, 7.5 / 4])
    assert average.count == 4


def test_swa_follows_the_network_before_its_start_epoch_and_counts_from_it():
    values, average = followed(Swa(start=1), epochs=(0, 1, 2, 3))
    assert values == pytest.approx([3, -1, (-1 + 4) / 2, (-1 + 4 + 1.5) / 3])
    assert average.count == 3


def test_a_new_phase_begins_a_new_swa_mean():
    values, average = followed(Swa(start=1), epochs=(0, 1, 0, 1))
    assert values == pytest.approx([3, -1, 4, 1.5])
    assert average.count == 1


def test_swa_goes_on_from_a_restored_count():
    net, spec = Scalar(10.0), Swa()
    average = spec.attach(net)
    average.count = 3  # as a checkpoint restores it, with the mean 10 of three steps
    net.become(2.0)
    average.update(net, Clock(0, 3))
    assert scalar(average).weight.item() == pytest.approx((3 * 10 + 2) / 4)


def test_swa_estimates_batchnorm_statistics_on_the_images_it_is_given():
    net = nn.Sequential(nn.BatchNorm1d(2))
    images = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)) + 5
    average = Swa().attach(net)
    average.prepare(lambda: images.split(4))
    (norm,) = average.model.children()
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, images.mean(0))
    variance = torch.stack([part.var(0) for part in images.split(4)]).mean(0)
    assert torch.allclose(norm.running_var, variance)
    assert not average.model.training
    assert not net.state_dict()["0.running_mean"].any()


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_ema_without_warmup_has_one_decay(decay):
    values, average = followed(Ema(decay=decay, warmup=False))
    expected, mean = [], 10.0
    for value in VALUES:
        mean = decay * mean + (1 - decay) * value
        expected.append(mean)
    assert values == pytest.approx(expected)
    assert average.count == 4


def test_ema_forgets_its_start_by_a_decay_that_grows_to_its_bound():
    values, _ = followed(Ema(decay=0.2, warmup=True))
    expected, mean = [], 10.0
    for decay, value in zip((1 / 10, 2 / 11, 0.2, 0.2), VALUES, strict=True):
        mean = decay * mean + (1 - decay) * value
        expected.append(mean)
    assert values == pytest.approx(expected)


def test_ema_buffers_are_copied_or_averaged_and_counters_always_copied():
    _, copied = followed(Ema(decay=0.5, warmup=False))
    assert scalar(copied).running.item() == 2 * VALUES[-1]
    _, averaged = followed(Ema(decay=0.5, warmup=False, buffers="average"))
    mean = 10.0
    for value in VALUES:
        mean = (mean + 2 * value) / 2
    assert scalar(averaged).running.item() == pytest.approx(mean)
    assert scalar(averaged).count.item() == scalar(copied).count.item() == 4


@pytest.mark.parametrize("spec", [Ema(), Swa()])
def test_an_average_starts_from_the_network_is_frozen_and_leaves_it_alone(spec):
    net = Scalar(10.0)
    average = spec.attach(net)
    assert scalar(average).weight.item() == 10.0
    assert not scalar(average).weight.requires_grad
    assert not average.model.training
    before = copy.deepcopy(net.state_dict())
    average.update(net, Clock(0, 0))
    assert net.training
    assert net.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay:g}"):
        Ema(decay=decay)


def test_defaults_are_those_of_the_dyart_and_rade_code():
    assert (Ema().decay, Ema().warmup, Ema().buffers) == (0.995, True, "copy")
    assert Swa().start == 0


def test_swa_statistics_have_the_bits_of_torchs_update_bn():
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(5, 3, 4, 4, generator=g) for _ in range(3)]
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), first, nn.ReLU(), second).eval()
    expected = copy.deepcopy(net)
    torch.optim.swa_utils.update_bn(batches, expected)
    estimate_statistics(net, iter(batches))
    pairs = zip(net.state_dict().items(), expected.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert (net.training, first.momentum, second.momentum) == (False, 0.1, 0.3)
    assert first.num_batches_tracked is not None
    assert first.num_batches_tracked.item() == 3
