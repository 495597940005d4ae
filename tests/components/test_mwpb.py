"""The MWPB family: the specification's numbers, plain reference steps in float64, identities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from ablation.budgets import Fixed, MarginWeighted, Remembered
from ablation.config.validation import check
from ablation.crafters import Ascended, AttackCrossEntropy, Bisection, Pgd, Squeeze
from ablation.errors import DONE, ConfigError
from ablation.jobs import train as job
from ablation.models.net import Net
from ablation.numerics.functional import bisect, soft_margin_loss
from ablation.numerics.modes import buffers
from ablation.random import generator
from ablation.training.method import Method
from ablation.training.step import total_loss, train_step
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Crafted, EvalView, Output
from ablation.weights import Counted, Geometry, NegativeMargin, ProbabilisticMargin
from tests.support.configs import compose_config, compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, weights
from tests.support.logits import LATE, Z_ADV, Y, Z, given
from tests.support.parts import (
    largest_difference,
    memories_of,
    sgd,
    small_batch,
    small_net,
    train_steps,
)

MWPB = "component/margin_weighted_epsilon"
NOW = "component.margin_weighted_epsilon.start=0"
ARMS = {
    "MWPB-AT": ("method=at", f"{MWPB}=enabled", NOW),
    "MWPB-TRADES": ("method=trades", f"{MWPB}=trades", NOW),
    "MWPB-MART": ("method=mart", f"{MWPB}=mart", NOW),
    "MWPB-AWP": ("method=at", f"{MWPB}=enabled", NOW, "component/awp=enabled"),
    "MAIL-AT": ("method=at", "component/mail=enabled", "component.mail.start=0"),
    "GAIRAT": ("method=gairat", "component.gairat.start=0", "attack.start=uniform"),
    "WAT": ("method=wat", "attack.start=uniform"),
    "MMA": ("method=mma",),
    "ST-AT": ("method=st_at",),
}
EPS, STEPS = 0.1, 3
CE = {"ce": Ascended(AttackCrossEntropy())}


def composed(*overrides: str) -> Method:
    config = compose_config(f"eps={EPS}", f"attack.steps={STEPS}", "epochs=110", *overrides)
    return config.phases[-1].method


def sure_net() -> Net:
    """A network that is sure of its answers, right or wrong: some are over 1/2."""
    net = small_net()
    linear = net.head.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.mul_(60)
        linear.bias.sub_(net(small_batch().x).mean(0))
    return net


def views_of(z: Tensor, y: Tensor, clock: Clock = LATE) -> StepViews:
    """Given evaluation-mode logits of the clean images."""
    views = given(z, z, y, clock)
    for grad in (True, False):
        views._evaluated["nat", False, grad] = EvalView(views.batch.x, Output(z, z))
    return views


# Radii


def two_classes(margins: list[float]) -> tuple[Tensor, Tensor]:
    """Logits of two classes with the probability margins given, for label 0."""
    p = (1 + torch.tensor(margins, dtype=torch.float64).clamp(-1 + 1e-15, 1 - 1e-15)) / 2
    return torch.stack([p.log(), (1 - p).log()], 1), torch.zeros(len(margins), dtype=torch.int64)


def test_t6_1_radii_of_the_fixture():
    budget = MarginWeighted(8 / 255, 0.58, first=4 / 255)
    assert budget(views_of(Z_ADV, Y)).tolist() == pytest.approx([0.040038, 0.027948], abs=1e-6)
    assert budget(views_of(Z, Y)).tolist() == pytest.approx([0.047899, 0.040038], abs=1e-6)


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [
        (0.58, [0.017565, 0.023475, 0.031373, 0.041927, 0.056033]),
        (0.42, [0.020613, 0.025430, 0.031373, 0.038704, 0.047748]),
        (0.0, [8 / 255] * 5),
    ],
)
def test_t6_2_radii_by_margin(alpha, wanted):
    views = views_of(*two_classes([-1, -0.5, 0, 0.5, 1]))
    radii = MarginWeighted(8 / 255, alpha, first=0)(views)
    assert radii.tolist() == pytest.approx(wanted, abs=1e-6)
    assert not radii.requires_grad


def test_radii_are_small_before_the_start():
    budget = MarginWeighted(0.2, 0.58, first=0.1, start=5)
    assert budget(views_of(Z, Y, Clock(4, 0))).tolist() == [0.1, 0.1]
    assert (budget(views_of(Z, Y, Clock(5, 0))) > 0.1).all()


@hypothesis.given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0, 3), st.floats(0, 0.2)
)
def test_radii_lie_between_their_bounds_and_grow_with_the_margin(margins, alpha, eps):
    radii = MarginWeighted(eps, alpha, first=0)(views_of(*two_classes(margins)))
    slack = 1 + 1e-9
    assert (radii >= eps * math.exp(-alpha) / slack).all()
    assert (radii <= eps * math.exp(alpha) * slack).all()
    in_order = radii[torch.tensor(margins).argsort()]
    assert (in_order.diff() >= -1e-9).all()


def test_radii_of_logits_end_at_the_images_diameter():
    budget = MarginWeighted(8 / 255, 0.58, first=0, margin="logit")
    radii = budget(views_of(torch.tensor([[2.0, 1], [5000, 0]]).double(), torch.tensor([0, 0])))
    assert radii[0].item() == pytest.approx(8 / 255 * math.exp(0.58))
    assert radii[1].item() == pytest.approx(math.sqrt(50))


class Linear(nn.Module):
    """T1.1's model: logits x W^T, W = [[1, -1], [-1, 1]]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.tensor([[1.0, -1], [-1, 1]], dtype=torch.float64).T


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (3, [[0.481920, 1.0], [0, 0.418970]]),
        (10, [[0.475893, 1.0], [0, 0.425293]]),
    ],
)
def test_t6_3_steps_within_individual_radii(steps, wanted):
    x = torch.tensor([[0.5, 0.99], [0.01, 0.4]], dtype=torch.float64).view(2, 1, 1, 2)
    views = views_of(Linear()(x), torch.tensor([0, 0]))
    views.batch = replace(views.batch, x=x)
    setattr(views, "forward", Linear())  # noqa: B010
    eps = MarginWeighted(8 / 255, 0.58, first=0)(views)
    assert eps.tolist() == pytest.approx([0.024107, 0.025293], abs=1e-6)
    crafter = Pgd(CE, steps, 0.25, start="clean")
    found = crafter(views, eps, generator(0, "x", 0)).x.flatten(1)
    torch.testing.assert_close(found, torch.tensor(wanted).double(), atol=1e-6, rtol=0)


# Weights


def survived(kappa: list[int], steps: int = 10) -> StepViews:
    views = given(Z, Z_ADV, Y)
    shares = torch.tensor(kappa, dtype=torch.float64) / steps
    if len(kappa) != len(Y):
        views.batch = replace(views.batch, y=torch.zeros(len(kappa), dtype=torch.long))
    views.add("adv", Crafted(views.batch.x, aux={"survived": shares}))
    return views


def test_t10_1_and_t10_2_geometry():
    raw = [0.999665, 0.997527, 0.982014, 0.880797, 0.5, 0.119203]
    raw += [0.017986, 0.002473, 0.000335, 0.000045, 0.000006]
    found = Geometry()(survived(list(range(11))))
    assert (found * sum(raw) / 11).tolist() == pytest.approx(raw, abs=2e-6)
    assert found.mean().item() == pytest.approx(1)
    normalised = Geometry()(survived([0, 5, 10])).tolist()
    assert normalised == pytest.approx([2.680368, 0.319615, 0.0000165], abs=1e-6)


def test_weights_do_not_vanish_where_every_example_withstands_the_attack():
    views = survived([10, 10])
    views.add("adv", Crafted(views.batch.x, aux={"survived": torch.ones(2)}))
    assert Geometry(-5)(views).tolist() == [1, 1]


def test_t10_3_gairat_on_the_fixture():
    method = composed("method=gairat", "component.gairat.start=0")
    assert total_loss(method, survived([10, 2]))[0].item() == pytest.approx(1.180265, abs=1e-5)


def test_gairat_counts_the_steps_at_whose_start_the_point_is_right():
    """A linear model, whose logit falls by the same amount with each step."""
    x = torch.tensor([0.9, 0.65, 0.55, 0.2], dtype=torch.float64).view(4, 1, 1, 1)
    batch = Batch(x, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    views = StepViews(small_net(), batch, LATE, torch.enable_grad)

    def logits(p: Tensor) -> Tensor:
        return torch.stack([p.flatten(), 1 - p.flatten()], 1)

    setattr(views, "forward", logits)  # noqa: B010
    crafter = Pgd(CE, 4, 0.25, start="clean", counts=True)
    found = crafter(views, torch.full((4,), 0.4, dtype=torch.float64), generator(0, "x", 0))
    # p: .9 .8 .7 .6 | .65 .55 .45 .35 | .55 .45 .. | .2 ..
    assert found.aux["survived"].tolist() == [1, 0.5, 0.25, 0]


def test_t8_1_negative_margins():
    z, y = two_classes([-1, -0.5, 0, 0.5, 1])
    found = NegativeMargin(0.5)(given(z, z, y))
    assert found.tolist() == pytest.approx([1.648721, 1.284025, 1, 0.778801, 0.606531], abs=1e-6)


@pytest.mark.parametrize(
    ("detach", "wanted"),
    [
        ("false", [-0.167474, 0.127869, 0.039606]),
        ("true", [-0.135640, 0.099161, 0.036479]),
    ],
)
def test_t8_2_wat_on_the_fixture(detach, wanted):
    method = composed("method=wat", f"component.wat.detach={detach}")
    z_adv = Z_ADV.clone().requires_grad_()
    loss, _ = total_loss(method, given(Z, z_adv, Y))
    assert loss.item() == pytest.approx(0.817124, abs=1e-6)
    (grad,) = torch.autograd.grad(loss, z_adv)
    assert grad[0].tolist() == pytest.approx(wanted, abs=1e-6)


# MMA


def test_t7_1_soft_margin():
    assert soft_margin_loss(Z_ADV, Y).tolist() == pytest.approx([-0.686738, 0.813262], abs=1e-6)


@pytest.mark.parametrize(
    ("largest", "steps", "wanted"),
    [
        (0.42, 1, 0.235),
        (0.42, 2, 0.3275),
        (0.42, 3, 0.28125),
        (0.42, 10, 0.299678),
        (0.2, 10, 0.199854),  # T7.3: no boundary within the bracket
    ],
)
def test_t7_2_bisection(largest, steps, wanted):
    x, start = torch.tensor([[0.8]]).double(), torch.tensor([0.05]).double()

    def loss(point: Tensor) -> Tensor:
        return soft_margin_loss(torch.cat([point, 1 - point], 1), torch.tensor([0]))

    found = bisect(loss, x, -torch.ones_like(x), start, largest, steps)
    assert found.item() == pytest.approx(wanted, abs=1e-6)


def test_t7_4_the_hinge_leaves_far_boundaries_out():
    views = given(Z, Z, Y)
    counted = torch.tensor([True, True, False, True])  # wrong; .02, .13, .05 with d_max .1255
    views.add("adv", Crafted(views.batch.x, aux={"counted": counted}))
    losses = torch.tensor([2.0, 1, 5, 3]).double()
    assert ((Counted()(views) * losses).sum() / 4).item() == 1.5


def test_mma_tells_wrong_near_and_far_examples_apart():
    """A line of pixels, boundary at 0.5; the clean pass says who is right."""
    x = torch.tensor([0.52, 0.6, 0.95, 0.3], dtype=torch.float64).view(4, 1, 1, 1)
    batch = Batch(x, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    views = StepViews(small_net(), batch, LATE, torch.enable_grad)

    def logits(p: Tensor) -> Tensor:
        return torch.stack([p.flatten(), 1 - p.flatten()], 1) * 4

    setattr(views, "forward", logits)  # noqa: B010
    views._outputs["nat"] = Output(logits(x), x)
    eps = torch.full((4,), 0.05, dtype=torch.float64)
    views.add("direction", Crafted(x - 0.05))
    found = Bisection(d_max=0.2, steps=30)(views, eps, generator(0, "x", 0))
    assert found.aux["radius"].tolist() == pytest.approx([0.02, 0.1, 0.21, 0], abs=1e-6)
    assert found.aux["counted"].tolist() == [True, True, False, True]
    assert found.x.flatten().tolist() == pytest.approx([0.5, 0.5, 0.74, 0.3], abs=1e-6)
    assert found.recorded["radius_floor"].tolist()[3] == 0.005
    assert Bisection(d_max=0.2)(views, eps, generator(0, "x", 0)).x.max() <= 1


def test_mma_with_d_max_0_learns_from_wrong_examples_and_clean_ones():
    method = composed("method=mma", "component.mma.d_max=0")
    net, batch, memories = sure_net(), small_batch(), memories_of(method)
    clean = sure_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    train_step(method, net, optimizer, batch, Clock(0, 0), seed=0, memories=memories)
    z = clean(batch.x)
    wrong = soft_margin_loss(z.detach(), batch.y) >= 0
    assert 0 < wrong.sum() < len(wrong)
    x_adv = batch.x  # the bracket is a point
    loss = F.cross_entropy(z, batch.y) / 3
    loss = loss + 2 / 3 * (F.cross_entropy(clean(x_adv), batch.y, reduction="none") * wrong).mean()
    loss.backward()
    for ours, theirs in zip(net.parameters(), clean.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs.detach() - theirs.grad, atol=1e-12, rtol=0)


# ST-AT

Z_COL = torch.tensor([[4.0, 1, 0], [0, 0, 1]], dtype=torch.float64)


def squeezed(z_adv: Tensor, z_col: Tensor) -> StepViews:
    views = given(Z, z_adv, Y)
    views.add("col", Crafted(views.batch.x))
    views._outputs["col"] = Output(z_col, z_col)
    return views


def test_t12_1_and_t12_2_st_at_on_the_fixture():
    method = composed("method=st_at")
    z_adv, z_col = Z_ADV.clone().requires_grad_(), Z_COL.clone().requires_grad_()
    loss, parts = total_loss(method, squeezed(z_adv, z_col))
    assert loss.item() == pytest.approx(1.907323, abs=1e-6)
    assert parts["squeeze"].item() == pytest.approx(6 * 0.269766, abs=1e-5)
    by_adv, by_col = torch.autograd.grad(parts["squeeze"] / 6, (z_adv, z_col))
    wanted = torch.tensor([[-0.0677, 0.0495, 0.0182], [0.0241, 0.0654, -0.0895]]).double()
    torch.testing.assert_close(by_adv, wanted, atol=1e-4, rtol=0)
    assert by_col[1].tolist() == [0, 0, 0], "the clean image is the lower one there"
    assert by_col[0].abs().max() > 0


def test_three_equal_points_have_nothing_to_squeeze():
    z = Z.clone().requires_grad_()
    views = squeezed(z, z)
    divergence = composed("method=st_at").terms["squeeze"].term(views)
    assert divergence.tolist() == pytest.approx([0, 0], abs=1e-15)


def test_the_squeeze_attack_moves_no_buffer_and_its_points_stay_in_the_ball():
    method = composed("method=st_at", "attack.steps=5")
    net, batch = small_net(), small_batch()
    before = buffers(net)
    views = StepViews(net, batch, Clock(0, 0), torch.enable_grad)
    eps = torch.full((8,), 0.1, dtype=torch.float64)
    crafter = method.crafters["adv"]
    with views.searching(crafter.bn, None):
        found = crafter(views, eps, generator(0, "x", 0))
    for point in (found.x, found.aux["collaborative"]):
        assert (point - batch.x).abs().max() <= 0.1 + 1e-12
        assert (point - batch.x).abs().max() > 0.05
        assert ((point >= 0) & (point <= 1)).all()
        assert not point.requires_grad
    assert all(torch.equal(*pair) for pair in zip(before, buffers(net), strict=True))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_the_collaborative_pass_leaves_the_running_statistics_alone():
    method = composed("method=st_at")
    seen = []
    for passes in (method.passes, tuple(p for p in method.passes if p.kind != "frozen")):
        net, batch = small_net(), small_batch()
        # without the pass its term is left out, and so is nothing of BatchNorm's statistics
        kept = method.terms if passes == method.passes else {"ce": method.terms["ce"]}
        arm = replace(method, passes=passes, terms=kept)
        train_step(arm, net, torch.optim.SGD(net.parameters(), lr=0), batch, Clock(0, 0), seed=0)
        seen.append(buffers(net))
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


# Three steps against plain loops, in float64


def margin_of_probabilities(z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z, 1)
    true = p.gather(1, y[:, None])[:, 0]
    return true - p.scatter(1, y[:, None], -1).amax(1)


def kl(z: Tensor, z_adv: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(z_adv, 1), F.softmax(z, 1), reduction="none").sum(1)


def boosted(z: Tensor, y: Tensor) -> Tensor:
    rival = F.softmax(z, 1).scatter(1, y[:, None], -1).amax(1)
    return F.cross_entropy(z, y, reduction="none") - torch.log(1 - rival)


class Loop:
    """A plain training loop of one arm, written as the official scripts are."""

    def __init__(self, arm: str) -> None:
        self.arm, self.radii = arm, torch.full((100,), 0.005)

    def step(self, net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        batch = small_batch(number)
        optimizer.zero_grad()
        if self.arm == "MMA":
            self.mma(net, batch, number)
            optimizer.step()
        elif self.arm == "ST-AT":
            self.squeeze(net, batch, number)
            optimizer.step()
        else:
            x_adv, kappa = self.attack(net, batch, number)
            net.train()
            with awp(net, x_adv, batch.y) if self.arm == "MWPB-AWP" else nothing():
                self.loss(net, batch, x_adv, kappa).backward()
                optimizer.step()

    def start(self, x: Tensor, eps: Tensor, number: int, name: str = "adv") -> Tensor:
        rng = generator(0, f"craft/{name}", number)
        if self.arm in ("GAIRAT", "WAT", "MMA"):
            noise = 2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1
            return (x + noise * eps).clamp(0, 1)
        return x + 0.001 * torch.randn(x.shape, generator=rng, dtype=x.dtype)

    def attack(self, net: nn.Module, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        x, y = batch.x, batch.y
        net.eval()
        eps = torch.full((8, 1, 1, 1), EPS, dtype=torch.float64)
        if self.arm.startswith("MWPB"):
            alpha = {"MWPB-TRADES": 0.42, "MWPB-MART": 0.55}.get(self.arm, 0.58)
            with torch.no_grad():
                d = margin_of_probabilities(net(x), y)
            eps = EPS * torch.exp(alpha * d).view(-1, 1, 1, 1)
        kappa, point = torch.zeros(8).double(), self.start(x, eps, number)
        for _ in range(STEPS):
            point = point.detach().requires_grad_()
            z = net(point)
            for i in range(len(y)):
                if z[i].argmax() == y[i]:
                    kappa[i] += 1
            loss = kl(net(x), z).sum() if self.arm == "MWPB-TRADES" else self.inner(z, y)
            (grad,) = torch.autograd.grad(loss, point)
            point = point.detach() + eps / 4 * grad.sign()
            point = torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)
        return point, kappa

    def inner(self, z: Tensor, y: Tensor) -> Tensor:
        if self.arm == "WAT":
            weight = torch.exp(-0.5 * margin_of_probabilities(z, y))
            return (weight * F.cross_entropy(z, y, reduction="none")).mean()
        return F.cross_entropy(z, y)

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor, kappa: Tensor) -> Tensor:
        x, y = batch.x, batch.y
        if self.arm == "MWPB-TRADES":
            z, z_adv, _ = net(x), net(x_adv), net(x)
            return F.cross_entropy(z, y) + 6 * kl(z, z_adv).mean()
        if self.arm == "MWPB-MART":
            z, z_adv = net(x), net(x_adv)
            true = F.softmax(z, 1).gather(1, y[:, None])[:, 0]
            return boosted(z_adv, y).mean() + 5 * (kl(z, z_adv) * (1 - true)).mean()
        z = net(x_adv)
        losses, d = F.cross_entropy(z, y, reduction="none"), margin_of_probabilities(z, y)
        if self.arm == "WAT":
            return (torch.exp(-0.5 * d) * losses).mean()
        if self.arm == "MAIL-AT":
            return (3 * torch.sigmoid(10 * (-d.detach() - 0.5)) * losses).mean()
        if self.arm == "GAIRAT":
            weight = (1 + torch.tanh(-1 + (STEPS / 2 - kappa) * 5 / (STEPS / 2))) / 2
            return (weight * len(weight) / weight.sum() * losses).mean()
        return losses.mean()

    def mma(self, net: nn.Module, batch: Batch, number: int) -> None:
        x, y = batch.x, batch.y
        net.train()
        z = net(x)
        correct = soft(z.detach(), y) < 0
        (F.cross_entropy(z, y) / 3).backward()
        net.eval()
        eps = self.radii[batch.index].clamp_min(0.005).double().view(-1, 1, 1, 1)
        point = self.start(x, eps, number, "direction")
        for _ in range(STEPS):
            point = point.detach().requires_grad_()
            (grad,) = torch.autograd.grad(soft(net(point), y).sum(), point)
            point = point.detach() + 2.5 * eps / STEPS * grad.sign()
            point = torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)
        unit, mixed = (point - x) / (eps + 1e-12), x.clone()
        radius, d_max = torch.zeros(8, dtype=torch.float64), 32 / 255
        for i in range(8):  # one by one, as nobody would
            if correct[i]:
                low, high, now = 0.0, 1.05 * d_max, float(eps[i])
                for _ in range(10):
                    with torch.no_grad():
                        value = soft(net((x + now * unit).clamp(0, 1)), y)[i]
                    low, high = (now, high) if value < 0 else (low, min(high, now))
                    now = (low + high) / 2
                radius[i] = now
                mixed[i] = (x[i] + now * unit[i]).clamp(0, 1)
        net.train()
        losses = F.cross_entropy(net(mixed), y, reduction="none")
        counted = ~correct | (radius < d_max)
        (2 / 3 * (losses * counted).sum() / 8).backward()
        self.radii[batch.index] = radius.float()

    def squeeze(self, net: nn.Module, batch: Batch, number: int) -> None:
        """losses.py: batch statistics that are not tracked, three points a sample."""
        x, y = batch.x, batch.y
        kept = [buffer.clone() for buffer in net.buffers()]
        rng = generator(0, "craft/adv", number)
        adv, col = (
            x + 0.001 * torch.randn(x.shape, generator=rng, dtype=x.dtype) for _ in range(2)
        )
        net.train()
        for _ in range(STEPS):
            points = [p.detach().requires_grad_() for p in (x, col, adv)]
            upper, lower, divergence = extremes([net(p) for p in points], y)
            grads = torch.autograd.grad(
                divergence.sum(), points, allow_unused=True, materialize_grads=True
            )
            new = []
            for which in (upper, lower):
                rows = [points[k][i].detach() for i, k in enumerate(which)]
                slopes = [grads[k][i].sign() for i, k in enumerate(which)]
                moved = torch.stack(rows) + EPS / 4 * torch.stack(slopes)
                moved = torch.minimum(torch.maximum(moved, x - EPS), x + EPS)
                new.append(moved.clamp(0, 1))
            adv, col = new
        z_col = net(col)
        for buffer, value in zip(net.buffers(), kept, strict=True):
            buffer.data.copy_(value)
        z, z_adv = net(x), net(adv)
        _, _, divergence = extremes([z, z_col, z_adv], y)
        (F.cross_entropy(z, y) + 6 * divergence.mean()).backward()


def soft(z: Tensor, y: Tensor) -> Tensor:
    """SLM of advertorch: the true class out of the sum by a large number."""
    hot = F.one_hot(y, z.shape[1]).double()
    return torch.logsumexp(z - 1e10 * hot, 1) - (z * hot).sum(1)


def extremes(z: list[Tensor], y: Tensor) -> tuple[list[int], list[int], Tensor]:
    p = torch.stack([F.softmax(each, 1).gather(1, y[:, None])[:, 0] for each in z])
    upper, lower = p.argmin(0).tolist(), p.argmax(0).tolist()
    up = torch.stack([z[k][i] for i, k in enumerate(upper)])
    low = torch.stack([z[k][i] for i, k in enumerate(lower)])
    return upper, lower, (kl(low.detach(), up) + kl(up.detach(), low)) / 2


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def awp(net: nn.Module, x_adv: Tensor, y: Tensor) -> Iterator[None]:
    """utils_awp.py: an ascent step of a copy, rescaled to 0.01 of each weight's norm."""
    proxy = copy.deepcopy(net)
    F.cross_entropy(proxy(x_adv), y).backward()
    pairs = zip(net.named_parameters(), proxy.parameters(), strict=True)
    moves = [
        (w, 0.01 * w.detach().norm() / p.grad.norm() * p.grad)
        for (name, w), p in pairs
        if w.dim() > 1 and "weight" in name and p.grad is not None
    ]
    with torch.no_grad():
        for w, move in moves:
            w.add_(move)
    yield
    with torch.no_grad():
        for w, move in moves:
            w.sub_(move)


def trained(
    method: Method, steps: int = 3, start: Callable[[], Net] = sure_net
) -> tuple[nn.Module, dict[str, Tensor]]:
    net = start()
    _, memories = train_steps(method, net, steps)
    return net, memories.state_dict()


@pytest.mark.parametrize("arm", ARMS)
def test_three_steps_are_those_of_a_plain_loop(arm):
    method = composed(*ARMS[arm], "attack.step_size=eps/4")
    start = small_net if arm == "MWPB-MART" else sure_net  # the plain log(1 - p) overflows
    ours, memory = trained(method, start=start)
    theirs, loop = start(), Loop(arm)
    optimizer = sgd(theirs)
    for step in range(3):
        loop.step(theirs, optimizer, step)
    assert largest_difference(ours, theirs) < 1e-9
    assert largest_difference(ours, start()) > 1e-3
    if arm == "MMA":
        torch.testing.assert_close(memory["mma_radius"], loop.radii)
        assert memory["mma_radius"].unique().numel() > 3


# Identities


def same(one: Method, other: Method) -> bool:
    return largest_difference(trained(one)[0], trained(other)[0]) == 0


QUARTER = "attack.step_size=eps/4"


@pytest.mark.parametrize("name", ["at", "trades", "mart"])
def test_alpha_0_is_the_method_with_step_a_quarter_of_eps(name):
    plain_one = composed(f"method={name}", QUARTER)
    flat = composed(
        f"method={name}", QUARTER, f"{MWPB}=enabled", "component.margin_weighted_epsilon.alpha=0",
        NOW,
    )  # fmt: skip
    assert same(plain_one, flat)
    assert not same(plain_one, composed(f"method={name}", QUARTER, f"{MWPB}=enabled", NOW))


def test_the_first_phase_is_training_at_half_the_radius():
    half = composed("method=at", QUARTER, f"eps={EPS / 2}")
    assert same(half, composed("method=at", QUARTER, f"{MWPB}=enabled"))


def test_weights_without_an_effect_leave_adversarial_training():
    at = composed("method=at")
    endless = composed("method=gairat", "component.gairat.start=0", "component.gairat.shift=50")
    assert same(at, endless)
    assert same(at, composed("method=gairat")), "before its start"
    assert same(at, composed("method=wat", "component.wat.a=0"))


def test_gamma_0_is_the_method_without_awp():
    arm = ARMS["MWPB-AWP"]
    assert same(composed(*ARMS["MWPB-AT"]), composed(*arm, "component.awp.gamma=0"))
    assert not same(composed(*ARMS["MWPB-AT"]), composed(*arm))


def test_with_one_point_squeeze_training_is_standard_training():
    """No step and no noise: all three points are the clean image, and R is 0."""
    overrides = ("method=st_at", "attack.steps=0", "attack.start=clean")
    method = composed(*overrides)
    # the two tracked passes are of the same images
    twice = composed("method=standard", "method.passes=[nat,bn:nat,step]")
    difference = largest_difference(trained(method)[0], trained(twice)[0])
    assert difference < 1e-12


def test_points_are_reassigned_without_a_chosen_clean_image_by_default_only():
    """Both examples on one side of the clean image's class: roles are swapped, x is not chosen."""
    seen = []
    for how in ("always", "with_clean"):
        crafter = Squeeze(1, 0.25, reassigns=how)
        x = torch.tensor([0.5], dtype=torch.float64).view(1, 1, 1, 1)
        views = StepViews(
            small_net(), Batch(x, torch.zeros(1, dtype=torch.int64), torch.arange(1)), LATE,
            torch.enable_grad,
        )  # fmt: skip

        def logits(p: Tensor) -> Tensor:
            return torch.stack([10 * p.flatten(), torch.zeros(1, dtype=p.dtype)], 1)

        setattr(views, "forward", logits)  # noqa: B010
        adv, col = torch.full_like(x, 0.6), torch.full_like(x, 0.4)  # the wrong way round
        clean = x.detach().requires_grad_()
        eps = torch.tensor([0.2], dtype=torch.float64)
        seen.append(crafter._step(views, (clean, col, adv), logits(clean), eps))
    (adv, col), (own_adv, own_col) = seen
    assert (adv.item(), col.item()) == pytest.approx((0.35, 0.65)), "each from the other's place"
    assert (own_adv.item(), own_col.item()) == pytest.approx((0.55, 0.45)), "each from its own"


# Phases, combinations, refusals


def test_the_start_is_a_share_of_the_epochs():
    for epochs, wanted in ((110, 80), (20, 14), (11, 8)):
        (phase,) = compose_config("method=at", f"{MWPB}=enabled", f"epochs={epochs}").phases
        budget = phase.method.budget
        assert isinstance(budget, MarginWeighted)
        assert budget.start == wanted


def test_plain_adversarial_training_may_come_first():
    first = "component.margin_weighted_epsilon.before=at"
    mail = ("component/mail=trades", "component.mail.start=90/110")
    arm = ("method=trades", f"{MWPB}=trades", first, "epochs=110", *mail, "eps=8/255")
    early, late = compose_config(*arm).phases
    assert (early.epochs, late.epochs, late.optim) == (80, 30, "keep")
    assert early.method.budget == Fixed(4 / 255)
    assert list(early.method.terms) == ["ce"]
    assert isinstance(late.method.budget, MarginWeighted)
    assert late.method.budget.start == 0
    weight = late.method.terms["kl"].weight
    assert isinstance(weight, ProbabilisticMargin)
    assert weight.start == 90, "the second part goes on counting"
    assert late.counts_from == 80
    assert (
        early.method.crafters["adv"]
        == compose_config("method=at", "eps=8/255").phases[0].method.crafters["adv"]
    )


def test_awp_after_plain_adversarial_training_sets_in_at_its_epoch():
    """Counted in the second part alone, epoch 90 of 110 would be beyond its 30."""
    before = (
        "component.margin_weighted_epsilon.before=at",
        "component.margin_weighted_epsilon.start=1/2",
    )
    arm = (
        "method=at",
        f"{MWPB}=enabled",
        *before,
        "component/awp=enabled",
        "component.awp.start=3",
    )
    _, late = compose_config(*arm, "epochs=4").phases
    ascent = late.method.ascent
    assert ascent is not None
    moved = []
    for epoch in range(late.epochs):
        net = small_net()
        clock = Clock(late.counts_from + epoch, 0)

        def closure(net: nn.Module, terms: object = None) -> tuple[Tensor, dict[str, Tensor]]:
            batch = small_batch()
            return F.cross_entropy(net(batch.x), batch.y), {}

        with ascent(net, closure, clock):
            moved.append(largest_difference(net, small_net()) > 0)
    assert moved == [False, True]


def test_plain_adversarial_training_comes_after_a_burn_in():
    before = "component.margin_weighted_epsilon.before=at"
    burn_in = ("component/burn_in=enabled", "component.burn_in.epochs=10")
    phases = compose_config(
        "method=trades", f"{MWPB}=trades", before, "epochs=100", *burn_in
    ).phases
    assert [(phase.name, phase.epochs) for phase in phases] == [
        ("burn_in", 10), ("small_radius", 70), ("main", 30),
    ]  # fmt: skip
    assert [phase.optim for phase in phases] == ["keep", "fresh", "keep"]
    assert not phases[0].method.crafters


def test_clean_passes_after_the_step_stay_beside_mma():
    method = composed("method=mma", "method.passes=[craft:adv,nat,adv,step,nat]")
    passes = [str(entry) for entry in method.passes]
    assert passes == ["nat", "craft:direction", "craft:adv", "adv", "step", "nat"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=lma_at", f"{MWPB}=enabled", NOW),
        ("method=lma_at", "component/awp=enabled"),
        ("method=at", "component/mail=enabled", "component/margin_loss=both"),
        ("method=trades", f"{MWPB}=trades", NOW, "component/emr=approximate"),
        ("method=mma", "component/awp=enabled"),
        ("method=mma", "component/ema_logits=enabled", "component/margin_loss=outer"),
        ("method=mma", "component/boosted_cross_entropy=enabled"),
        ("method=st_at", f"{MWPB}=enabled", NOW, "component/awp=enabled"),
        ("method=st_at", "component/mail=enabled", "component.mail.start=0"),
        ("method=wat", "component/margin_loss=both", f"{MWPB}=enabled", NOW),
        ("method=gairat", "component.gairat.start=0", "component/margin_loss=both"),
        ("method=mart", "component/squeeze=enabled"),
        ("method=mart", "component/mma=enabled"),
        ("method=trades", "component/gairat=enabled", "component.gairat.start=0"),
    ],
)
def test_combinations_train(overrides):
    net, _ = trained(composed(*overrides), steps=2)
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert largest_difference(net, sure_net()) > 1e-4


REFUSED = {
    ("method=standard", f"{MWPB}=enabled"): "trains on no attack within a radius",
    ("method=dyart", f"{MWPB}=enabled"): "trains on no attack within a radius",
    ("method=mma", f"{MWPB}=enabled"): "component/margin_weighted_epsilon=disabled",
    ("method=trades", "component/mma=enabled"): "does not classify",
    ("method=mma", "component/margin_loss=both"): "component/margin_loss=outer",
    ("method=st_at", "component/margin_loss=inner"): "component/margin_loss=outer",
    ("method=mma", "component/gairat=enabled"): "component/gairat=disabled",
    ("method=mma", "component/mail=enabled"): "has a weight already",
    ("method=at", "component/mail=enabled", "component/wat=enabled"): "has a weight already",
    ("method=st_at", "component/wat=enabled"): "no term in the role robust",
    ("method=trades", "component/squeeze=enabled", "component/wat=enabled"): "wat=disabled",
    ("method=st_at", "component/mma=enabled"): "does not classify",
    ("method=mma", "component/squeeze=enabled"): "component/squeeze=disabled",
    ("method=standard", "component/squeeze=enabled"): "component/squeeze=disabled",
    ("method=standard", "component/gairat=enabled"): "set method=at, trades or mart",
    ("method=standard", "component/wat=enabled"): "set method=at, trades or mart",
    ("method=standard", "component/mma=enabled"): "set method=at, trades or mart",
    ("method=st_at", "attack.bn=train"): "set component.squeeze.bn instead",
    ("method=st_at", "attack.start=clean"): "attack.start=gaussian",
    ("method=gairat", "attack.steps=0"): "there is no step to count",
    ("method=gairat", "component.gairat.start=60"): "a share of the epochs in",
    ("method=mma", "component.mma.clean=1"): "a share in [0, 1)",
    ("method=mma", "component.mma.minimum=0"): "must be positive",
    (f"{MWPB}=enabled", "component.margin_weighted_epsilon.first=-1"): "must not be negative",
    (f"{MWPB}=enabled", "component.margin_weighted_epsilon.start=80"): "a share of the epochs in",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_combined_is_refused_with_the_reason(overrides):
    _, problems = check(compose_plain(*overrides))
    assert any(REFUSED[overrides] in problem for problem in problems), problems


# Runs


@pytest.mark.parametrize("parts", [
    ("method=mma",), ("method=mma", "component/burn_in=enabled", "component.burn_in.epochs=1"),
    ("method=at", f"{MWPB}=enabled", "component/burn_in=enabled",
                      "component.burn_in.epochs=1"),
    ("method=at", f"{MWPB}=enabled", "component.margin_weighted_epsilon.before=at"),
])  # fmt: skip
def test_a_run_survives_epochs_a_short_batch_and_a_resume(tmp_path, monkeypatch, parts):
    more = [*parts, "epochs=2", "data.train_size=130", "batch_size=50", "attack.steps=2"]
    more += ["component.margin_weighted_epsilon.start=1/2"] if parts[0] != "method=mma" else []
    whole = plain(tmp_path / "whole", *more, "evaluation=none", "selection.n=10")
    broken = plain(tmp_path / "broken", *more, "evaluation=none", "selection.n=10")
    assert job.train(whole) == DONE
    resumed = finish_interrupted(monkeypatch, broken, 4)
    assert metrics(resumed) == metrics(run_of(whole))
    assert weights(resumed) == weights(run_of(whole))
    if parts[0] == "method=mma":
        snapshot = run_of(whole).load()
        assert snapshot is not None
        radii = snapshot.train["memory"]["mma_radius"]
        assert radii.shape == (1437,)
        assert (radii != torch.tensor(0.005)).sum() == 130, "the images of the split, no others"


def test_budgets_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="must not be negative"):
        MarginWeighted(-0.1, 0.5, first=0)
    with pytest.raises(ValueError, match="above 0"):
        Remembered("mma_radius", 0)
    with pytest.raises(ConfigError, match="set before=own"):
        compose_config(
            "method=st_at", f"{MWPB}=enabled", "component.margin_weighted_epsilon.before=at"
        )


def test_methods_are_their_components():
    for name in ("mma", "wat", "gairat"):
        assert composed(f"method={name}") == composed("method=at", f"component/{name}=enabled")
