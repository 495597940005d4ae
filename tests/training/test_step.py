"""The seams of a step: subsets, memory, weights, gates, heads, ascents, modes, determinism."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ablation.budgets import Fixed
from ablation.crafters import Ascended, AttackCrossEntropy, Pgd
from ablation.numerics.modes import BatchNormReplay, buffers, crafting
from ablation.terms import KL, CrossEntropy
from ablation.training.engine import EpochSums, Key
from ablation.training.memory import Memories
from ablation.training.method import Method, Pass, Slot, parse_passes
from ablation.training.optim import LightAdamW, LightSgd
from ablation.training.step import total_loss, train_step
from ablation.training.views import StepViews
from ablation.types import Clock, Crafted, Gate, Views
from tests.support.parts import (
    Boundary,
    Half,
    InputGradient,
    LogitMemory,
    MarginBudget,
    Recording,
    ShiftedHead,
    Told,
    largest_difference,
    sgd,
    small_batch,
    small_net,
)

CLOCK = Clock(0, 0)
CLEAN_ONLY = parse_passes("nat", "step")


def at(**changes: Any) -> Method:
    pgd = Pgd({"ce": Ascended(AttackCrossEntropy())}, steps=2, step_size=0.5)
    method = Method(
        {"adv": pgd},
        Fixed(0.1),
        parse_passes("craft:adv", "adv", "step"),
        {"ce": Slot(CrossEntropy("adv"))},
    )
    return replace(method, **changes)


def step(method: Method, net=None, batch=None, clock=CLOCK, **options):
    net = net or small_net()
    log, views = train_step(method, net, sgd(net), batch or small_batch(), clock, seed=0, **options)
    return net, log, views


def test_a_subset_is_scattered_to_the_batch_and_divided_by_all_of_it():
    method = at().with_crafter("boundary", Boundary())
    method = method.with_term("bdr", Slot(CrossEntropy("boundary"), coef=3.0))
    assert method.passes == parse_passes("craft:adv", "craft:boundary", "adv", "boundary", "step")
    _, log, views = step(method)
    rows = views.crafted("boundary").rows
    loss = CrossEntropy("boundary")(views)
    assert loss.shape == (8,)
    assert 0 < len(rows) < 8
    others = [i for i in range(8) if i not in rows.tolist()]
    assert loss[others].abs().sum() == 0
    assert log.parts["bdr"].item() == pytest.approx(3 * loss[rows].sum().item() / 8)


@pytest.mark.parametrize("label", [0, 3])
def test_an_empty_and_a_full_subset_are_legal(label):
    method = at().with_crafter("boundary", Boundary(label=label))
    net, log, _ = step(method.with_term("bdr", Slot(CrossEntropy("boundary"))))
    assert log.loss.isfinite()
    assert (log.parts["bdr"] == 0) == (label == 0)
    assert all(p.isfinite().all() for p in net.parameters())


def test_one_row_is_legal():
    batch = small_batch()
    lone = replace(batch, y=torch.tensor([0, 2, 2, 2, 2, 2, 2, 2]))
    method = at().with_crafter("boundary", Boundary(label=1))
    _, log, views = step(method.with_term("bdr", Slot(CrossEntropy("boundary"))), batch=lone)
    assert len(views.x("boundary")) == 1
    assert log.loss.isfinite()


def test_a_budget_is_per_sample_and_scales_the_step():
    method = at(budget=MarginBudget(0.05))
    _, _, views = step(method)
    moved = (views.x("adv") - views.batch.x).abs().flatten(1).amax(1)
    eps = MarginBudget(0.05)(views.on(small_net()))
    assert (moved <= eps + 1e-12).all()
    assert len(set(moved.tolist())) > 1


def test_a_budget_leaves_buffers_and_gradients_alone():
    net = small_net()
    before = buffers(net)
    StepViews(net, small_batch(), CLOCK, nullcontext).eval("nat")
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert net.training


def test_the_evaluation_forward_is_computed_once_per_gradient_mode():
    net = small_net()
    views = StepViews(net, small_batch(), CLOCK, nullcontext)
    assert views.eval("nat") is views.eval("nat")
    with torch.no_grad():
        assert not views.eval("nat").output.logits.requires_grad
    assert views.eval("nat").output.logits.requires_grad
    assert views.eval("nat", input_grad=True).x.requires_grad


def test_a_penalty_on_the_input_gradient_reaches_the_parameters():
    method = at(terms={"igr": Slot(InputGradient())}, passes=CLEAN_ONLY, crafters={})
    net, log, _ = step(method)
    assert log.parts["igr"] > 0
    assert largest_difference(net, small_net()) > 1e-6


def test_memory_is_written_once_per_step_and_not_by_the_ascent():
    calls = []

    @contextmanager
    def ascent(net, closure, clock):
        calls.append(closure(net)[0].item())
        yield

    part = LogitMemory()
    method = at(terms={"m": Slot(part)}, passes=CLEAN_ONLY, crafters={}, ascent=ascent)
    memories = Memories([method], n_train=8, batch_size=8, classes=3, device=torch.device("cpu"))
    _, log, views = step(method, memories=memories)
    assert calls == pytest.approx([log.loss.item()])
    assert not memories.state_dict()["z"].any()
    memories.commit([part], views)
    assert torch.equal(memories.state_dict()["z"], views.logits("nat"))
    assert not memories.state_dict()["z"].requires_grad


def test_an_ascent_moves_the_weights_for_the_gradient_only():
    @contextmanager
    def ascent(net, closure, clock):
        with torch.no_grad():
            net.head.linear.weight[0].add_(1.0)
        yield
        with torch.no_grad():
            net.head.linear.weight[0].sub_(1.0)

    plain, log, _ = step(at())
    moved, moved_log, _ = step(at(ascent=ascent))
    assert log.loss.item() != moved_log.loss.item()
    assert largest_difference(plain, moved) < 0.5


def test_passes_before_the_last_craft_count_once_and_at_the_moved_weights():
    """With an ascent they are made twice: for the crafter, undone, and at the moved weights."""

    @contextmanager
    def ascent(net, closure, clock):
        with torch.no_grad():
            net.body.layers[0].weight.mul_(1.5)
        yield
        with torch.no_grad():
            net.body.layers[0].weight.div_(1.5)

    method = at(passes=parse_passes("craft:adv", "adv", "craft:boundary", "boundary", "step"))
    method = method.with_crafter("boundary", Boundary())
    method = method.with_term("bdr", Slot(CrossEntropy("boundary")))
    method = replace(method, ascent=ascent)
    net, _, views = step(method)
    expected = small_net()
    with torch.no_grad():
        expected.get_parameter("body.layers.0.weight").mul_(1.5)
        for name in ("adv", "boundary"):
            expected(views.x(name))
    statistics = [b for b in net.buffers() if b.is_floating_point()]
    wanted = [b for b in expected.buffers() if b.is_floating_point()]
    assert len(statistics) == 4
    for ours, theirs in zip(statistics, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert net.state_dict()["body.layers.1.num_batches_tracked"] == 2


def test_a_weight_multiplies_the_term_of_a_role():
    method = at(roles={"robust": "ce"}).with_weight("robust", Half())
    _, log, views = step(method)
    loss = CrossEntropy("adv")(views)
    assert log.loss.item() == pytest.approx(loss[:4].sum().item() / 8)
    with pytest.raises(ValueError, match="has a weight already"):
        method.with_weight("robust", Half())
    with pytest.raises(ValueError, match="no term in the role classify"):
        method.with_weight("classify", Half())


def test_two_ascents_are_refused():
    with pytest.raises(ValueError, match="moves the weights already"):
        at().with_ascent(nullcontext).with_ascent(nullcontext)  # type: ignore[arg-type]


def test_gates_open_close_and_ramp():
    gate = Gate(start=2, stop=6, ramp=2)
    assert [gate(Clock(e, 0)) for e in range(7)] == [0, 0, 0.5, 1, 1, 1, 0]
    method = at().with_term("kl", Slot(KL(), coef=6.0, gate=Gate(start=1)))
    assert method.passes == parse_passes("craft:adv", "nat", "adv", "step")
    assert "kl" not in step(method)[1].parts
    assert "kl" in step(method, clock=Clock(1, 0))[1].parts


def test_closed_gates_leave_only_weight_decay():
    method = at(terms={"ce": Slot(CrossEntropy("adv"), gate=Gate(start=5))})
    _, log, _ = step(method)
    assert log.loss == 0
    assert log.parts == {}
    assert log.grad_norm == 0


def test_a_term_whose_gate_is_closed_leaves_those_after_it():
    closed, opened = Slot(CrossEntropy("adv"), gate=Gate(start=5)), Slot(CrossEntropy("adv"))
    _, log, _ = step(at(terms={"closed": closed, "opened": opened}))
    assert set(log.parts) == {"opened"}


def test_a_parameter_that_no_term_reaches_stays_as_it_was():
    """Weight decay is for what is trained: an earlier gradient, now of no use, moves nothing."""
    net = small_net()
    spare = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    spare.grad = torch.ones_like(spare)
    net.body.register_parameter("spare", spare)
    step(at(), net=net)
    assert (spare == 1).all()


def test_a_head_adjusts_classification_terms_but_not_the_attack_or_kl():
    method = at().with_term("kl", Slot(KL()))
    shifted, plain = small_net(head=ShiftedHead(6, 3)), small_net()
    shifted.load_state_dict(plain.state_dict())  # both heads are one layer named linear
    views = {}
    for name, net in (("shifted", shifted), ("plain", plain)):
        _, log, views[name] = step(method, net=net)
        views[name + "_log"] = log
    assert torch.equal(views["shifted"].x("adv"), views["plain"].x("adv"))
    assert views["shifted_log"].parts["kl"] == views["plain_log"].parts["kl"]
    assert views["shifted_log"].parts["ce"] > views["plain_log"].parts["ce"]


@pytest.mark.parametrize("bn", ["eval", "train", "train_frozen"])
def test_crafting_restores_modes_gradients_and_buffers_as_declared(bn):
    net = small_net()
    layers: Any = net.body.layers
    layers[1].eval()
    layers[0].weight.requires_grad_(False)
    flags = [m.training for m in net.modules()]
    wanted = [p.requires_grad for p in net.parameters()]
    before = buffers(net)
    with crafting(net, bn):
        assert net.training == (bn != "eval")
        assert not any(p.requires_grad for p in net.parameters())
        net(small_batch().x)
    assert flags == [m.training for m in net.modules()]
    assert wanted == [p.requires_grad for p in net.parameters()]
    same = all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert same == (bn != "train")


def test_an_attack_leaves_no_gradient_behind():
    net = small_net()
    views = StepViews(net, small_batch(), CLOCK, nullcontext)
    with crafting(net, "eval"):
        at().crafters["adv"](views, torch.full((8,), 0.1).double(), torch.Generator())
    assert all(p.grad is None for p in net.parameters())


def test_replaying_statistics_equals_another_forward():
    replayed, repeated = small_net(), small_net()
    a, b = small_batch(0).x, small_batch(1).x
    replay = BatchNormReplay(replayed)
    replayed(a)
    replay.mark()
    replayed(b)
    replay.replay()
    for x in (a, b, a):
        repeated(x)
    assert largest_difference(replayed, repeated) < 1e-15


def test_clipping_bounds_the_step():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    log, _ = train_step(at(), net, optimizer, small_batch(), CLOCK, seed=0, clip=1e-3)
    assert log.grad_norm > 1e-3
    moved = torch.cat(
        [(p - q).flatten() for p, q in zip(net.parameters(), small_net().parameters(), strict=True)]
    )
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-4)


def test_same_seed_same_bits_other_seed_other_start():
    first, second = step(at())[0], step(at())[0]
    assert largest_difference(first, second) == 0
    net = small_net()
    train_step(at(), net, sgd(net), small_batch(), CLOCK, seed=1)
    assert largest_difference(first, net) > 0


def test_adding_a_crafter_moves_no_other_draw():
    more = at().with_crafter("boundary", Boundary())
    assert torch.equal(step(at())[2].x("adv"), step(more)[2].x("adv"))


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    batch = small_batch()
    twice = replace(
        batch, x=batch.x.repeat(2, 1, 1, 1), y=batch.y.repeat(2), index=batch.index.repeat(2)
    )
    losses = []
    for b in (batch, twice):
        views = StepViews(small_net(), b, CLOCK, nullcontext)
        views.run("nat")
        method = at(
            terms={"ce": Slot(CrossEntropy("nat"))},
            passes=CLEAN_ONLY,
            crafters={},
        )
        losses.append(total_loss(method, views)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": parse_passes("craft:adv", "adv")}, "exactly one step"),
        ({"passes": parse_passes("adv", "craft:adv", "step")}, "adv comes before craft:adv"),
        (
            {"passes": parse_passes("craft:adv", "bn:adv", "adv", "step")},
            "bn:adv comes before the pass",
        ),
        ({"passes": parse_passes("craft:adv", "adversarial", "adv", "step")}, "names no view"),
        ({"passes": parse_passes("craft:adv", "step", "adv")}, "terms.ce needs the view adv"),
        (
            {"passes": parse_passes("craft:adv", "adv", "step", "craft:adv")},
            "craft:adv comes after step",
        ),
        ({"terms": {}}, "nothing to minimise"),
        ({"roles": {"robust": "kl"}}, "roles.robust=kl"),
    ],
)
def test_what_does_not_fit_together_is_named(changes, message):
    assert not at().problems()
    assert any(message in problem for problem in at(**changes).problems())


@pytest.mark.parametrize(
    ("text", "kind", "view"),
    [
        ("craft:adv", "craft", "adv"),
        ("adv", "view", "adv"),
        ("bn:adv", "replay", "adv"),
        ("ascent", "ascent", ""),
        ("step", "step", ""),
    ],
)
def test_a_pass_is_parsed_and_written_back(text, kind, view):
    parsed = Pass.parse(text)
    assert (parsed.kind, parsed.view) == (kind, view)
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("light", "torchs", "more"),
    [
        (LightSgd, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (LightAdamW, torch.optim.AdamW, {"betas": (0.8, 0.99), "eps": 1e-6}),
    ],
)
def test_our_optimisers_are_torchs_bit_for_bit(light, torchs, more):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4, "fused": True, **more}
    first = light(ours.parameters(), **settings)
    second = torchs(theirs.parameters(), **settings)
    for number in range(6):
        if number == 3:  # resume in the middle
            first_state = first.state_dict()
            first = light(ours.parameters(), lr=1.0, fused=True)
            first.load_state_dict(first_state)
        x = torch.randn(7, 5)
        for net, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad(set_to_none=True)
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("optim", ["Sgd", "AdamW"])
def test_a_step_does_not_import_the_compiler(optim):
    code = (
        f"import sys, torch; from ablation.training.optim import {optim} as Optim;"
        "from ablation.schedules import Torch; Torch().lr(0.1, 1, 3);"
        "net = torch.nn.Linear(2, 1);"
        "o = Optim().build(net, 0.1); o.zero_grad(); net(torch.ones(1, 2)).sum().backward();"
        "o.step(); o.load_state_dict(o.state_dict()); print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_term_may_be_called_like_a_column_of_the_step():
    """Sums are kept in groups: a term's never meets the gradient norm, or a count."""
    names = ("loss", "gradient", "images", "clipped", "correct_nat", "craft_adv_found")
    assert at(terms={name: Slot(CrossEntropy("adv")) for name in names}).problems() == []
    keys: list[Key] = [("term", name) for name in names]
    keys += [("step", "images"), ("correct", "nat"), ("craft", "adv_found")]
    sums = EpochSums(keys, torch.device("cpu"))
    sums.add(torch.arange(9.0, dtype=torch.float64))
    assert sums.fetch()["term"] == {name: float(i) for i, name in enumerate(names)}
    assert (sums.fetch()["step"], sums.fetch()["correct"]) == ({"images": 6.0}, {"nat": 7.0})
    again = EpochSums.restored(sums.state_dict(), torch.device("cpu"))
    assert again.keys == sums.keys
    assert again.fetch()["craft"] == {"adv_found": 8.0}


def test_sums_of_an_older_checkpoint_are_read():
    names = ["ce", "gradient", "loss", "correct_nat", "images", "craft_boundary_found", "clipped"]
    names += ["boosted_ce", "correct", "craft"]  # terms, all three
    state = {"names": names, "total": torch.arange(10.0, dtype=torch.float64)}
    sums = EpochSums.restored(state, torch.device("cpu"))
    assert sums.fetch()["term"] == {"ce": 0, "boosted_ce": 7, "correct": 8, "craft": 9}
    assert sums.fetch()["step"] == {"gradient": 1, "loss": 2, "images": 4, "clipped": 6}
    assert sums.fetch()["correct"] == {"nat": 3}
    assert sums.fetch()["craft"] == {"boundary_found": 5}


def test_radii_of_an_individual_budget_and_what_crafters_record_are_logged():
    net, batch = small_net(), small_batch()
    radii = MarginBudget(0.05)(StepViews(net, batch, CLOCK, nullcontext))
    method = at(budget=Told(0.05)).with_crafter("told", Recording(2.0, "twice"))
    _, log, _ = step(method, net, batch)
    assert set(log.recorded) == {"radius", "twice"}
    torch.testing.assert_close(log.recorded["radius"], radii.detach())
    assert log.recorded["twice"].tolist() == (2.0 * batch.y).tolist()
    assert not any(values.requires_grad for values in log.recorded.values())


@pytest.mark.parametrize("budget", [Fixed(0.1), MarginBudget(0.1), Told(0.1, individual=False)])
def test_radii_that_are_not_individual_are_not_recorded(budget):
    _, log, _ = step(at(budget=budget))
    assert log.recorded == {}


def test_a_burn_in_records_no_radii():
    """It attacks nothing: zeros would be no radii of anybody."""
    terms = {"ce": Slot(CrossEntropy("nat"))}
    burn_in = at(crafters={}, budget=Told(0.1), passes=CLEAN_ONLY, terms=terms)
    assert step(burn_in)[1].recorded == {}


def test_two_parts_that_record_one_name_are_refused():
    with pytest.raises(ValueError, match="radius is recorded by the budget and by the crafter b"):
        step(at(budget=Told(0.1)).with_crafter("b", Recording()))
    twice = at().with_crafter("a", Recording()).with_crafter("b", Recording())
    with pytest.raises(ValueError, match="radius is recorded by the crafter a and by the crafter"):
        step(twice)


def test_what_is_not_one_number_of_each_sample_is_refused():
    class Short(Recording):
        def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
            return Crafted(views.batch.x, recorded={"radius": eps[1:]})

    with pytest.raises(ValueError, match=r"crafter b records radius of shape \[7\], not \[8\]"):
        step(at().with_crafter("b", Short()))
