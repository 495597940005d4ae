"""Small parts that exercise the seams no shipped method needs yet, and a network to run them on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ablation.models.heads import LinearHead
from ablation.models.net import Net
from ablation.numerics.functional import cross_entropy, per_sample
from ablation.random import generator
from ablation.training.memory import Memories, remembering
from ablation.training.method import Component, Method, Phase, Slot, parse_passes
from ablation.training.step import StepLog, train_step
from ablation.types import AttackMode, Batch, Clock, Crafted, MemorySpec, Views


class Body(nn.Module):
    """conv - BN - ReLU - conv - BN - ReLU - mean over pixels."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out.mean((2, 3))


def small_net(seed: int = 0, head: nn.Module | None = None) -> Net:
    """A float64 network on [N, 2, 5, 5] with three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(Body(), head or LinearHead(6, 3), mean=None, std=None).double()


def small_batch(step: int = 0, n: int = 8) -> Batch:
    g = generator(0, "test/batch", step)
    x = torch.rand(n, 2, 5, 5, generator=g, dtype=torch.float64)
    return Batch(x, (torch.arange(n) + step) % 3, torch.arange(n) + step * n)


def memories_of(method: object, n_train: int = 100, batch_size: int = 8) -> Memories:
    """What the parts of a method remember of small batches."""
    device = torch.device("cpu")
    return Memories([method], n_train=n_train, batch_size=batch_size, classes=3, device=device)


@dataclass(frozen=True)
class Boundary:
    """Crafts points for the rows whose label is below ``label`` only: a subset, possibly empty."""

    label: int = 2
    bn: AttackMode = "eval"

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        rows = torch.nonzero(views.batch.y < self.label).squeeze(1)
        x = views.batch.x[rows]
        noise = torch.rand(x.shape, generator=rng, dtype=x.dtype) * 2 - 1
        return Crafted((x + per_sample(eps[rows], x) * noise).clamp(0, 1), rows, {"noise": noise})


@dataclass(frozen=True)
class MarginBudget:
    """eps_i = eps * (1 + p_y): reads the memoised evaluation-mode forward."""

    eps: float

    def __call__(self, views: Views) -> Tensor:
        p = views.eval("nat").output.logits.softmax(1)
        return self.eps * (1 + p.gather(1, views.batch.y[:, None]).squeeze(1))


@dataclass(frozen=True)
class Told(MarginBudget):
    """A budget that has its radii recorded."""

    individual: bool = True


@dataclass(frozen=True)
class Recording:
    """The clean points, and a number of each sample to record: its label times ``factor``."""

    factor: float = 1.0
    name: str = "radius"
    bn: AttackMode = "eval"

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        batch = views.batch
        values = self.factor * batch.y.to(batch.x.dtype)
        return Crafted(batch.x, recorded={self.name: values})


@dataclass(frozen=True)
class InputGradient:
    """||grad_x CE||^2 in evaluation mode: needs double backward."""

    view: str = "nat"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def __call__(self, views: Views) -> Tensor:
        seen = views.eval(self.view, input_grad=True)
        loss = cross_entropy(seen.output.logits, views.y(self.view)).sum()
        (grad,) = torch.autograd.grad(loss, seen.x, create_graph=True)
        return grad.flatten(1).square().sum(1)


@dataclass(frozen=True)
class LogitMemory:
    """(z - remembered z)^2, remembering once per step; ``shape`` and ``dtype`` are the logits'."""

    scope: Literal["example", "position"] = "position"
    dtype: torch.dtype = torch.float64
    name: str = "z"
    calls: list[int] = field(default_factory=list)
    """Steps of the commits."""

    @property
    def memory(self) -> dict[str, MemorySpec]:
        return {self.name: MemorySpec(self.scope, ("classes",), self.dtype)}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("nat",)

    def __call__(self, views: Views) -> Tensor:
        z = views.logits("nat")
        return (z - views.memory(self.name)).square().sum(1)

    def commit(self, views: Views) -> dict[str, Tensor]:
        self.calls.append(views.clock.step)
        return {self.name: views.logits("nat")}


@dataclass(frozen=True)
class Half:
    """Counts the first half of the batch only."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def __call__(self, views: Views) -> Tensor:
        n = len(views.batch.y)
        return (torch.arange(n) < n // 2).to(views.batch.x.dtype)


class ShiftedHead(nn.Module):
    """Plain logits for attacks; true-class logits lowered by 1 for classification terms."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        del features
        return logits - nn.functional.one_hot(y, logits.shape[1]).to(logits.dtype)


@dataclass(frozen=True)
class Prelude(Component):
    """A component with ``arrange``: a phase of plain training in front."""

    epochs: int = 1

    def apply(self, method: Method) -> Method:
        return method

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        from ablation.terms import CrossEntropy

        plain = Method(
            {},
            phases[0].method.budget,
            parse_passes("nat", "step"),
            {"ce": Slot(CrossEntropy("nat"))},
        )
        return (Phase("prelude", self.epochs, plain, "keep", selectable=False), *phases)


def train_steps(method: Method, net: Net, number: int) -> tuple[list[StepLog], Memories]:
    """Train a small network by steps of a method; what it remembers is committed as in a run."""
    optimizer, memories, logs = sgd(net), memories_of(method), []
    for step in range(number):
        batch, clock = small_batch(step), Clock(0, step)
        log, views = train_step(method, net, optimizer, batch, clock, seed=0, memories=memories)
        memories.commit(remembering(method), views)
        logs.append(log)
    return logs, memories


def sgd(net: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """Over parameters and buffers."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return float(max((x.double() - y.double()).abs().max() for x, y in pairs))
