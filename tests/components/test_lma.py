"""The LMA family: arms as selections of components, the specification's totals, exact steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.config.validation import check
from ablation.crafters import Pgd
from ablation.errors import DONE, ConfigError
from ablation.jobs import train as job
from ablation.jobs.setup import own_group
from ablation.numerics.precision import precision_context
from ablation.random import generator
from ablation.terms import LogitPairing
from ablation.training.memory import remembering
from ablation.training.method import Method
from ablation.training.step import total_loss, train_step
from ablation.types import Clock
from tests.support.configs import compose_config, compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, weights
from tests.support.logits import Z_ADV, Y, Z, given
from tests.support.parts import (
    largest_difference,
    memories_of,
    sgd,
    small_batch,
    small_net,
    train_steps,
)

OURS = ("component/margin_loss=both", "component/ema_logits=enabled")
BCE = "component/boosted_cross_entropy"
ARMS = {
    "AT+Ours": ("method=at", *OURS),
    "TRADES+Ours": ("method=trades", *OURS),
    "MART+Ours": ("method=mart", *OURS),
    "LMA-AT": ("method=lma_at",),
    "A": ("method=lma_at", f"{BCE}=disabled", "component/margin_loss=outer"),
    "B": ("method=lma_at", "component/margin_loss=inner"),
    "D": ("method=lma_at", "component/ema_logits=disabled"),
    "AT+L'": ("method=at", "component/margin_loss=both"),
    "TRADES+L'": ("method=trades", "component/margin_loss=both"),
    "MART+L'": ("method=mart", "component/margin_loss=both"),
    "PMHR-AT": ("method=pmhr_at",),
}


def composed(*overrides: str) -> Method:
    config = compose_config("eps=0.1", "attack.steps=2", "epochs=120", *overrides)
    return config.phases[-1].method


TOTALS = {
    ("AT+Ours", 0.8): (13.302422, 12.595755),
    ("AT+Ours", 0.2): (2.570533, 1.863867),
    ("AT+Ours", 1.0): (19.726232, 19.019565),
    ("TRADES+Ours", 0.8): (13.853450, 13.146783),
    ("TRADES+Ours", 0.2): (3.121561, 2.414894),
    ("TRADES+Ours", 1.0): (20.277259, 19.570593),
    ("MART+Ours", 0.8): (14.054107, 13.347441),
    ("MART+Ours", 0.2): (3.322219, 2.615552),
    ("MART+Ours", 1.0): (20.477917, 19.771251),
    ("LMA-AT", 0.8): (13.795857, 13.089191),
    ("LMA-AT", 0.2): (3.063969, 2.357302),
    ("LMA-AT", 1.0): (20.219667, 19.513000),
}


@pytest.mark.parametrize("reduction", ["sum", "classes"])
@pytest.mark.parametrize(("arm", "weight"), TOTALS)
def test_t5_10_totals_at_the_first_step(arm, weight, reduction):
    tau = 0 if weight == 1 else weight
    method = composed(
        *ARMS[arm],
        f"component.ema_logits.tau={tau}",
        f"component.margin_loss.reduction={reduction}",
    )
    views = given(Z, Z_ADV, Y, Clock(0, 0), memories_of(method, batch_size=2))
    wanted = TOTALS[arm, weight][reduction == "classes"]
    assert total_loss(method, views)[0].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("weight", "reduction", "wanted"),
    [
        (0.8, "sum", 18.821682),
        (0.8, "classes", 18.115015),
        (0.2, "sum", 4.668627),
        (0.2, "classes", 3.961960),
    ],
)
def test_t5_10_lma_at_at_the_second_step(weight, reduction, wanted):
    method = composed(
        "method=lma_at",
        f"component.ema_logits.tau={weight}",
        f"component.margin_loss.reduction={reduction}",
    )
    kept = memories_of(method, batch_size=2)
    views = given(Z, Z_ADV, Y, Clock(0, 0), kept)
    kept.commit(remembering(method), views)
    views = given(Z, Z_ADV, Y, Clock(0, 1), kept)
    assert total_loss(method, views)[0].item() == pytest.approx(wanted, abs=1e-5)


def test_t4_1_pmhr():
    method = composed(
        "method=pmhr_at", "component.pmhr.weighs=one", "component.pmhr.weight_decay=0"
    )
    found = total_loss(method, given(Z, Z_ADV, Y))[0].item()
    assert found == pytest.approx(1.287373 + 86 * 0.207817, abs=1e-4)


@pytest.mark.parametrize(("tau", "weighs", "weight"), [
    (0.2, "present", 0.2), (0.2, "past", 0.8), (0, "present", 1), (0, "past", 1), (1, "present", 1),
])  # fmt: skip
def test_which_side_tau_weighs(tau, weighs, weight):
    method = composed(
        *("method=lma_at", f"component.ema_logits.tau={tau}"),
        f"component.ema_logits.weighs={weighs}",
    )
    term = method.terms["ema_logits"].term
    assert isinstance(term, LogitPairing)
    assert term.weight == pytest.approx(weight)


def losses(*overrides: str) -> list[str]:
    """What the attack ascends."""
    crafter = composed(*overrides).crafters["adv"]
    assert isinstance(crafter, Pgd)
    return sorted(crafter.losses)


def test_the_attacks_of_the_arms():
    for arm, overrides in ARMS.items():
        wanted = ["ce"] if arm in ("A", "PMHR-AT") else ["ce", "margin_loss"]
        assert losses(*overrides) == wanted, arm
    assert losses(*ARMS["TRADES+Ours"], "component.margin_loss.base=own") == ["kl", "margin_loss"]


def test_option_c_is_lma_at_and_ours_on_at_but_for_the_cross_entropy():
    lma, ours = composed("method=lma_at"), composed(*ARMS["AT+Ours"])
    assert list(lma.terms) == ["bce", "ema_logits", "margin_loss"]
    assert {name: lma.terms[name] for name in ("margin_loss", "ema_logits")} == {
        name: ours.terms[name] for name in ("margin_loss", "ema_logits")
    }
    assert composed("method=at", *OURS, f"{BCE}=enabled") == lma
    assert lma.roles == {"robust": "bce", "classify": "bce"}


# Three steps against plain references, in float64


@dataclass
class Reference:
    """A plain training loop of one arm: what is minimised, and what the attack ascends."""

    outer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    inner: Callable[[Tensor, Tensor], Tensor]

    def step(self, net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        batch = small_batch(number)
        x, y = batch.x, batch.y
        net.eval()
        noise = torch.randn(x.shape, generator=generator(0, "craft/adv", number), dtype=x.dtype)
        point = x + 0.001 * noise
        for _ in range(2):
            point.requires_grad_(True)
            (grad,) = torch.autograd.grad(self.inner(net(point), y), point)
            point = point.detach() + 0.025 * grad.sign()
            point = torch.minimum(torch.maximum(point, x - 0.1), x + 0.1).clamp(0, 1)
        net.train()
        optimizer.zero_grad()
        z, z_adv = net(x), net(point)
        self.outer(z, z_adv, y, self.decay(net)).backward()
        optimizer.step()

    def decay(self, net: nn.Module) -> Tensor:
        parts = [p.square().sum() for name, p in net.named_parameters() if p.dim() > 1]
        return torch.stack(parts).sum() / 2


def boosted(z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z, 1)
    rival = p.scatter(1, y[:, None], -1).amax(1)
    return (F.cross_entropy(z, y, reduction="none") - torch.log(1 - rival)).mean()


def squared_margin(z: Tensor, y: Tensor) -> Tensor:
    return F.multi_margin_loss(z, y, p=2, margin=0.9)


def divergence(z: Tensor, z_adv: Tensor, weights: Tensor | None = None) -> Tensor:
    p = F.softmax(z, 1)
    kl = (p * (p.log() - F.log_softmax(z_adv, 1))).sum(1)
    return kl.mean() if weights is None else (weights * kl).mean()


def mhuber(d: Tensor, alpha: float = 5.345) -> Tensor:
    return (alpha**2 * (1 - torch.cos(d / alpha))).mean(1)


class Averaged:
    """beta times mHuber of the averaged difference; position-wise, in float32 between steps."""

    def __init__(self, tau: float = 0.2) -> None:
        self.tau, self.before = tau, torch.zeros(8, 3)

    def __call__(self, z: Tensor, z_adv: Tensor) -> Tensor:
        d = (1 - self.tau) * self.before.double() + self.tau * (z_adv - z)
        self.before = d.detach().float()
        return 86 * mhuber(d).mean()


def reference(arm: str) -> Reference:
    ema = Averaged()
    ce = F.cross_entropy
    attack = ce if arm in ("A", "PMHR-AT") else lambda z, y: ce(z, y) + squared_margin(z, y)

    def outer(z: Tensor, z_adv: Tensor, y: Tensor, decay: Tensor) -> Tensor:
        base = arm.partition("+")[0]
        loss = (
            ce(z, y) + 6 * divergence(z, z_adv)
            if base == "TRADES"
            else boosted(z_adv, y)
            + 5 * divergence(z, z_adv, 1 - F.softmax(z, 1).gather(1, y[:, None])[:, 0])
            if base == "MART"
            else ce(z_adv, y)
            if base in ("AT", "A")
            else boosted(z_adv, y)
        )
        if arm not in ("B", "PMHR-AT"):
            loss = loss + squared_margin(z_adv, y)
        if arm.endswith("Ours") or arm in ("LMA-AT", "A", "B"):
            loss = loss + ema(z, z_adv)
        if arm == "PMHR-AT":
            cosine = F.cosine_similarity(F.softmax(z, 1), F.softmax(z_adv, 1), 1)
            loss = loss + 86 * ((1 - cosine) * mhuber(z_adv - z)).mean() + 3.5e-3 * decay
        return loss

    return Reference(outer, attack)


@pytest.mark.parametrize("arm", ARMS)
def test_three_steps_are_those_of_a_plain_loop(arm):
    passes = ["method.passes=[craft:adv,nat,adv,step]"]  # the reference always makes both
    method = composed(*ARMS[arm], "attack.step_size=eps/4", *passes)
    ours, theirs, plain_loop = small_net(), small_net(), reference(arm)
    memories = memories_of(method)
    optimizers = [sgd(net) for net in (ours, theirs)]
    if arm == "PMHR-AT":
        for optimizer in optimizers:
            optimizer.param_groups[0]["weight_decay"] = 0.0
    for step in range(3):
        _, views = train_step(
            *(method, ours, optimizers[0], small_batch(step), Clock(0, step)),
            seed=0,
            memories=memories,
        )
        memories.commit(remembering(method), views)
        plain_loop.step(theirs, optimizers[1], step)
    assert largest_difference(ours, theirs) < 1e-9
    assert largest_difference(ours, small_net()) > 1e-3


# Identities


def steps(method: Method, number: int = 3) -> nn.Module:
    net = small_net()
    train_steps(method, net, number)
    return net


def test_without_weight_it_is_at_bit_for_bit():
    """L' off, and beta so small that nothing of it is left beside the cross-entropy."""
    at = composed("method=at", "method.passes=[craft:adv,nat,adv,step]")
    off = composed("method=at", "component/ema_logits=enabled", "component.ema_logits.coef=1e-300")
    assert largest_difference(steps(at), steps(off)) == 0


def test_weight_one_is_plain_pairing_whatever_came_before():
    plain_pairing = composed("method=lma_at", "component.ema_logits.tau=0")
    tau_one = composed("method=lma_at", "component.ema_logits.tau=1")
    assert largest_difference(steps(plain_pairing), steps(tau_one)) == 0


def test_with_awp_the_average_is_of_the_pass_that_the_loss_was_taken_of():
    method = composed("method=lma_at", "component/awp=enabled", "component.ema_logits.tau=0.5")
    net, memories = small_net(), memories_of(method)
    optimizer = sgd(net)
    before = torch.zeros(8, 3, dtype=torch.float64)
    for step in range(2):
        batch, clock = small_batch(step), Clock(0, step)
        _, views = train_step(method, net, optimizer, batch, clock, seed=0, memories=memories)
        memories.commit(remembering(method), views)
        wanted = 0.5 * before + 0.5 * (views.logits("adv") - views.logits("nat")).detach()
        found = memories.state_dict()["logit_difference"]
        torch.testing.assert_close(found, wanted.float())
        before = found.double()


def test_losses_and_averages_are_in_single_precision_under_bf16():
    method = composed("method=lma_at")
    net, memories = small_net().float(), memories_of(method)
    batch = small_batch()
    batch = replace(batch, x=batch.x.float())
    log, views = train_step(
        *(method, net, sgd(net), batch, Clock(0, 0)),
        seed=0,
        precision=precision_context("bf16", torch.device("cpu")),
        memories=memories,
    )
    memories.commit(remembering(method), views)
    assert views.logits("adv").dtype == torch.float32
    assert {part.dtype for part in log.parts.values()} == {torch.float32}
    assert memories.state_dict()["logit_difference"].dtype == torch.float32


# Runs


@pytest.mark.parametrize("index", ["position", "sample"])
def test_the_averages_survive_epochs_a_short_batch_and_a_resume(tmp_path, monkeypatch, index):
    parts = [f"component.ema_logits.index={index}", "method=lma_at", "component/burn_in=enabled"]
    parts += ["component.burn_in.epochs=1", "epochs=2", "data.train_size=130", "batch_size=50"]
    whole = plain(tmp_path / "whole", *parts, "evaluation=none", "selection.n=10")
    broken = plain(tmp_path / "broken", *parts, "evaluation=none", "selection.n=10")
    assert job.train(whole) == DONE
    resumed = finish_interrupted(monkeypatch, broken, 7)
    assert metrics(resumed) == metrics(run_of(whole))
    assert weights(resumed) == weights(run_of(whole))
    snapshot = run_of(whole).load()
    assert snapshot is not None
    rows = snapshot.train["memory"]["logit_difference"]
    assert rows.shape == ((1437 if index == "sample" else 50), 10)
    assert rows.dtype == torch.float32
    assert rows.abs().sum() > 0


def test_a_reconstructed_method_says_so_everywhere(tmp_path, capsys):
    container = plain(
        tmp_path, "method=pmhr_at", "epochs=1", "data.train_size=130", "evaluation.n=20"
    )
    assert job.train(container) == DONE
    run = run_of(container)
    assert any("pmhr is reconstructed" in flag for flag in (run.result() or {})["flags"])
    assert "Reconstructed" in run.config()["component"]["pmhr"]["_target_"]
    assert "pmhr is reconstructed" in capsys.readouterr().out
    assert "pmhr" in own_group(compose_config("method=pmhr_at"))


BAD = {
    "component.margin_loss.delta=-0.1": "a margin of 0 or more",
    "component.margin_loss.top_k=0": "at least 1; null takes all",
    "component.ema_logits.tau=1.5": "must lie in [0, 1]",
    "component.ema_logits.tau=-0.1": "must lie in [0, 1]",
    "component.ema_logits.alpha=0": "must be positive; the paper has 1.345",
    "component.ema_logits.coef=0": "component/ema_logits=disabled",
    "component.ema_logits.index=row": "index='row'",
}


@pytest.mark.parametrize("override", BAD)
def test_what_is_out_of_range_is_told(override):
    _, problems = check(compose_plain("method=lma_at", override))
    assert len(problems) == 1
    assert BAD[override] in problems[0]


def test_tau_one_of_the_past_is_told():
    overrides = ("component.ema_logits.tau=1", "component.ema_logits.weighs=past")
    with pytest.raises(ConfigError, match="never looks at a logit"):
        compose_config("method=lma_at", *overrides)


def test_weights_that_would_decay_twice_are_told():
    with pytest.raises(ConfigError, match=r"would decay twice; set optim\.weight_decay=0"):
        compose_config("method=at", "component/pmhr=enabled")
    assert compose_config("method=pmhr_at").optim.weight_decay == 0
    overrides = ("component/pmhr=enabled", "component.pmhr.weight_decay=0")
    assert "weight_norm" not in compose_config(*overrides).phases[-1].method.terms
