"""Networks with known margins, and what the margin term takes of them.

Fixtures of ``methods-margin.md``: L3 (three classes, linear), TWO (two classes, linear), CIRC
(phi > 0 in a disc) and BOX (the box is in the way); float64 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.budgets import Fixed
from ablation.components import (
    ClosedFormGradient,
    FabMargin,
    MarginMaximization,
)
from ablation.config.experiment import Config
from ablation.config.validation import load
from ablation.models.heads import LinearHead
from ablation.models.net import Net
from ablation.terms import CrossEntropy
from ablation.training.method import Component, Method, Slot, parse_passes
from ablation.training.optim import Sgd
from ablation.training.step import craft
from ablation.training.views import StepViews
from ablation.types import Batch, Clock
from tests.support.configs import compose_plain
from tests.support.linear import B3, W3, X0, array
from tests.support.parts import small_batch, small_net

CLOCK = Clock(0, 0)
STANDARD = Method(
    {}, Fixed(8 / 255), parse_passes("nat", "step"), {"ce": Slot(CrossEntropy("nat"))}
)
R0 = 0.36 / 5.2
"""The linf margin of L3's x0, to class 2."""
FOUND = 1.0052133
"""FAB's distance on a linear function, as a share of the true one, from the second step on."""


def arm(*parts: Component, method: Method = STANDARD) -> Method:
    for part in parts:
        method = part.apply(method)
    return method


def batch_of(x: Tensor, y: Sequence[int]) -> Batch:
    """Points [N, d] as images of one row."""
    return Batch(x.view(len(x), 1, 1, -1), torch.tensor(y), torch.arange(len(x)))


def seen(method: Method, net: Net, batch: Batch, step: int = 0, seed: int = 0) -> StepViews:
    """The views of a step, before its loss."""
    clock = Clock(0, step)
    views = StepViews(net, batch, clock, nullcontext, observed=method.observed(), seed=seed)
    for entry in method.passes:
        if entry.kind == "craft":
            craft(method, views, entry.view, method.budget(views), seed, None)
        elif entry.kind == "view":
            views.run(entry.view)
    return views


def costs(method: Method, net: Net, batch: Batch) -> Tensor:
    """What the margin term takes for each sample."""
    loss = method.terms["margin"].term(seen(method, net, batch))
    assert loss.shape == (len(batch.y),)
    return loss


def trainer(net: Net, lr: float = 0.1) -> torch.optim.SGD:
    return Sgd().build(net, lr)


def gradients(loss: Tensor, net: nn.Module) -> dict[str, Tensor]:
    named = dict(net.named_parameters())
    if not loss.requires_grad:
        return {name: torch.zeros_like(p) for name, p in named.items()}
    grads = torch.autograd.grad(
        loss, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, grads, strict=True))


def linear_net(weight: Tensor, bias: Tensor) -> Net:
    classes, pixels = weight.shape
    net = Net(nn.Flatten(), LinearHead(pixels, classes), mean=None, std=None).double()
    with torch.no_grad():
        net.get_parameter("head.linear.weight").copy_(weight)
        net.get_parameter("head.linear.bias").copy_(bias)
    return net


def l3() -> Net:
    return linear_net(W3, B3)


def two() -> Net:
    """phi of class 0 is 4 x_1 - 2 x_2 - 1."""
    return linear_net(array([[4.0, -2], [0, 0]]), array([-1.0, 0]))


NEAR_WRONG_FAR = array([[0.5, 0.4], [0.4, 0.6], [0.95, 0.1]])
"""phi of TWO 0.2, -0.6, 2.6; margins 1/30, -0.1, 0.4333333."""
TWICE = batch_of(X0.repeat(2, 1), [0, 0])


def weight_and_bias(loss: Tensor, net: Net) -> tuple[Tensor, Tensor]:
    found = gradients(loss, net)
    return found["head.linear.weight"], found["head.linear.bias"]


def along_scaling(loss: Tensor, net: Net) -> float:
    """d loss(s W, s b) / d s at s = 1."""
    moved = gradients(loss, net)
    return float(sum((moved[name] * p.detach()).sum() for name, p in net.named_parameters()))


def confident_net(scale: float = 100.0, seed: int = 0) -> Net:
    """``small_net`` with large logits and boundaries among the images of ``margin_batch``."""
    net = small_net(seed)
    with torch.no_grad():
        x = torch.cat([small_batch(step, 16).x for step in range(3)])
        mean = net.eval().output(x).features.mean(0)
        net.train()
        weight = net.get_parameter("head.linear.weight").mul_(scale)
        net.get_parameter("head.linear.bias").copy_(-weight @ mean)
    return net


@cache
def margin_batch(step: int = 0, n: int = 16, wrong: bool = True) -> Batch:
    """Labels are those that ``confident_net`` gives, except for every fifth."""
    batch = small_batch(step, n)
    with torch.no_grad():
        y = confident_net().eval()(batch.x).argmax(1)
    if wrong:
        y[::5] = (y[::5] + 1) % 3
    return replace(batch, y=y)


CARRIERS: dict[str, tuple[Component, ...]] = {
    "detached": (),
    "eval": (),
    "exact": (),
    "straight_through": (FabMargin(start="clean", gradient="straight_through"),),
    "rescaled": (FabMargin(start="clean"),),
    "last_projection": (FabMargin(start="clean", gradient="last_projection"),),
    "closed_form": (ClosedFormGradient(),),
    "closed_form_fab": (FabMargin(start="clean"), ClosedFormGradient()),
}
SUBSETS = ("last_projection", "closed_form", "closed_form_fab")


def carrier(name: str, *more: Component, **options: Any) -> Method:
    if name == "exact":
        options["gradient"] = "exact"
    if name == "eval":
        options["bn"] = "eval"
    return arm(MarginMaximization(**options), *more, *CARRIERS[name])


def hard(z: Tensor, y: Tensor) -> Tensor:
    others = z.masked_fill(F.one_hot(y, z.shape[1]).bool(), -torch.inf)
    return z[torch.arange(len(y)), y] - others.max(1).values


def soft(z: Tensor, y: Tensor) -> Tensor:
    others = z.masked_fill(F.one_hot(y, z.shape[1]).bool(), -torch.inf)
    return z[torch.arange(len(y)), y] - torch.logsumexp(5 * others, 1) / 5


def slopes(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """||grad_x phi||_1 at points, [N]."""
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(hard(net(x), y).sum(), x)
    return grad.abs().flatten(1).sum(1)


@cache
def plain(*overrides: str) -> dict[str, Any]:
    return compose_plain("eps=8/255", *overrides)


@cache
def composed(*overrides: str) -> Config:
    return load(plain(*overrides))
