"""EMR and IGR in float64: the specification's numbers, derivatives, estimates, scales, modes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation import components, terms
from ablation.errors import DONE, ConfigError
from ablation.jobs import train as job
from ablation.models.heads import LinearHead
from ablation.models.net import Net
from ablation.numerics import penalties
from ablation.numerics.modes import buffers
from ablation.numerics.precision import precision_context
from ablation.random import generator
from ablation.terms.effective_margin import EffectiveNorm
from ablation.training import engine
from ablation.training.method import Method
from ablation.training.step import train_step
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Crafted, DecayingGate
from tests.support.configs import compose_config
from tests.support.jobs import plain
from tests.support.parts import largest_difference, sgd, small_batch, small_net

CLOCK = Clock(0, 0)
W = torch.tensor(
    [[1, -2, 0.5, 0.3], [-0.5, 1, 0.25, -0.6], [0.2, 0.4, -1, 0.8]], dtype=torch.float64
)
BIAS = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
X = torch.tensor([[0.6, 0.3, 0.5, 0.4], [0.1, 0.9, 0.2, 0.3]], dtype=torch.float64)
"""Fixture L3: a linear classifier of two points with four pixels."""


def linear_net(weight: Tensor = W) -> Net:
    net = Net(nn.Flatten(), LinearHead(4, 3), mean=None, std=None).double()
    with torch.no_grad():
        net.get_parameter("head.linear.weight").copy_(weight)
        net.get_parameter("head.linear.bias").copy_(BIAS)
    return net


def views_of(net: Net, x: Tensor, y: Tensor, **options: Any) -> StepViews:
    return StepViews(net, Batch(x, y, torch.arange(len(y))), CLOCK, nullcontext, **options)


def linear_views(x: Tensor = X, weight: Tensor = W) -> StepViews:
    return views_of(linear_net(weight), x.view(-1, 1, 2, 2), torch.arange(len(x)) % 2)


def tanh_net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Flatten(), nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh())
        return Net(body, LinearHead(5, 3), mean=None, std=None).double()


def tanh_views(net: Net | None = None) -> StepViews:
    return views_of(net or tanh_net(), X.view(2, 1, 2, 2), torch.tensor([0, 1]))


def logits_and_points(views: StepViews) -> tuple[Tensor, Tensor]:
    seen = views.eval("nat", input_grad=True)
    return seen.output.logits, seen.x


def close(actual: Tensor, expected: object, atol: float = 1e-7) -> None:
    torch.testing.assert_close(
        actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0
    )


def approximate(temperature: float | None) -> terms.EffectiveWeightNorm:
    return terms.EffectiveWeightNorm(terms.ApproximateNorm(temperature))


EXACT = terms.EffectiveWeightNorm()
FORMS: list[EffectiveNorm] = [terms.ExactNorm(), terms.ProbedNorm(), terms.ApproximateNorm(1.0)]


def test_exact_on_l3():
    close(EXACT(linear_views()), [8.8525, 8.8525])
    close(W.square().sum(1), [5.34, 1.6725, 1.84])


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_only_the_centred_penalty_ignores_a_common_gradient(shift):
    views = linear_views(weight=W + shift)
    close(EXACT(views), [8.8525 if shift == 0 else 21.5525] * 2)
    close(replace(EXACT, centred=True)(views), [8.4650, 8.4650])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.5991010, 0.3760491]),
        (40.0, [0.1363790, 0.1138085]),
        (1e-3, [5.34, 1.6725]),
        (1e7, [0.1291667, 0.1291667]),
        (None, [0.1291667, 0.1291667]),
    ],
)
def test_approximate_on_l3(temperature, expected):
    close(approximate(temperature)(linear_views()), expected)


def test_the_released_codes_scale():
    term = replace(approximate(1.0), scale="code")
    views = linear_views()
    close(term(views).mean(), 0.2437875)
    # As the script has it: gradient of the batch's mean, all squares added.
    z, x = logits_and_points(views)
    mean = (F.softmax(z, 1).detach() * z).sum(1).mean()
    (gradient,) = torch.autograd.grad(mean, x, retain_graph=True)
    close(term(views).mean(), gradient.square().sum())


def test_large_temperatures_leave_the_variance_of_the_logits():
    """grad h = grad mean(z) + grad Var(z) / (2 t) + O(t^-2)."""
    views, t = tanh_views(), 200.0
    z, x = logits_and_points(views)
    (h,) = torch.autograd.grad(penalties.weighted_logit(z, t).sum(), x, retain_graph=True)
    expansion = z.mean(1) + z.var(1, correction=0) / (2 * t)
    (wanted,) = torch.autograd.grad(expansion.sum(), x)
    assert (h - wanted).norm() / h.norm() < 1e-5


def jacobian(net: Net, x: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences, [N, K, d]."""
    columns = []
    for pixel in range(x[0].numel()):
        move = torch.zeros_like(x).flatten(1)
        move[:, pixel] = step
        move = move.view_as(x)
        columns.append((net(x + move) - net(x - move)).detach() / (2 * step))
    return torch.stack(columns, 2)


def test_exact_equals_finite_differences():
    views = tanh_views()
    close(EXACT(views), jacobian(views.net, views.batch.x).square().sum((1, 2)), atol=1e-8)


@pytest.mark.parametrize("norm", FORMS, ids=["exact", "probe", "approximate"])
def test_its_gradient_equals_finite_differences(norm):
    """p of the approximation is a constant, so the reference holds it fixed."""
    net, step = tanh_net(), 1e-6
    weight = net.get_parameter("body.1.weight")
    fixed = F.softmax(logits_and_points(tanh_views(net))[0], 1).detach()

    def penalty() -> Tensor:
        views = tanh_views(net)
        if isinstance(norm, terms.ApproximateNorm):
            z, x = logits_and_points(views)
            return penalties.squared_gradient((fixed * z).sum(1), x).sum()
        return terms.EffectiveWeightNorm(norm)(views).sum()

    (gradient,) = torch.autograd.grad(
        terms.EffectiveWeightNorm(norm)(tanh_views(net)).sum(), weight
    )
    for row, column in ((0, 0), (3, 2), (6, 1)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[row, column] += sign * step
            values.append(penalty().item())
            with torch.no_grad():
                weight[row, column] -= sign * step
        difference = (values[0] - values[1]) / (2 * step)
        assert gradient[row, column].item() == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_gradient_on_l3_is_twice_the_weights():
    views = linear_views()
    EXACT(views).mean().backward()
    gradient = views.net.get_parameter("head.linear.weight").grad
    assert gradient is not None
    close(gradient, 2 * W)
    assert views.net.get_parameter("head.linear.bias").grad is None


def test_a_loop_and_one_batched_pass_agree():
    z, x = logits_and_points(tanh_views())
    basis = torch.eye(3, dtype=z.dtype)[:, None].expand(-1, len(z), -1)
    (rows,) = torch.autograd.grad(z, x, basis, is_grads_batched=True, retain_graph=True)
    close(penalties.effective_weights(z, x), rows.flatten(2).square().sum((0, 2)), atol=1e-14)


def test_the_probe_averages_to_the_exact_penalty_and_gradient():
    """Over all 2^K sign vectors, to rounding."""
    net = tanh_net()
    weight = net.get_parameter("body.1.weight")
    z, x = logits_and_points(tanh_views(net))
    every = [torch.tensor(s, dtype=z.dtype).expand_as(z) for s in product((-1, 1), repeat=3)]
    probed = torch.stack([penalties.probed_weights(z, x, signs) for signs in every])
    exact = penalties.effective_weights(z, x)
    close(probed.mean(0), exact.detach(), atol=1e-13)
    ours, wanted = (
        torch.autograd.grad(p.sum(), weight, retain_graph=True)[0] for p in (probed.mean(0), exact)
    )
    close(ours, wanted, atol=1e-13)
    rows = jacobian(net, X.view(2, 1, 2, 2))
    products = (rows @ rows.mT).square()
    off_diagonal = products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)
    close(probed.var(0, correction=0), 2 * off_diagonal, atol=1e-8)


@pytest.mark.parametrize("draws", [1, 4])
def test_the_probes_draws_are_unbiased(draws):
    """2,000 rows are one point with independent signs."""
    x = X[:1].repeat(2000, 1)
    net = tanh_net()
    views = views_of(net, x.view(-1, 1, 2, 2), torch.zeros(2000, dtype=torch.int64))
    values = terms.EffectiveWeightNorm(terms.ProbedNorm(draws))(views).detach()
    exact = EXACT(tanh_views(net))[0].item()
    error = values.std() / len(values) ** 0.5
    assert values.std() > 0
    assert abs(values.mean().item() - exact) < 4 * error


def test_the_probe_draws_by_seed_and_step_and_again_on_other_weights():
    term = terms.EffectiveWeightNorm(terms.ProbedNorm())
    first, again = (views_of(small_net(), small_batch().x, small_batch().y) for _ in range(2))
    torch.testing.assert_close(term(first), term(again), rtol=0, atol=0)
    torch.testing.assert_close(term(first), term(first.on(small_net())), rtol=0, atol=0)
    other = views_of(small_net(), small_batch().x, small_batch().y, seed=1)
    assert not torch.equal(term(first), term(other))
    signs = penalties.random_signs(torch.zeros(1000, 3), generator(0, "test"))
    assert sorted(signs.unique().tolist()) == [-1, 1]


def test_scaling_the_logits():
    """z -> 2 z multiplies the exact penalty by 4."""
    close(EXACT(linear_views(weight=2 * W)), 4 * EXACT(linear_views()))


@pytest.mark.parametrize(
    "term",
    [*(terms.EffectiveWeightNorm(norm) for norm in (FORMS[0], FORMS[2])), terms.InputGradient()],
    ids=["exact", "approximate", "igr"],
)
def test_duplicating_the_batch_changes_the_codes_scale_alone(term):
    once, twice = linear_views(), linear_views(X.repeat(2, 1))
    close(term(twice).mean(), term(once).mean(), atol=1e-14)
    code = replace(term, scale="code")
    close(code(twice).mean(), code(once).mean() / 2, atol=1e-14)


def test_igr_on_l3():
    views = linear_views()
    z, x = logits_and_points(views)
    loss = F.cross_entropy(z, views.batch.y, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
    close(F.softmax(z, 1)[0], [0.4642965, 0.2117748, 0.3239287])
    close(loss[0], 0.7672319)
    close(gradient[0].flatten(), [-0.5768051, 1.4127532, -0.5388367, -0.0286330])
    close(terms.InputGradient()(views)[0], 2.6197407)


def test_igr_in_the_scale_of_the_code():
    """Four times the same sample: ||g||^2 / (2 * 4)."""
    views = views_of(linear_net(), X[:1].repeat(4, 1).view(4, 1, 2, 2), torch.zeros(4).long())
    close(terms.InputGradient(scale="code")(views).mean(), 2.6197407 / 8)
    z, x = logits_and_points(views)
    (gradient,) = torch.autograd.grad(F.cross_entropy(z, views.batch.y), x)
    close(gradient.square().sum() / 2, 2.6197407 / 8)


def test_igr_vanishes_on_confident_samples_and_emr_does_not():
    x, y = X[:1].view(1, 1, 2, 2), torch.tensor([0])
    confident = views_of(linear_net(60 * W), x, y)
    assert terms.InputGradient()(confident).item() < 1e-6
    assert EXACT(confident).item() > 1e3


@pytest.mark.parametrize(
    "term",
    [*(terms.EffectiveWeightNorm(norm) for norm in FORMS), terms.InputGradient()],
    ids=["exact", "probe", "approximate", "igr"],
)
def test_it_is_taken_in_evaluation_mode_and_leaves_no_trace(term):
    net, batch = small_net(), small_batch()
    views = views_of(net, batch.x, batch.y)
    before = buffers(net)
    loss = term(views)
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert loss.shape == (8,)
    # Evaluation mode: a sample's penalty does not depend on the others. (The probe's signs do.)
    if not isinstance(getattr(term, "norm", None), terms.ProbedNorm):
        close(term(views_of(net, batch.x[:3], batch.y[:3])), loss[:3].detach(), atol=1e-14)
    loss.mean().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if "weight" in name}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_points_of_a_subset_are_scattered_to_the_batch():
    batch = small_batch()
    for rows in (torch.tensor([1, 4]), torch.tensor([], dtype=torch.int64)):
        views = views_of(small_net(), batch.x, batch.y)
        views.add("boundary", Crafted(batch.x[rows], rows))
        loss = replace(EXACT, view="boundary")(views)
        wanted = torch.zeros(8, dtype=torch.float64)
        wanted[rows] = EXACT(views)[rows].detach()
        close(loss, wanted, atol=1e-14)


def test_the_penalty_is_single_precision_where_training_is_not():
    net = small_net().float()
    batch = small_batch()
    views = [
        StepViews(net, replace(batch, x=batch.x.float()), CLOCK, precision)
        for precision in (nullcontext, precision_context("bf16", torch.device("cpu")))
    ]
    torch.testing.assert_close(EXACT(views[0]), EXACT(views[1]), rtol=0, atol=0)


# The components


def composed(*overrides: str) -> Method:
    return compose_config("eps=0.1", "attack.steps=2", *overrides).phases[-1].method


@pytest.mark.parametrize("name", ["enabled", "exact", "probe", "approximate"])
@pytest.mark.parametrize("method", ["standard", "at", "trades", "mart"])
def test_emr_on_any_method_trains(method, name):
    plain_method = composed(f"method={method}")
    emr = composed(f"method={method}", f"component/emr={name}", "component.emr.coef=1.0")
    assert emr.passes == plain_method.passes
    term = emr.terms["emr"].term
    assert isinstance(term, terms.EffectiveWeightNorm)
    assert term.view == ("nat" if method == "standard" else "adv")
    trains_and_differs(plain_method, emr)


@pytest.mark.parametrize("method", ["standard", "at", "trades", "mart"])
def test_igr_on_any_method_trains(method):
    trains_and_differs(
        composed(f"method={method}"), composed(f"method={method}", "component/igr=enabled")
    )


def trains_and_differs(without: Method, method: Method) -> None:
    """Two steps; the first moves BatchNorm's statistics as it does without the component."""
    trained = [two_steps(each) for each in (without, method)]
    statistics = [statistic for _, statistic in trained]
    assert all(torch.equal(a, b) for a, b in zip(*statistics, strict=True))
    assert largest_difference(trained[0][0], trained[1][0]) > 1e-6


def two_steps(method: Method) -> tuple[Net, list[Tensor]]:
    """The network, and its buffers after the first step."""
    net, statistics = small_net(), []
    optimizer = sgd(net)
    for step in range(2):
        log, _ = train_step(method, net, optimizer, small_batch(step), Clock(0, step), seed=0)
        assert log.loss.isfinite()
        assert log.grad_norm.isfinite()
        statistics.append(buffers(net))
    return net, statistics[0]


def test_both_train_together_and_under_awp():
    method = composed(
        "method=trades", "component/emr=probe", "component/igr=enabled", "component/awp=enabled"
    )
    net = small_net()
    for step in range(2):
        log, _ = train_step(method, net, sgd(net), small_batch(step), Clock(0, step), seed=0)
        assert set(log.parts) == {"ce", "kl", "emr", "igr"}
        assert log.loss.isfinite()


def test_disabled_changes_nothing():
    off = compose_config("component/emr=disabled", "component/igr=disabled")
    assert off.train_id == compose_config().train_id
    assert off.phases == compose_config().phases


def test_enabled_is_exact_and_forms_have_identities_of_their_own():
    ids = {
        name: compose_config(f"component/emr={name}").train_id
        for name in ("enabled", "exact", "probe", "approximate")
    }
    assert ids["enabled"] == ids["exact"]
    assert len(set(ids.values())) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["component/emr=exact", "component.emr.view=boundary"], "the method has nat, adv"),
        (["method=standard", "component/emr=exact", "component.emr.view=adv"], "has nat"),
        (["component/emr=exact", "component.emr.coef=0"], "component/emr=disabled"),
        (["component/igr=enabled", "component.igr.coef=-1"], "component/igr=disabled"),
        (["component/emr=exact", "++component.emr.temperature=1"], "unknown key"),
        (["component/emr=approximate", "component.emr.temperature=0"], "must be positive"),
        (["component/emr=probe", "component.emr.draws=0"], "at least 1"),
        (["component/emr=probe", "runtime.compile=true"], "terms.emr differentiates twice"),
        (["component/igr=enabled", "runtime.compile=true"], "terms.igr differentiates twice"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_config(*overrides)


def test_lambda_falls_with_the_learning_rate(tmp_path, monkeypatch):
    slot = components.Emr(coef=2.0, decay="lr").apply(composed()).terms["emr"]
    assert isinstance(slot.gate, DecayingGate)
    assert slot.factor(Clock(0, 0, decay=0.1)) == pytest.approx(0.2)
    assert components.Emr(coef=2.0).apply(composed()).terms["emr"].factor(
        Clock(0, 0, decay=0.1)
    ) == pytest.approx(2.0)
    seen = {}

    def spy(method, net, optimizer, batch, clock, **options):
        seen[clock.epoch] = (clock.decay, optimizer.param_groups[0]["lr"])
        return train_step(method, net, optimizer, batch, clock, **options)

    monkeypatch.setattr(engine, "train_step", spy)
    schedule = ["schedule=piecewise", "schedule.milestones=[1]", "lr=0.05", "epochs=2"]
    assert job.train(plain(tmp_path, "evaluation=none", *schedule)) == DONE
    assert seen[0] == pytest.approx((1.0, 0.05))
    assert seen[1] == pytest.approx((0.1, 0.005))
