"""The pretended device notices what a GPU would refuse or wait for, and keeps the numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ablation.crafters.pgd as crafter
from ablation.numerics import functional
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from tests.support.configs import compose_config
from tests.support.device_steps import stepped
from tests.support.parts import largest_difference, sgd, small_batch, small_net
from tests.support.pretended_cuda import Log, RefusedError, pretending

MIXES = {
    "a sum": lambda a, b: a + b,
    "a sum in place": lambda a, b: a.add_(b),
    "a product": lambda a, b: a @ b,
    "a list": lambda a, b: torch.stack([a, b]),
    "a choice": lambda a, b: torch.where(a > 0, a, b),
    "a layer": lambda a, b: F.linear(a, b),
    "an index of another type": lambda a, b: a.gather(0, b.long()),
    "a generator": lambda a, b: torch.rand(3, generator=torch.Generator("cpu"), device="cuda"),
    "a generator in place": lambda a, b: a.normal_(generator=torch.Generator("cpu")),
    "an array": lambda a, b: a.numpy(),
}
WAITS = {
    "a value": lambda a: a.sum().item(),
    "a condition": lambda a: bool((a > 0).all()),
    "a list": lambda a: a.tolist(),
    "a size": lambda a: a.nonzero(),
    "a mask": lambda a: a[a > 0],
    "a mask that is written": lambda a: a.__setitem__(a > 0, torch.ones(3, device="cuda")),
    "an index of the host": lambda a: a[torch.tensor([0, 1])],
    "a copy to the host": lambda a: a.cpu(),
    "a copy into the host's memory": lambda a: torch.zeros(3).copy_(a),
    "a copy from the host": lambda a: torch.ones(3).to("cuda"),
    "a hasty copy from memory that is not pinned": lambda a: torch.ones(3).to(
        "cuda", non_blocking=True
    ),
    "a tensor of numbers": lambda a: torch.tensor([1.0, 2.0], device="cuda"),
    "a tensor of numbers like another": lambda a: a.new_tensor([1.0, 2.0]) * a[:2],
    "the end of all work": lambda a: torch.cuda.synchronize(),
}
FREE = {
    "numbers of the host": lambda a: (a + torch.tensor(1.0)) * 2,
    "a new tensor": lambda a: torch.zeros(3, device="cuda") + a.new_ones(3),
    "draws": lambda a: torch.rand(3, generator=torch.Generator("cuda"), device="cuda") + a,
    "a pinned copy": lambda a: torch.ones(3).pin_memory().to("cuda", non_blocking=True) + a,
    "a mask that is filled": lambda a: a.__setitem__(a > 0, 0.0),
    "indices": lambda a: a[a.argsort()].index_select(0, a.argmax(0, keepdim=True)),
}


def ones(log: Log) -> torch.Tensor:
    found = torch.ones(3, device="cuda")
    log.clear()
    return found


@pytest.mark.parametrize("mix", MIXES)
def test_two_devices_are_refused(mix):
    with pretending() as log:
        a = torch.ones(3, 3, device="cuda")
        with pytest.raises(RefusedError):
            MIXES[mix](a, torch.ones(3, 3))
        assert len(log.refused) == 1


@pytest.mark.parametrize("wait", WAITS)
def test_waits_are_noted(wait):
    with pretending() as log:
        a = ones(log)
        WAITS[wait](a)
        assert len(log.waits) == 1


@pytest.mark.parametrize("act", FREE)
def test_what_does_not_wait_is_not_noted(act):
    with pretending() as log:
        a = ones(log)
        FREE[act](a)
        assert log.waits == []


def test_a_copy_is_read_once_it_has_arrived():
    with pretending() as log:
        a = ones(log)
        there = a.to("cpu", non_blocking=True)
        assert log.waits == []
        for read in (lambda: there + 1, lambda: there.view(-1).numpy()):
            with pytest.raises(RefusedError, match="arrived"):
                read()
        torch.cuda.synchronize()
        assert (there + 1).tolist() == [2, 2, 2]
        assert len(log.waits) == 1


def test_operations_are_launches_and_views_are_not():
    with pretending() as log:
        a = ones(log)
        a.view(3, 1).expand(3, 4).transpose(0, 1)[1:]
        assert log.launched == 0
        (a * 2).add_(1)
        assert log.launched == 2
        log.clear()
        a.requires_grad_().square().sum().backward()
        assert 3 < log.launched < 10
        assert a.grad is not None
        assert a.grad.device.type == "cuda"


def test_a_network_moves_and_is_copied():
    with pretending():
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to("cuda")
        twin = copy.deepcopy(net)
        net(torch.ones(4, 3, device="cuda")).sum().backward()
        assert all(p.device.type == "cuda" and p.grad is not None for p in net.parameters())
        assert all(p.grad is None for p in twin.parameters())
        assert all(isinstance(p, nn.Parameter) for p in twin.parameters())
        back = net.to("cpu")
        assert back(torch.ones(4, 3)).device.type == "cpu"


def test_it_is_gone_afterwards():
    assert not torch.cuda.is_available()
    before = torch.Generator, torch.autocast
    with pretending():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_name() == "Pretended GPU"
    assert (torch.Generator, torch.autocast) == before
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("method", ["trades", "dyart"])
def test_a_training_step_has_the_bits_of_the_cpu(method):
    config = compose_config(f"method={method}", "scale=smoke")
    nets = []
    for device in ("cpu", "cuda"):
        with pretending():
            net = small_net().to(device)
            own = small_batch()
            batch = Batch(own.x.to(device), own.y.to(device), own.index.to(device))
            train_step(config.phases[-1].method, net, sgd(net), batch, Clock(1, 0), seed=0)
            nets.append(net.to("cpu"))
    assert largest_difference(*nets) == 0
    assert largest_difference(nets[0], small_net()) > 0


def recorded(run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, run()


def test_a_graph_runs_again_what_was_recorded_on_the_numbers_of_now():
    with pretending() as log:
        x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")

        def run() -> Tensor:
            point = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(point.square().sum(), point)
            total.add_(grad)
            return grad.view(3, 1) * 2

        graph, out = recorded(run)
        total.zero_()
        assert out.isnan().all()
        log.clear()
        x.fill_(5.0)
        graph.replay()
        graph.replay()
        assert log.launched == 3
        assert out.flatten().tolist() == [20, 20, 20]
        assert total.tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    "act",
    [
        lambda a: a.sum().item(),
        lambda a: a[a > 0],
        lambda a: torch.ones(3).to("cuda"),
        lambda a: torch.rand(3, generator=torch.Generator("cuda"), device="cuda"),
    ],
)
def test_a_graph_refuses_waits_and_draws(act):
    with pretending() as log:
        a = torch.ones(3, device="cuda")
        with pytest.raises(RefusedError):
            recorded(lambda: act(a))
        assert log.graph is None
        act(a)


FAULTS = {
    "a value read in every attack step": (
        "steepest",
        lambda f: lambda grad, norm: f(grad, norm) * float(grad.abs().max() >= 0),
    ),
    "a mask in every attack step": (
        "steepest",
        lambda f: lambda grad, norm: (grad[grad > 0], f(grad, norm))[1],
    ),
    "a tensor of the host": (
        "steepest",
        lambda f: lambda grad, norm: f(grad, norm) * torch.ones(len(grad), 1, 1, 1),
    ),
    "a generator of the host": (
        "gaussian_noise",
        lambda f: lambda x, std, rng: f(x, std, torch.Generator("cpu")),
    ),
    "noise that is drawn on the host": (
        "gaussian_noise",
        lambda f: lambda x, std, rng: std * torch.randn(x.shape).to(x.device),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_training_step_are_noticed(fault, monkeypatch):
    name, plant = FAULTS[fault]
    planted = plant(getattr(functional, name))
    for module in (functional, crafter):
        monkeypatch.setattr(module, name, planted, raising=False)
    config, own = compose_config("method=at", "scale=smoke"), small_batch()
    net, batch = small_net().float(), Batch(own.x.float(), own.y, own.index)
    try:
        found: list[object] = [*stepped(config, net, batch).waits]
    except RefusedError as error:
        found = [error]
    assert found
