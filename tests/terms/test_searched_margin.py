"""The searched margin: gradients G1, G2 and G3 (spec 5.5, 5.6); the search's modes and draws."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ablation.components import (
    FabMargin,
    MarginMaximization,
)
from ablation.crafters import BoundarySearch, FabSearch, LinearSearch
from ablation.numerics.boundary import Soft, fab
from ablation.numerics.modes import buffers
from ablation.numerics.precision import precision_context
from ablation.random import generator
from ablation.terms import SearchedMargin
from ablation.training.method import parse_passes
from ablation.training.step import craft, train_step
from ablation.training.views import StepViews
from ablation.types import Crafted
from tests.support.linear import X0, array, close
from tests.support.margins import (
    CARRIERS,
    CLOCK,
    FOUND,
    NEAR_WRONG_FAR,
    R0,
    STANDARD,
    TWICE,
    arm,
    batch_of,
    carrier,
    composed,
    confident_net,
    costs,
    gradients,
    hard,
    l3,
    margin_batch,
    seen,
    trainer,
    two,
    weight_and_bias,
)
from tests.support.parts import small_batch, small_net


@pytest.mark.parametrize(("steps", "share"), [(1, 1.05), (2, FOUND), (20, FOUND)])
@pytest.mark.parametrize("gradient", ["straight_through", "rescaled", "last_projection"])
def test_every_gradient_of_a_search_has_the_searchs_value(gradient, steps, share):
    method = arm(MarginMaximization(gamma=1.0), FabMargin(steps, "clean", gradient=gradient))
    close(costs(method, l3(), TWICE), [1 - share * R0] * 2)


@pytest.mark.parametrize("gradient", ["straight_through", "rescaled", "last_projection"])
def test_gradients_of_a_search_on_l3(gradient):
    net = l3()
    method = arm(MarginMaximization(gamma=1.0), FabMargin(2, "clean", gradient=gradient))
    margin = 1 - costs(method, net, TWICE)[0]
    weight, bias = weight_and_bias(margin, net)
    slope, point = 1 / 5.2, X0[0]
    if gradient == "rescaled":
        slope = FOUND * R0 / 0.36
    if gradient == "last_projection":  # the second step linearised beyond the boundary
        signs = array([-1.0, 1, -1, 1])
        point = X0[0] + 1.05 * R0 * signs
    close(weight[0], (slope * point).tolist())
    close(weight[2], (-slope * point).tolist())
    close(bias, [slope, 0, -slope])


def test_the_last_projection_of_one_step_is_taylors():
    net = l3()
    taylor = gradients(costs(arm(MarginMaximization(gamma=1.0)), net, TWICE).sum(), net)
    parts = MarginMaximization(gamma=1.0), FabMargin(1, "clean", gradient="last_projection")
    projected = gradients(costs(arm(*parts), net, TWICE).sum(), net)
    torch.testing.assert_close(projected, taylor, atol=1e-14, rtol=0)


def test_straight_through_has_taylors_gradient_and_the_searchs_value():
    net, batch = confident_net(), margin_batch()  # train mode: the gradient is that pass's
    method = carrier("straight_through", gamma=1e3)
    views = seen(method, net, batch)
    found = views.crafted("boundary").aux["found"]
    searched = method.terms["margin"].term(views)
    taylor = costs(carrier("detached", gamma=1e3), net, batch)
    distance = views.crafted("boundary").aux["distance"]
    torch.testing.assert_close(searched[found], 1e3 - distance[found], atol=1e-12, rtol=0)
    assert not torch.allclose(searched[found], taylor[found], atol=1e-3, rtol=0)
    mine, theirs = (gradients(loss[found].sum(), net) for loss in (searched, taylor))
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize("search", [FabSearch(3), LinearSearch()], ids=["fab", "linear"])
def test_a_search_leaves_statistics_modes_and_gradients_as_they_were(search, subset):
    net = confident_net()
    layers = cast(nn.Sequential, net.body.get_submodule("layers"))
    layers[1].eval()  # a module's own flag
    layers[0].weight.requires_grad_(False)
    flags = [module.training for module in net.modules()]
    wanted = [p.requires_grad for p in net.parameters()]
    before = buffers(net)
    method = STANDARD.with_crafter("boundary", BoundarySearch(search, Soft(), subset=subset))
    views = StepViews(net, margin_batch(), CLOCK, nullcontext)
    craft(method, views, "boundary", method.budget(views), 0, None)
    assert 2 <= views.crafted("boundary").aux["found"].sum() < 16
    assert flags == [module.training for module in net.modules()]
    assert wanted == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_the_search_sees_the_network_in_evaluation_mode():
    net, batch = confident_net(), margin_batch()
    net(small_batch(7, 16).x)  # statistics that are not the batch's
    other = copy.deepcopy(net)
    crafted = seen(carrier("rescaled"), net, batch).crafted("boundary")
    with torch.no_grad():
        evaluated = hard(other.eval()(batch.x), batch.y)
        trained = hard(other.train()(batch.x), batch.y)
    torch.testing.assert_close(crafted.aux["phi"], evaluated, atol=1e-12, rtol=0)
    assert ((evaluated > 0) != (trained > 0)).any()


def test_starts_are_keyed_by_seed_and_step():
    net, batch = confident_net(), margin_batch()
    method = arm(MarginMaximization(), FabMargin(steps=3, start="random"))
    points = [
        seen(method, copy.deepcopy(net), batch, step, seed).x("boundary")
        for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])
    assert not torch.equal(points[0], points[3])
    rng = generator(0, "craft/boundary", 0)
    evaluated = copy.deepcopy(net).eval()
    own = fab(lambda p: hard(evaluated(p), batch.y), batch.x, norm="linf", rng=rng, steps=3)
    torch.testing.assert_close(points[0], own.x, atol=1e-12, rtol=0)


def test_a_search_moves_nobody_elses_draws():
    plain = composed("method=at").phases[-1].method
    more = arm(MarginMaximization(), FabMargin(steps=2), method=plain)
    assert more.passes == parse_passes("craft:adv", "craft:boundary", "nat", "adv", "step")
    one, other = (seen(m, small_net(), small_batch()).x("adv") for m in (plain, more))
    assert torch.equal(one, other)


def test_only_correct_samples_are_found():
    for name, parts in CARRIERS.items():
        if parts:
            aux = seen(carrier(name), confident_net(), margin_batch()).crafted("boundary").aux
            assert aux["found"].any()
            assert aux["correct"][aux["found"]].all()
            assert torch.equal(aux["found"], aux["distance"].isfinite())


class Told:
    """A crafter that says what it is told: one row found, another correct but not found."""

    bn = "eval"

    def __call__(self, views: Any, eps: Tensor, rng: torch.Generator) -> Crafted:
        aux = {
            "correct": torch.tensor([True, False, True]),
            "found": torch.tensor([False, False, True]),
            "distance": array([torch.inf, torch.inf, 0.01]),
            "phi": array([0.0, -1.0, 0.5]),  # 0 / 0 of a row that was not found
        }
        return Crafted(views.batch.x, None, aux)


@pytest.mark.parametrize("gradient", ["straight_through", "rescaled"])
def test_a_correct_sample_that_was_not_found_costs_nothing_though_its_margin_is_small(gradient):
    net = two()
    method = arm(MarginMaximization(gamma=1.0), FabMargin(gradient=gradient))
    method = replace(method, crafters={"boundary": cast(Any, Told())})
    loss = costs(method, net, batch_of(NEAR_WRONG_FAR, [0, 0, 0]))
    close(loss, [0, 0, 0.99])
    weight, bias = weight_and_bias(loss.sum(), net)
    slope = 0.01 / 0.5 if gradient == "rescaled" else 1 / 6
    close(weight[0], (-slope * NEAR_WRONG_FAR[2]).tolist())
    close(bias[0], -slope)


@pytest.mark.parametrize("gradient", ["straight_through", "rescaled"])
def test_wrong_samples_may_be_pushed_beside_a_search(gradient):
    net = two()
    fab_margin = FabMargin(start="clean", gradient=gradient, wrong="include")
    batch = batch_of(NEAR_WRONG_FAR, [0, 0, 0])
    loss = costs(arm(MarginMaximization(gamma=0.2), fab_margin), net, batch)
    close(loss, [0.2 - FOUND / 30, 0.3, 0])
    weight, bias = weight_and_bias(loss[1], net)
    close(weight[0], (-NEAR_WRONG_FAR[1] / 6).tolist())
    close(bias[0], -1 / 6)


def test_a_search_computes_in_full_precision_whatever_the_run_does():
    flags, states = torch.backends.cuda.matmul, []

    class Looking(FabSearch):
        def __call__(self, *args: Any, **options: Any) -> Any:
            states.append((flags.allow_tf32, torch.is_autocast_enabled("cpu")))
            return super().__call__(*args, **options)

    method = arm(MarginMaximization(), FabMargin(steps=1))
    crafter = cast(BoundarySearch, method.crafters["boundary"])
    method = replace(method, crafters={"boundary": replace(crafter, search=Looking(steps=1))})
    net, batch = confident_net().float(), margin_batch()
    batch = replace(batch, x=batch.x.float())
    context = precision_context("bf16", torch.device("cpu"))
    saved, flags.allow_tf32 = flags.allow_tf32, True
    try:
        train_step(method, net, trainer(net), batch, CLOCK, seed=0, precision=context)
        after = flags.allow_tf32
    finally:
        flags.allow_tf32 = saved
    assert states == [(False, False)]
    assert after


@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize(
    ("settings", "differentiates"),
    [
        ({"gradient": "rescaled"}, False),
        ({"gradient": "rescaled", "wrong": "include"}, True),
        ({"gradient": "straight_through"}, True),
    ],
)
def test_the_training_pass_is_differentiated_where_its_gradient_is_taken(
    settings, differentiates, bn
):
    expected = {"nat": ("",)} if differentiates and bn == "train" else {}
    assert SearchedMargin(bn=bn, **settings).differentiates == expected
