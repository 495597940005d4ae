"""What all margin terms share: penalty, surface, reduction, constants, empty sets, scale, order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ablation import components
from ablation.components import (
    ClosedFormGradient,
    ExponentialLoss,
    FabMargin,
    MarginMaximization,
    SoftBoundary,
)
from ablation.models.net import Net
from ablation.terms import Exponential, SearchedMargin, TaylorMargin
from ablation.training.method import Method
from ablation.training.step import total_loss, train_step
from ablation.types import Batch
from tests.support.linear import array, close
from tests.support.margins import (
    CARRIERS,
    CLOCK,
    FOUND,
    NEAR_WRONG_FAR,
    STANDARD,
    SUBSETS,
    arm,
    batch_of,
    carrier,
    confident_net,
    costs,
    gradients,
    hard,
    linear_net,
    margin_batch,
    seen,
    slopes,
    trainer,
    two,
    weight_and_bias,
)
from tests.support.parts import largest_difference


def test_exponential_costs_by_margin():
    x = array([[4 / 255], [8 / 255], [12 / 255], [16.001 / 255], [0.0], [1.0]])
    net = linear_net(array([[1.0], [0]]), array([0.0, 0]))
    method = arm(MarginMaximization(), ExponentialLoss(reduction="batch"))
    loss = costs(method, net, batch_of(x, [0] * 6))
    close(loss, [0.318010, 0.303392, 0.289445, 0, 0, 0], atol=5e-7)  # a tie counts as wrong
    weight, _ = weight_and_bias(loss[:2].sum(), net)
    slopes = -(0.954031 * 4 + 0.910176 * 8) / 255
    assert weight[0].item() == pytest.approx(slopes, abs=1e-7)


@pytest.mark.parametrize(
    ("reduction", "last", "count"), [("correct", 0, 2), ("correct", 1, 1), ("batch", 0, 3)]
)
def test_exponential_of_a_batch_is_a_mean_over_the_correct_samples(reduction, last, count):
    """The last sample is too far to cost anything, also where its label is the other one."""
    method = arm(MarginMaximization(coef=1.0), ExponentialLoss(reduction=reduction))
    views = seen(method, two(), batch_of(NEAR_WRONG_FAR, [0, 0, last]))
    _, parts = total_loss(method, views)
    assert parts["margin"].item() == pytest.approx(0.1508062 * 2 / count, abs=1e-7)


@pytest.mark.parametrize("term", [TaylorMargin, SearchedMargin])
def test_wrong_samples_have_no_part_in_an_exponential_or_a_mean_of_correct_ones(term):
    with pytest.raises(ValueError, match="wrong=include: an exponential of a negative margin"):
        term(Exponential(), wrong="include")
    with pytest.raises(ValueError, match="reduction=correct: divides by the correct samples"):
        term(reduction="correct", wrong="include")
    assert term(Exponential(), reduction="correct", wrong="exclude").wrong == "exclude"


def test_samples_between_the_soft_and_the_hard_boundary_count_as_wrong():
    net = linear_net(torch.zeros(10, 2), array([1.0, *[0.7] * 9]))  # spec 6: soft margin -0.139
    batch = batch_of(array([[0.5, 0.5]]), [0])
    for beta, correct in ((5.0, False), (50.0, True)):
        parts = MarginMaximization(), SoftBoundary(beta), FabMargin(start="clean")
        crafted = seen(arm(*parts), net, batch).crafted("boundary")
        assert crafted.aux["correct"].tolist() == [correct]
        excluded = arm(MarginMaximization(gamma=1e9, wrong="exclude"), SoftBoundary(beta))
        assert (costs(excluded, net, batch) > 0).tolist() == [correct]


def frozen(name: str, net: Net, batch: Batch, method: Method) -> Callable[[], Tensor]:
    """The sum of margins as a function of the weights, constants computed now."""
    views = seen(method, net, batch)
    x, y = batch.x, batch.y
    if name in ("detached", "eval"):
        norms = slopes(net, x, y)
        return lambda: (hard(net(x), y) / norms).sum()
    if name == "exact":
        return lambda: (hard(net(x), y) / slopes(net, x, y)).sum()
    crafted = views.crafted("boundary")
    found, distance = crafted.aux["found"], crafted.aux["distance"]
    assert 2 <= found.sum() < len(y)
    if name in SUBSETS:
        points, labels = crafted.x, y[found]
        norms = slopes(net, points, labels)
        return lambda: (hard(net(points), labels) / norms).sum()
    rows = found.nonzero().squeeze(1)
    slope = 1 / slopes(net, x[rows], y[rows])
    if name == "rescaled":
        slope = distance[rows] / hard(net(x[rows]), y[rows]).detach()
    return lambda: (hard(net(x[rows]), y[rows]) * slope).sum()


@pytest.mark.parametrize("name", CARRIERS)
def test_gradients_are_finite_differences_with_the_constants_held(name):
    """In evaluation mode, where a pass and a search see the same function."""
    net, batch = confident_net().eval(), margin_batch()
    method = carrier(name, gamma=1e3, wrong="exclude" if name in SUBSETS else "include")
    margins = frozen(name, net, batch, method)
    loss = costs(method, net, batch).sum()
    computed = gradients(loss, net)
    g = torch.Generator().manual_seed(0)
    way = {n: torch.randn(p.shape, generator=g).double() for n, p in net.named_parameters()}
    step, values = 1e-7, []
    for sign in (1, -1):
        with torch.no_grad():
            for key, p in net.named_parameters():
                p.add_(way[key], alpha=sign * step)
        with torch.enable_grad():
            values.append(margins().item())
        with torch.no_grad():
            for key, p in net.named_parameters():
                p.sub_(way[key], alpha=sign * step)
    slope = -(values[0] - values[1]) / (2 * step)
    along = torch.stack([(computed[key] * way[key]).sum() for key in way]).sum()
    assert along.item() == pytest.approx(slope, rel=1e-5)
    assert abs(slope) > 1e-2


@pytest.mark.parametrize("name", CARRIERS)
def test_what_was_crafted_is_a_constant(name):
    views = seen(carrier(name), confident_net(), margin_batch())
    for crafted in views.all_crafted().values():
        held = [crafted.x, *crafted.aux.values(), *crafted.facts.values()]
        assert not any(value.requires_grad for value in held)
    assert not views.batch.x.requires_grad


@pytest.mark.parametrize("name", ["detached", "exact", "rescaled", "closed_form"])
def test_awp_of_size_zero_changes_no_bit_of_a_step(name):
    nets = []
    for awp in ((), (components.Awp(gamma=0.0),)):
        net = confident_net()
        method = arm(*awp, method=carrier(name))
        train_step(method, net, trainer(net, 1e-3), margin_batch(), CLOCK, seed=0)
        nets.append(net)
    assert largest_difference(*nets) == 0


def slow_net() -> Net:
    """``confident_net`` whose statistics move little, so that predictions stay."""
    net = confident_net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1e-3
    return net


def wrong_labels(batch: Batch) -> Batch:
    """Wrong in evaluation and in training mode."""
    net = slow_net()
    with torch.no_grad():
        z = [net.train(mode)(batch.x) for mode in (False, True)]
    rows = [min({0, 1, 2} - {int(a[i].argmax()) for a in z}) for i in range(len(batch.y))]
    return replace(batch, y=torch.tensor(rows))


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("penalty", ["hinge", "exponential"])
def test_a_batch_without_a_correct_sample_costs_exactly_nothing(name, penalty):
    net, batch = slow_net(), wrong_labels(margin_batch())
    more = (ExponentialLoss(),) if penalty == "exponential" else ()
    method = carrier(name, *more, wrong="exclude", reduction="correct", coef=1000)
    loss = costs(method, net, batch)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert all(not grad.any() for grad in gradients(loss.sum(), net).values())


@pytest.mark.parametrize("name", CARRIERS)
def test_such_a_step_is_one_of_cross_entropy(name):
    ours, theirs, batch = slow_net(), slow_net(), wrong_labels(margin_batch())
    method = carrier(name, ExponentialLoss(), coef=1000)
    train_step(method, ours, trainer(ours, 1e-3), batch, CLOCK, seed=0)
    train_step(STANDARD, theirs, trainer(theirs, 1e-3), batch, CLOCK, seed=0)
    assert largest_difference(ours, theirs) == 0  # statistics too
    assert largest_difference(ours, confident_net()) > 0


@pytest.mark.parametrize("name", CARRIERS)
def test_correct_samples_without_a_boundary_in_the_box_cost_nothing(name):
    net = linear_net(array([[0.1, 0.2], [0, 0]]), array([5.0, 0]))
    batch = batch_of(NEAR_WRONG_FAR, [0, 0, 0])
    loss = costs(carrier(name, gamma=0.5), net, batch)  # Taylor's margins are about 17
    assert torch.equal(loss, torch.zeros_like(loss))
    assert all(not grad.any() for grad in gradients(loss.sum(), net).values())
    if CARRIERS[name]:
        aux = seen(carrier(name), net, batch).crafted("boundary").aux
        assert aux["correct"].all()
        assert not aux["found"].any()
        assert torch.isinf(aux["distance"]).all()


@pytest.mark.parametrize("name", CARRIERS)
def test_a_single_point_is_searched_but_left_out_of_a_pass_of_its_own(name):
    batch = batch_of(NEAR_WRONG_FAR[:2], [0, 0])  # one correct, one wrong
    net = two()
    loss = costs(carrier(name, gamma=1.0, wrong="exclude"), net, batch)
    if name in SUBSETS:
        assert torch.equal(loss, torch.zeros_like(loss))
        assert not any(grad.any() for grad in gradients(loss.sum(), net).values())
        crafted = seen(carrier(name), net, batch).crafted("boundary")
        assert crafted.x.shape == (0, 1, 1, 2)
        assert crafted.aux["grad_norm"].shape == (0,)
        assert crafted.facts["found"].double().mean() == 0.5
    else:
        share = FOUND if name in ("straight_through", "rescaled") else 1
        close(loss, [1 - share / 30, 0])


@pytest.mark.parametrize("name", [*SUBSETS, "rescaled"])
def test_a_batch_of_one_sample_takes_a_step(name):
    net = two()
    log, _ = train_step(
        carrier(name), net, trainer(net), batch_of(NEAR_WRONG_FAR[:1], [0]), CLOCK, seed=0
    )
    assert log.loss.isfinite()
    assert (log.parts["margin"] == 0) == (name in SUBSETS)


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("name", CARRIERS)
def test_duplicating_the_batch_changes_neither_the_loss_nor_its_gradient(name, exponential):
    net = confident_net().eval()
    batch = margin_batch()
    x, y, index = (torch.cat([part, part]) for part in (batch.x, batch.y, batch.index))
    twice = Batch(x, y, index)
    more = (ExponentialLoss(),) if exponential else ()
    method = carrier(name, *more, gamma=0.02)
    losses = [total_loss(method, seen(method, net, b))[1]["margin"] for b in (batch, twice)]
    assert losses[0].item() > 0
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-12)
    one, other = (gradients(loss, net) for loss in losses)
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CARRIERS)
def test_losses_move_with_their_samples(name):
    batch = margin_batch()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = Batch(batch.x[order], batch.y[order], batch.index[order])
    one, other = (costs(carrier(name), confident_net(), b) for b in (batch, moved))
    assert 0 < (one > 0).sum() < 16
    torch.testing.assert_close(other, one[order], atol=1e-10, rtol=0)


def test_hard_margins_do_not_depend_on_the_scale_of_the_logits():
    """Spec 21.6."""
    for name in CARRIERS:
        ones, twos = (
            costs(carrier(name, gamma=0.05), confident_net(scale).eval(), margin_batch())
            for scale in (100.0, 200.0)
        )
        torch.testing.assert_close(ones, twos, atol=1e-9, rtol=0)
    method = arm(MarginMaximization(gamma=0.05), SoftBoundary(), FabMargin(start="clean"))
    ones, twos = (
        costs(method, confident_net(scale).eval(), margin_batch()) for scale in (100.0, 200.0)
    )
    assert (ones - twos).abs().max() > 1e-3


@pytest.mark.parametrize("terms", [(), ("margin",)])
def test_awp_on_a_margin_without_points_moves_nothing(terms):
    method = arm(MarginMaximization(), ClosedFormGradient(), components.Awp(terms=terms))
    net = confident_net()
    batch = margin_batch()
    with torch.no_grad():
        wrong = (confident_net().eval()(batch.x).argmax(1) + 1) % 3
    log, _ = train_step(method, net, trainer(net), replace(batch, y=wrong), CLOCK, seed=0)
    assert log.parts["margin"] == 0
    assert log.loss.isfinite()
