"""Steps of the arms of DOSE's Table 1, composed from conf/, against plain references."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.config.experiment import Config
from ablation.crafters import BoundarySearch, FabSearch
from ablation.models.net import Net
from ablation.numerics.boundary import Soft, fab
from ablation.numerics.functional import uniform_ball
from ablation.random import generator
from ablation.training.method import parse_passes
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from tests.support.margins import composed, confident_net, hard, margin_batch, soft, trainer
from tests.support.parts import largest_difference

Reference = Callable[[Net, Batch, int], Tensor]


def ce_and_margin(net: Net, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Clean cross-entropy, phi and the Taylor margin of one train-mode pass."""
    x = batch.x.clone().requires_grad_()
    z = net(x)
    phi = hard(z, batch.y)
    (grad,) = torch.autograd.grad(phi.sum(), x, retain_graph=True)
    return F.cross_entropy(z, batch.y), phi, phi / grad.abs().flatten(1).sum(1)


def standard(net: Net, batch: Batch, step: int) -> Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


def elsayed(net: Net, batch: Batch, step: int) -> Tensor:
    ce, _, margin = ce_and_margin(net, batch)
    return ce + 25 * F.relu(16 / 255 - margin).mean()


def exponential(coef: float) -> Reference:
    def loss(net: Net, batch: Batch, step: int) -> Tensor:
        ce, phi, margin = ce_and_margin(net, batch)
        counted = margin[(phi > 0) & (margin < 16 / 255)]
        return ce + coef * (torch.exp(-3 * counted) / 3).sum() / max(1, int((phi > 0).sum()))

    return loss


def searched(
    net: Net, batch: Batch, step: int, phi: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """FAB in evaluation mode: points, found, distance, phi at the samples; phi at the points."""
    net.eval()
    rng = generator(3, "craft/boundary", step)
    best = fab(lambda p: phi(net(p), batch.y), batch.x, norm="linf", rng=rng, steps=20, eps=8 / 255)
    with torch.no_grad():
        at_points = phi(net(best.x), batch.y)
    net.train()
    return best.x, best.found, best.distance, best.phi, at_points


def to_plane(point: Tensor, w: Tensor, offset: Tensor) -> Tensor:
    """The shortest way in Linf from a point to {v in [0, 1]^d: w.v = offset}, by bisection."""
    w, offset = (w, offset) if w @ point >= offset else (-w, -offset)
    low, high = torch.zeros(()), torch.ones(())
    low, high = low.to(point), high.to(point)
    for _ in range(80):
        middle = (low + high) / 2
        ahead = w @ (point - middle * w.sign()).clamp(0, 1) > offset
        low, high = torch.where(ahead, middle, low), torch.where(ahead, high, middle)
    return (point - high * w.sign()).clamp(0, 1) - point


def official_search(
    net: Net, batch: Batch, step: int, phi: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """FAB_scalar_boundary.py on the correct samples: linearise, move, test, go back; one alpha."""
    net.eval()
    x = batch.x
    with torch.no_grad():
        value = phi(net(x), batch.y)
    rng = generator(3, "craft/boundary", step)
    draw = uniform_ball(x, torch.ones(len(x)).to(x), "linf", rng)
    length = draw.flatten(1).abs().amax(1)[:, None, None, None]
    u = (x + 4 / 255 / length * draw).clamp(0, 1)
    nearest, best = torch.full((len(x),), torch.inf).to(x), x.clone()
    correct = value > 0
    first = int(correct.nonzero()[0])
    for _ in range(20):
        point = u.clone().requires_grad_()
        f = phi(net(point), batch.y)
        (grad,) = torch.autograd.grad(f.sum(), point)
        w, flat_u, flat_x = grad.flatten(1), u.flatten(1), x.flatten(1)
        offset = (w * flat_u).sum(1) - f.detach()
        rows = range(len(x))
        d1 = torch.stack([to_plane(flat_u[i], w[i], offset[i]) for i in rows])
        d2 = torch.stack([to_plane(flat_x[i], w[i], offset[i]) for i in rows])
        a1, a2 = d1.abs().amax(1).clamp_min(1e-8), d2.abs().amax(1).clamp_min(1e-8)
        alpha = (a1 / (a1 + a2)).clamp_max(0.1)[first]
        u = ((1 - alpha) * (flat_u + 1.05 * d1) + alpha * (flat_x + 1.05 * d2)).clamp(0, 1)
        u = u.view_as(x)
        with torch.no_grad():
            beyond = (phi(net(u), batch.y) < 0) & correct
        distance = (u - x).flatten(1).abs().amax(1)
        better = beyond & (distance < nearest)
        nearest = torch.where(better, distance, nearest)
        best = torch.where(better[:, None, None, None], u, best)
        u = torch.where(beyond[:, None, None, None], x + 0.9 * (u - x), u)
    with torch.no_grad():
        at_points = phi(net(best), batch.y)
    net.train()
    return best, nearest.isfinite(), nearest, value, at_points


def rescaled(
    z: Tensor, batch: Batch, found: tuple[Tensor, ...], phi: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """G2: R_FAB / phi a constant; samples that are wrong or not found cost nothing."""
    _, is_found, distance, value, _ = found
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch.y)):
        if is_found[i] and distance[i] < 16 / 255:
            now = phi(z, batch.y)[i]
            margin = distance[i] + (distance[i] / value[i]) * (now - now.detach())
            total = total + (16 / 255 - margin) / len(batch.y)
    return total


def with_fab(phi: Callable[[Tensor, Tensor], Tensor]) -> Reference:
    def loss(net: Net, batch: Batch, step: int) -> Tensor:
        found = searched(net, batch, step, phi)
        z = net(batch.x)
        return F.cross_entropy(z, batch.y) + 25 * rescaled(z, batch, found, phi)

    return loss


def passes_filter(x: Tensor, point: Tensor, grad: Tensor, value: float) -> bool:
    """``find_bdr_Linf``, one sample at a time."""
    delta, slope = (point - x).flatten().tolist(), grad.flatten().tolist()
    longest = max(abs(d) for d in delta)
    active = [abs(d) > 0.8 * longest for d in delta]
    signs = [d * g < -1e-7 for d, g, a in zip(delta, slope, active, strict=True) if a]
    flat = [abs(g) <= 0.1 for g, a in zip(slope, active, strict=True) if not a]
    return -0.3 < value < 0 and sum(signs) > 0.9 * len(signs) and any(flat)


def dyart(
    filtered: bool,
    points_first: bool = True,
    surface: Callable[[Tensor, Tensor], Tensor] = soft,
    search: Callable[..., tuple[Tensor, ...]] = searched,
) -> Reference:
    """Spec 7.2-7.4: search in evaluation mode, then the points' pass, then the clean one."""

    def loss(net: Net, batch: Batch, step: int) -> Tensor:
        points, found, distance, _, value = search(net, batch, step, surface)
        net.eval()
        p = points.clone().requires_grad_()
        (grad,) = torch.autograd.grad(surface(net(p), batch.y).sum(), p)
        net.train()
        rows = [
            i
            for i in range(len(batch.y))
            if found[i]
            and (not filtered or passes_filter(batch.x[i], points[i], grad[i], value[i].item()))
        ]
        clean = None if points_first else net(batch.x)
        total = torch.zeros((), dtype=torch.float64)
        if len(rows) > 1:
            phi = surface(net(points[rows]), batch.y[rows])
            for k, i in enumerate(rows):
                if distance[i] < 16 / 255:
                    weight = torch.exp(-3 * distance[i]) / grad[i].abs().sum()
                    total = total - weight * phi[k] / len(batch.y)
        clean = net(batch.x) if clean is None else clean
        return F.cross_entropy(clean, batch.y) + 1000 * total

    return loss


def at_with_fab(net: Net, batch: Batch, step: int) -> Tensor:
    """PGD, FAB, then the clean pass with the margin, then the adversarial pass."""
    rng = generator(3, "craft/adv", step)
    adv = batch.x + 0.001 * torch.randn(batch.x.shape, generator=rng, dtype=batch.x.dtype)
    net.eval()
    for _ in range(10):
        adv = adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(adv), batch.y, reduction="sum"), adv)
        adv = adv.detach() + 2 / 255 * grad.sign()
        adv = torch.min(torch.max(adv, batch.x - 8 / 255), batch.x + 8 / 255).clamp(0, 1)
    found = searched(net, batch, step, hard)
    margin = rescaled(net(batch.x), batch, found, hard)
    return F.cross_entropy(net(adv), batch.y) + 25 * margin


BURN = "component/burn_in=enabled"
EXPONENTIAL = "component/exponential_loss=enabled"
FAB = "component/fab_margin=dyart"
"""From a random start: the reference draws as well."""
LAMBDA = "component.margin_maximization.coef=1000"
UNFILTERED = "component.closed_form_gradient.filter=none"
ARMS: dict[str, tuple[tuple[str, ...], Reference, float]] = {
    "A0": (("method=standard",), standard, 1e-3),
    "A1": (("method=elsayed",), elsayed, 1e-3),
    "A2": (("method=elsayed", BURN), elsayed, 1e-3),
    "A3": (("method=elsayed", BURN, EXPONENTIAL), exponential(25), 1e-3),
    "A4": (
        ("method=elsayed", "optim=sgd_clipped", BURN, EXPONENTIAL, LAMBDA),
        exponential(1000),
        0.1,
    ),
    "A5": (("method=elsayed", FAB), with_fab(hard), 1e-3),
    "A6": (("method=elsayed", FAB, "component/soft_boundary=enabled"), with_fab(soft), 1e-3),
    "A7": (("method=dyart",), dyart(filtered=True), 0.1),
    "A7 unfiltered": (("method=dyart", UNFILTERED), dyart(filtered=False), 0.1),
    "A7 hard": (
        ("method=dyart", "component/soft_boundary=disabled"),
        dyart(filtered=True, surface=hard),
        0.1,
    ),
    "A7 in the official order": (
        ("method=dyart", "component/fab_margin=official"),
        dyart(filtered=True, search=official_search),
        0.1,
    ),
    "AT": (("method=at", "component/margin_maximization=enabled", FAB), at_with_fab, 1e-3),
}


def follow(
    config: Config, reference: Reference, lr: float, steps: int = 3
) -> tuple[Net, Net, list[Mapping[str, Tensor]]]:
    """The networks after some steps of ours and of the reference, and our losses."""
    ours, theirs = confident_net(), confident_net()
    optimizer = config.optim.build(ours, lr)
    method, clip, parts = config.phases[-1].method, config.optim.clip, []
    velocity = [torch.zeros_like(p) for p in theirs.parameters()]
    for step in range(steps):
        batch = margin_batch(step)
        log, _ = train_step(method, ours, optimizer, batch, Clock(0, step), seed=3, clip=clip)
        parts.append(log.parts)
        grads = torch.autograd.grad(reference(theirs, batch, step), list(theirs.parameters()))
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        share = 1.0 if clip is None else min(1.0, clip / (norm.item() + 1e-6))
        with torch.no_grad():
            for p, grad, v in zip(theirs.parameters(), grads, velocity, strict=True):
                v.mul_(0.9).add_(share * grad + 5e-4 * p)
                p.sub_(lr * v)
    return ours, theirs, parts


@pytest.mark.parametrize("name", ARMS)
def test_three_steps_of_an_arm_are_those_of_a_plain_reference(name):
    """Every parameter and every BatchNorm buffer."""
    overrides, reference, lr = ARMS[name]
    ours, theirs, parts = follow(composed(*overrides), reference, lr)
    assert largest_difference(ours, theirs) < (1e-10 if "official" in name else 1e-12)
    if name != "A0":
        assert all(part["margin"] > 0 for part in parts[:1])
        plainly, _, _ = follow(composed("method=standard"), standard, lr)
        assert largest_difference(ours, plainly) > 1e-3, "the margin did nothing"


def test_dyart_passes_its_points_before_the_clean_images():
    config = composed("method=dyart", UNFILTERED)
    reference = dyart(filtered=False, points_first=False)
    ours, theirs, _ = follow(config, reference, 0.1, steps=1)
    buffers_differ = max(
        float((a - b).abs().max()) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True)
    )
    assert buffers_differ > 1e-5


def test_dyart_has_the_settings_that_its_header_says():
    config = composed("method=dyart")
    burn_in, main = config.phases
    assert (burn_in.epochs, main.optim, config.optim.clip) == (25, "fresh", 0.1)
    slot = main.method.terms["margin"]
    crafter = main.method.crafters["boundary"]
    assert slot.coef == 1000
    assert isinstance(crafter, BoundarySearch)
    assert crafter.filtered
    assert crafter.surface == Soft(5.0)
    assert crafter.search == FabSearch(steps=20, start="random")
    assert main.method.passes == parse_passes("craft:boundary", "boundary", "nat", "step")


@pytest.mark.parametrize("right", [16, 1])
@pytest.mark.parametrize("method", ["dyart", "elsayed"])
def test_masked_points_train_as_gathered_ones_do(method, right):
    """Also where fewer than two points are found, which have no pass."""
    own = ["component/closed_form_gradient=enabled"]
    own += ["component.fab_margin.steps=3", "component.fab_margin.start=clean"]
    batch, nets, found = margin_batch(wrong=False), [], []
    labels = (batch.y + (torch.arange(16) >= right)) % 3
    for masked in ("false", "true"):
        key = f"component.closed_form_gradient.masked={masked}"
        config = composed(f"method={method}", *own[: 1 if method == "elsayed" else 3], key)
        net = confident_net()
        log, _ = train_step(
            config.phases[-1].method,
            net,
            trainer(net),
            Batch(batch.x, labels, batch.index),
            Clock(1, 0),
            seed=3,
        )
        nets.append(net.state_dict())
        found.append(16 * float(log.facts["boundary_found"]))
    assert found[0] == found[1]
    assert found[0] > 4 if right > 1 else found[0] < 2
    for name, value in nets[0].items():
        if "num_batches" not in name:
            torch.testing.assert_close(nets[1][name], value, rtol=1e-10, atol=1e-12)


def test_masking_renames_no_run_that_gathers():
    gathered = composed("method=dyart")
    assert composed("method=dyart", "component.closed_form_gradient.masked=false").train_id == (
        gathered.train_id
    )
    masked = composed("method=dyart", "component.closed_form_gradient.masked=true")
    assert masked.train_id != gathered.train_id
