"""Methods composed from conf/ against the specification's numbers and plain reference steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.config.validation import check
from ablation.random import generator
from ablation.training.method import Method
from ablation.training.step import total_loss, train_step
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Output
from tests.support.configs import compose_config, compose_plain
from tests.support.logits import Z_ADV, Y, Z
from tests.support.parts import largest_difference, sgd, small_batch, small_net


def preset(name: str, *overrides: str) -> Method:
    config = compose_config(f"method={name}", "eps=8/255", *overrides)
    return config.phases[0].method


def f1_loss(method: Method) -> tuple[Tensor, dict[str, Tensor], StepViews]:
    """The method's loss on fixture F1, without a network."""
    batch = Batch(torch.zeros(2, 2, 5, 5, dtype=torch.float64), Y, torch.arange(2))
    views = StepViews(small_net(), batch, Clock(0, 0), torch.no_grad)
    from ablation.types import Crafted

    views.add("adv", Crafted(batch.x))
    views._outputs = {"nat": Output(Z, Z), "adv": Output(Z_ADV, Z_ADV)}
    loss, parts = total_loss(method, views)
    return loss, parts, views


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("standard", (), 0.288726),
        ("at", (), 0.793938),  # T1.3
        ("trades", (), 1.344965),  # T2.1
        ("mart", (), 1.545623),  # T3.1
        (
            "mart",
            (
                "method.terms.bce.term.constants=official",
                "method.terms.kl.term.constants=official",
                "method.terms.kl.weight.constants=official",
            ),
            1.545456,  # T3.1 with the constants of mart.py
        ),
    ],
)
def test_f1_total(name, overrides, expected):
    loss, _, _ = f1_loss(preset(name, *overrides))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_t3_2_mart_weights():
    method = preset("mart")
    _, _, views = f1_loss(method)
    weight = method.terms["kl"].weight
    assert weight is not None
    assert weight(views).tolist() == pytest.approx([0.156205, 0.334759], abs=1e-6)


def test_trades_beta_beside_the_margin_specification():
    z = torch.tensor([[2.0, 1, 0]], dtype=torch.float64)
    z_adv = torch.tensor([[1.0, 1.5, 0]], dtype=torch.float64)
    from ablation.numerics.functional import boosted_cross_entropy, cross_entropy, kl_divergence

    y = torch.tensor([0])
    trades = cross_entropy(z, y) + 6 * kl_divergence(z, z_adv)
    assert trades.item() == pytest.approx(1.8440141, abs=1e-7)
    assert boosted_cross_entropy(z_adv, y, "official").item() == pytest.approx(1.8947790, abs=1e-7)


# Plain reference steps, written out as the official scripts have them, on the same noise.


def start_noise(batch: Batch, step: int) -> Tensor:
    rng = generator(0, "craft/adv", step)
    return 0.001 * torch.randn(batch.x.shape, generator=rng, dtype=batch.x.dtype)


def reference_attack(net: nn.Module, batch: Batch, step: int, kl: bool) -> Tensor:
    eps, size = 8 / 255, 2 / 255
    net.eval()
    x_adv = batch.x + start_noise(batch, step)
    for _ in range(10):
        x_adv = x_adv.detach().requires_grad_()
        if kl:
            loss = F.kl_div(
                F.log_softmax(net(x_adv), 1), F.softmax(net(batch.x), 1), reduction="sum"
            )
        else:
            loss = F.cross_entropy(net(x_adv), batch.y)
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, batch.x - eps), batch.x + eps).clamp(0, 1)
    net.train()
    return x_adv.detach()


def reference_at(net: nn.Module, batch: Batch, step: int) -> Tensor:
    return F.cross_entropy(net(reference_attack(net, batch, step, kl=False)), batch.y)


def reference_trades(net: nn.Module, batch: Batch, step: int) -> Tensor:
    x_adv = reference_attack(net, batch, step, kl=True)
    natural = F.cross_entropy(net(batch.x), batch.y)
    robust = F.kl_div(
        F.log_softmax(net(x_adv), 1), F.softmax(net(batch.x), 1), reduction="batchmean"
    )
    return natural + 6.0 * robust


def reference_mart(net: nn.Module, batch: Batch, step: int) -> Tensor:
    """mart.py, with its constants."""
    x_adv = reference_attack(net, batch, step, kl=False)
    z, z_adv = net(batch.x), net(x_adv)
    p_adv, p = F.softmax(z_adv, 1), F.softmax(z, 1)
    top2 = torch.argsort(p_adv, dim=1)[:, -2:]
    rival = torch.where(top2[:, -1] == batch.y, top2[:, -2], top2[:, -1])
    bce = F.cross_entropy(z_adv, batch.y) + F.nll_loss(torch.log(1.0001 - p_adv + 1e-12), rival)
    true = p.gather(1, batch.y[:, None]).squeeze(1)
    kl = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(1)
    return bce + 5.0 * (kl * (1.0000001 - true)).mean()


OFFICIAL = [f"method.terms.{k}.constants=official" for k in ("bce.term", "kl.term", "kl.weight")]


@pytest.mark.parametrize(
    ("name", "overrides", "reference"),
    [
        ("at", [], reference_at),
        ("trades", [], reference_trades),
        ("mart", OFFICIAL, reference_mart),
    ],
)
def test_three_steps_follow_the_official_code(
    name: str, overrides: list[str], reference: Callable[[nn.Module, Batch, int], Tensor]
):
    """Every parameter and every BatchNorm buffer, to rounding."""
    ours, theirs = small_net(), small_net()
    optimizer, other = sgd(ours), sgd(theirs)
    method = preset(name, *overrides)
    for step in range(3):
        batch = small_batch(step)
        ours.train()
        train_step(method, ours, optimizer, batch, Clock(0, step), seed=0)
        other.zero_grad()
        reference(theirs, batch, step).backward()
        other.step()
    assert largest_difference(ours, theirs) < 1e-12
    assert largest_difference(ours, small_net()) > 1e-2, "nothing was trained"


def test_the_natural_looking_passes_are_not_trades():
    """Without the third clean pass BatchNorm has other statistics, as the header says."""
    nets = []
    for passes in ("[craft:adv,nat,adv,bn:nat,step]", "[craft:adv,nat,adv,step]"):
        net = small_net()
        method = preset("trades", f"method.passes={passes}")
        for step in range(2):
            train_step(method, net, sgd(net), small_batch(step), Clock(0, step), seed=0)
        nets.append(net)
    assert largest_difference(*nets) > 1e-4


def rice_attack(net: nn.Module, batch: Batch, step: int) -> Tensor:
    """attack_pgd of train_cifar.py with one restart, which a last forward picks; in train mode."""
    eps = 8 / 255
    rng = generator(0, "craft/adv", step)
    noise = torch.rand(batch.x.shape, generator=rng, dtype=torch.float64) * 2 - 1
    x_adv = (batch.x + eps * noise).clamp(0, 1)
    for _ in range(10):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(x_adv), batch.y), x_adv)
        x_adv = x_adv.detach() + eps / 4 * grad.sign()
        x_adv = torch.min(torch.max(x_adv, batch.x - eps), batch.x + eps).clamp(0, 1)
    with torch.no_grad():
        net(x_adv)
    return x_adv


def awp_moves(net: nn.Module, batch: Batch, x_adv: Tensor) -> dict[str, Tensor]:
    """utils_awp.py: one ascent step of a proxy copy, rescaled to 0.01 of each weight's norm."""
    proxy = copy.deepcopy(net)
    F.cross_entropy(proxy(x_adv), batch.y).backward()
    return {
        key: 0.01 * w.detach().norm() / p.grad.norm() * p.grad
        for (key, w), p in zip(net.named_parameters(), proxy.parameters(), strict=True)
        if w.dim() > 1 and "weight" in key and p.grad is not None
    }


RICE = ["attack.bn=train", "attack.start=uniform"]


@pytest.mark.parametrize(
    ("passes", "awp"),
    [
        ("[craft:adv,adv,bn:adv,step,nat]", False),
        ("[craft:adv,adv,ascent,adv,step,nat]", False),
        ("[craft:adv,adv,ascent,adv,step,nat]", True),
    ],
)
def test_rice_et_al_switches_follow_the_official_code(passes: str, awp: bool):
    """Attack in train mode, a forward that picks the restart, a clean forward after the step."""
    switch = "enabled" if awp else "disabled"
    method = preset("at", *RICE, f"method.passes={passes}", f"component/awp={switch}")
    assert not method.problems()
    ours, theirs = small_net(), small_net()
    optimizer, other = sgd(ours), sgd(theirs)
    for step in range(3):
        batch = small_batch(step)
        train_step(method, ours, optimizer, batch, Clock(0, step), seed=0)

        x_adv = rice_attack(theirs, batch, step)
        moves = awp_moves(theirs, batch, x_adv) if awp else {}
        parameters = dict(theirs.named_parameters())
        with torch.no_grad():
            for key, move in moves.items():
                parameters[key].add_(move)
        other.zero_grad()
        F.cross_entropy(theirs(x_adv), batch.y).backward()
        other.step()
        with torch.no_grad():
            for key, move in moves.items():
                parameters[key].sub_(move)
            theirs(batch.x)
    assert largest_difference(ours, theirs) < 1e-12


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("[craft:adv,adv,ascent,step]", "terms.ce needs the view adv"),
        ("[ascent,craft:adv,adv,step]", "craft:adv comes after ascent"),
        ("[craft:adv,adv,ascent,adv,ascent,step]", "ascent is there twice"),
        ("[craft:adv,adv,step,ascent]", "ascent comes after step"),
        ("[craft:adv,nat,ascent,adv,bn:nat,step]", "bn:nat comes before the pass nat"),
    ],
)
def test_an_ascent_in_the_wrong_place_is_named(passes: str, message: str):
    _, problems = check(compose_plain("method=at", f"method.passes={passes}"))
    assert any(message in problem for problem in problems), problems


def test_views_of_components_come_after_the_ascent():
    passes = "method.passes=[craft:adv,adv,ascent,adv,step,nat]"
    method = preset("at", *RICE, passes, "component/margin_maximization=enabled")
    assert [str(entry) for entry in method.passes] == [
        *("craft:adv", "adv", "ascent", "nat", "adv", "step", "nat")
    ]


@pytest.mark.parametrize("awp", ["disabled", "enabled"])
def test_passes_after_the_step_do_not_change_what_commit_sees(awp):
    passes = "method.passes=[craft:adv,nat,adv,step,nat]"
    method = preset("trades", passes, f"component/awp={awp}")
    net = small_net()
    log, views = train_step(method, net, sgd(net), small_batch(), Clock(0, 0), seed=0)
    assert total_loss(method, views)[0].item() == log.loss.item()
    assert log.correct["nat"] == (views.logits("nat").argmax(1) == views.y("nat")).sum()


def test_a_clean_pass_after_the_step_alone_counts_as_the_clean_accuracy():
    method = preset("at", "method.passes=[craft:adv,adv,step,nat]")
    net = small_net()
    log, views = train_step(method, net, sgd(net), small_batch(), Clock(0, 0), seed=0)
    assert sorted(log.correct) == ["adv", "nat"]
    assert not views.done("nat")


def test_awp_with_gamma_zero_and_at_without_it_are_the_same():
    nets = []
    for overrides in ([], ["component/awp=enabled", "component.awp.gamma=0.0"]):
        net = small_net()
        train_step(preset("at", *overrides), net, sgd(net), small_batch(), Clock(0, 0), seed=0)
        nets.append(net)
    assert largest_difference(*nets) == 0


def test_t11_2_awp_on_a_linear_model():
    from ablation.ascents import AdversarialWeightPerturbation

    net = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 0], [0, 4]]))
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.tensor([0])

    def closure(net: nn.Module, terms: object = None) -> tuple[Tensor, dict[str, Tensor]]:
        loss = F.cross_entropy(net(x), y)
        return loss, {"ce": loss}

    assert closure(net)[0].item() == pytest.approx(1.313262, abs=1e-6)
    with AdversarialWeightPerturbation(0.01)(net, closure, Clock(0, 0)):
        wanted = torch.tensor([[2.975, -0.025], [0.025, 4.025]], dtype=torch.float64)
        torch.testing.assert_close(net.weight.detach(), wanted)
        assert closure(net)[0].item() == pytest.approx(1.387335, abs=1e-6)
    torch.testing.assert_close(
        net.weight.detach(), torch.tensor([[3.0, 0], [0, 4]], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["at", "trades"])
def test_awp_follows_the_official_code(name):
    """utils_awp.py: a proxy copy, one ascent step, perturb, train there, restore."""
    gamma, reference = 0.01, {"at": reference_at, "trades": reference_trades}[name]
    order = ["method.passes=[craft:adv,adv,step]"] if name == "at" else []
    method = preset(name, "component/awp=enabled", *order)
    ours, theirs = small_net(), small_net()
    optimizer, other = sgd(ours), sgd(theirs)
    for step in range(3):
        batch = small_batch(step)
        train_step(method, ours, optimizer, batch, Clock(0, step), seed=0)

        proxy = copy.deepcopy(theirs)
        reference(proxy, batch, step).backward()
        moves = {}
        for (key, w), p in zip(theirs.named_parameters(), proxy.parameters(), strict=True):
            if w.dim() > 1 and "weight" in key and p.grad is not None:
                moves[key] = gamma * w.detach().norm() / p.grad.norm() * p.grad
        # The adversarial images are those of the unperturbed weights.
        x_adv = reference_attack(theirs, batch, step, kl=name == "trades")
        parameters = dict(theirs.named_parameters())
        with torch.no_grad():
            for key, move in moves.items():
                parameters[key].add_(move)
        if name == "at":
            loss = F.cross_entropy(theirs(x_adv), batch.y)
        else:
            natural = F.cross_entropy(theirs(batch.x), batch.y)
            loss = natural + 6.0 * F.kl_div(
                F.log_softmax(theirs(x_adv), 1),
                F.softmax(theirs(batch.x), 1),
                reduction="batchmean",
            )
        other.zero_grad()
        loss.backward()
        other.step()
        with torch.no_grad():
            for key, move in moves.items():
                parameters[key].sub_(move)
    assert largest_difference(ours, theirs) < 1e-12
