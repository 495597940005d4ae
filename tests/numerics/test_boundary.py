"""Margins and boundary searches: the specification's numbers, properties, and AutoAttack's FAB.

Fixtures L3 (three classes, linear), CIRC (phi > 0 in a disc) and BOX (the box is in the way), in
float64.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ablation.crafters import FabSearch
from ablation.numerics import boundary as bd
from ablation.numerics import functional as fn
from ablation.random import generator
from ablation.types import Norm
from tests.support.linear import B3, CIRC, GAMMA, W3, X0, Y0, array, close

NORMS: list[Norm] = ["linf", "l2"]

NEAREST = 0.36 / 5.2
"""The linf margin of X0; the boundary is that of class 2."""
BOX = array([[0.1, 0.8]])


def l3(x: Tensor) -> Tensor:
    return x @ W3.T + B3


def l3_margin(x: Tensor) -> Tensor:
    return fn.margin(l3(x), Y0.expand(len(x)))


def disc(x: Tensor) -> Tensor:
    return 0.09 - ((x - 0.5) ** 2).sum(1)


def rng(seed: int = 0) -> torch.Generator:
    return generator(seed, "fab")


def relu_net(seed: int, pixels: int = 12, classes: int = 4) -> Callable[[Tensor], Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [pixels, 32, 32, classes]
    weights = [
        torch.randn(a, b, generator=g, dtype=torch.float64) / a**0.5 for a, b in pairwise(sizes)
    ]

    def logits(x: Tensor) -> Tensor:
        h = x.flatten(1) - 0.5
        for w in weights[:-1]:
            h = (h @ w).relu()
        return torch.mm(h, weights[-1])

    return logits


def net_case(seed: int = 0, samples: int = 16) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Logits of a ReLU net, samples [N, 3, 2, 2], and labels that are right for most of them."""
    logits = relu_net(seed)
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.rand(samples, 3, 2, 2, generator=g, dtype=torch.float64)
    y = logits(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return logits, x, y


def fab_net(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    norm: Norm = "linf",
    start: bd.SearchStart = "clean",
    **kwargs: Any,
) -> bd.Boundary:
    def phi(p: Tensor) -> Tensor:
        return fn.margin(logits(p), y)

    return bd.fab(phi, x, norm=norm, rng=rng(), start=start, **kwargs)


@pytest.mark.parametrize(
    ("z", "beta", "expected"),
    [
        ([2.0, 1, 0], 5, 0.9986569),
        ([2.0, 1, 0], 1, 0.6867384),
        ([2.0, 1, 1], 5, 0.8613706),
        ([1.2, 1, 0.9], 1, -0.4443967),
        ([1.2, 1, 0.9], 5, 0.1051846),
        ([1.2, 1, 0.9], 50, 0.1998657),
        ([1.0, *[0.7] * 9], 5, -0.1394449),  # correct, yet excluded
    ],
)
def test_soft_margin_numbers(z, beta, expected):
    close(bd.soft_margin(array([z]), Y0, beta), [expected])


def test_a_soft_margin_needs_a_temperature_above_zero():
    with pytest.raises(ValueError, match="beta=0 must be positive"):
        bd.Soft(0)
    z = array([[2.0, 1, 0]])
    close(bd.Soft(0.5)(z, Y0), bd.soft_margin(z, Y0, 0.5).tolist())
    close(bd.Soft()(z, Y0), [0.9986569])  # DOSE's 5


def test_soft_margin_gradient_is_the_softmax_over_the_other_classes():
    z = array([[2.0, 1, 0]]).requires_grad_()
    (grad,) = torch.autograd.grad(bd.soft_margin(z, Y0, 5).sum(), z)
    close(grad, [[1, -0.9933071, -0.0066929]])


@settings(max_examples=50, deadline=None)
@given(
    z=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=12),
    beta=st.floats(0.1, 100),
    data=st.data(),
)
def test_soft_margin_lies_just_below_the_hard_margin(z, beta, data):
    y = torch.tensor([data.draw(st.integers(0, len(z) - 1))])
    soft, hard = bd.soft_margin(array([z]), y, beta), fn.margin(array([z]), y)
    slack = 1e-9 * (1 + max(abs(v) for v in z))
    assert soft <= hard + slack
    assert soft >= hard - np.log(len(z) - 1) / beta - slack


@pytest.mark.parametrize(
    ("norm", "rival", "expected"),
    [
        ("linf", 1, 0.1389381),
        ("linf", 2, 0.0692308),
        ("l2", 1, 0.2254621),
        ("l2", 2, 0.1206723),
        ("l1", 1, 0.2616667),
        ("l1", 2, 0.15),
    ],
)
def test_taylor_margin_of_l3(norm, rival, expected):
    z = l3(X0)
    got = bd.taylor_margin(z[:, 0] - z[:, rival], (W3[0] - W3[rival])[None], norm)
    close(got, [expected])


def test_dual_norms_of_l3():
    g = torch.stack([W3[0] - W3[1], W3[0] - W3[2]])
    close(bd.dual_norm(g, "linf"), [5.65, 5.2], atol=1e-12)


def test_dual_norm_of_a_zero_gradient_is_its_guard():
    assert bd.dual_norm(torch.zeros(1, 3, 2, 2), "l2").tolist() == pytest.approx([1e-8])
    assert bd.taylor_margin(torch.ones(1), torch.zeros(1, 2), "linf").isfinite().all()


def test_taylor_margin_gradient_has_a_constant_denominator():
    w, b = W3.clone().requires_grad_(), B3.clone().requires_grad_()
    x = X0.clone().requires_grad_()
    phi = fn.margin(x @ w.T + b, Y0)
    (slope,) = torch.autograd.grad(phi.sum(), x, create_graph=True)
    taylor = bd.taylor_margin(phi, slope, "linf")
    dw, db = torch.autograd.grad(taylor.sum(), [w, b])
    close(dw[0], [0.1153846, 0.0576923, 0.0961538, 0.0769231])
    close(dw[2], (-dw[0]).tolist())
    close(db[0], 0.1923077)
    # Scaling the logits moves no boundary, but this gradient does not know.
    close((dw * W3).sum() + (db * B3).sum(), NEAREST)


def test_taylor_margin_of_circ_is_far_from_the_true_margin():
    x = CIRC.clone().requires_grad_()
    phi = disc(x)
    (slope,) = torch.autograd.grad(phi.sum(), x)
    close(bd.taylor_margin(phi, slope, "linf").detach(), [0.2583333])


def test_taylor_margin_of_a_wrong_sample_is_negative():
    y = torch.tensor([1])
    x = X0.clone().requires_grad_()
    phi = fn.margin(l3(x), y)
    (slope,) = torch.autograd.grad(phi.sum(), x)
    taylor = bd.taylor_margin(phi.detach(), slope, "linf")
    close(taylor, [-0.1389381])
    close(bd.hinge(taylor, GAMMA), [0.2016832])


def test_hinge_numbers():
    close(bd.hinge(array([NEAREST, 0.02, torch.inf]), GAMMA), [0, 0.0427451, 0])


def test_exponential_and_weight_numbers():
    r = array([0, 4 / 255, 8 / 255, 12 / 255, GAMMA, 1, torch.inf])
    weights = [1, 0.954031, 0.910176, 0.868336, 0, 0, 0]
    close(bd.boundary_weight(r, 3, GAMMA), weights, atol=5e-7)
    penalties = [0.333333, 0.318010, 0.303392, 0.289445, 0, 0, 0]
    close(bd.exponential(r, 3, GAMMA), penalties, atol=5e-7)
    below = array([GAMMA * (1 - 1e-12)])
    for alpha, share in [(3, 0.8284), (8, 0.6053), (30, 0.1522), (100, 0.0019)]:
        close(bd.boundary_weight(below, alpha, GAMMA), [share], atol=5e-5)


def test_exponential_over_the_correct_samples():
    r = array([-0.1, 0.0333333, 0.4333333])
    penalty = bd.exponential(torch.where(r > 0, r, torch.inf), 3, GAMMA)
    close(penalty.sum() / 2, 0.1508062)


def test_weight_is_minus_the_slope_of_the_exponential():
    r = array([-0.1, 0, 0.01, 0.05, 0.07, 0.5]).requires_grad_()
    (slope,) = torch.autograd.grad(bd.exponential(r, 30, GAMMA).sum(), r)
    torch.testing.assert_close(-slope, bd.boundary_weight(r.detach(), 30, GAMMA))


def test_boundary_terms_give_dyarts_gradient():
    """Spec 7.6: w = (4, -2), c = -1; one near sample, one wrong, one far."""
    w, c = array([4.0, -2]).requires_grad_(), array(-1.0).requires_grad_()
    x = array([[0.5, 0.4], [0.4, 0.6], [0.95, 0.1]])

    def phi(p: Tensor) -> Tensor:
        return p @ w + c

    slope = w.detach().expand_as(x)
    moved, _ = bd.project_hyperplane(x, slope, -c.detach().expand(3), "linf")
    distance = torch.where(phi(x).detach() > 0, fn.lp_norm(moved, "linf"), torch.inf)
    close(distance, [0.0333333, torch.inf, 0.4333333])
    weight = bd.boundary_weight(distance, 3, GAMMA) / bd.dual_norm(slope, "linf")
    loss = (-1000 * weight * phi(x + moved)).mean()
    dw, dc = torch.autograd.grad(loss, [w, c])
    close(dw, [-23.458748, -21.783123], atol=1e-6)
    close(dc, -50.268745, atol=1e-6)


@pytest.mark.parametrize(
    ("t", "w", "b", "expected", "meets"),
    [
        ([0.1, 0.8], [1, 1], 0.3, [-0.1, -0.5], True),
        ([0.05, 0.5, 0.9], [2, -1, 0.5], -0.5, [-0.05, 0.3, -0.3], True),
        ([0.5, 0.5], [1, 1], -0.5, [-0.5, -0.5], False),
        ([0.5, 0.5], [1, 1], 2.5, [0.5, 0.5], False),
        ([0.5, 0.5, 0.3], [1, -1, 0], -2, [-0.5, 0.5, 0], False),
        ([0.5, 0.5], [0, 0], 1, [0, 0], False),
        ([0.5, 0.5], [0, 0], 0, [0, 0], True),
        ([0.25, 0.75], [3, 1], 1.5, [0, 0], True),
    ],
)
def test_linf_projection_numbers(t, w, b, expected, meets):
    moved, feasible = bd.project_hyperplane(array([t]), array([w]), array([b]), "linf")
    close(moved, [expected], atol=1e-12)
    assert feasible.tolist() == [meets]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("linf", [0.1020710, 0.0710059, 0.0828402, 0.0902367]),
        ("l2", [0.1902735, 0.1331011, 0.1472624, 0.1408597]),
    ],
)
def test_projection_of_l3_gives_the_closed_form_gradient(norm, expected):
    """grad_W0 R = x_b / ||w||_q at the nearest boundary point x_b (spec 7.6)."""
    w = (W3[0] - W3[2])[None]
    moved, _ = bd.project_hyperplane(X0, w, (B3[2] - B3[0])[None], norm)
    close(l3_margin(X0 + moved), [0], atol=1e-12)
    close((X0 + moved) / bd.dual_norm(w, norm), [expected])


def test_l2_projection_turns_at_the_box():
    # Unclipped it would be (-0.3, -0.3); the first pixel stops after 0.1, the second goes on.
    moved, _ = bd.project_hyperplane(BOX, array([[1, 1]]), array([0.3]), "l2")
    close(moved, [[-0.1, -0.5]], atol=1e-12)
    moved, _ = bd.project_hyperplane(array([[0.5, 0.5]]), array([[3, 4]]), array([2.25]), "l2")
    close(moved, [[-0.15, -0.2]], atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_projection_does_not_depend_on_the_scale_of_the_plane(norm, scale):
    t, w = torch.rand(5, 30, generator=rng()), torch.randn(5, 30, generator=rng(1))
    b = (w * torch.rand(5, 30, generator=rng(2))).sum(1)
    moved, _ = bd.project_hyperplane(t, w, b, norm)
    scaled, feasible = bd.project_hyperplane(t, w * scale, b * scale, norm)
    assert feasible.all()
    torch.testing.assert_close(scaled, moved, atol=1e-5, rtol=0)


def planes(seed: int, pixels: int, zeros: float, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points (some pixels at 0 or 1), normals (some entries 0), offsets: all meet if reach < 1."""
    g = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, 8, pixels, generator=g, dtype=torch.float64)
    t = (1.4 * draw() - 0.2).clamp(0, 1)
    w = torch.where(draw() < zeros, 0.0, torch.randn(8, pixels, generator=g, dtype=torch.float64))
    middle, width = w.sum(1) / 2, w.abs().sum(1) / 2
    sides = 2 * torch.rand(8, generator=g, dtype=torch.float64) - 1
    return t, w, middle + reach * sides * width


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    seed=st.integers(0, 10**6),
    pixels=st.integers(1, 40),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    reach=st.floats(0, 3),
)
def test_projection_is_in_the_box_on_the_plane_and_leaves_zero_normals(
    norm, seed, pixels, zeros, reach
):
    t, w, b = planes(seed, pixels, zeros, reach)
    moved, feasible = bd.project_hyperplane(t, w, b, norm)
    v, width = t + moved, 1 + w.abs().sum(1)
    lowest, highest = w.clamp_max(0).sum(1), w.clamp_min(0).sum(1)
    assert ((v >= 0) & (v <= 1)).all()
    assert (moved[w == 0] == 0).all()
    inside = (b > lowest + 1e-9) & (b < highest - 1e-9)
    outside = (b < lowest - 1e-9) | (b > highest + 1e-9)
    assert feasible[inside].all()
    assert not feasible[outside].any()
    nearest = torch.minimum(torch.maximum(b, lowest), highest)  # the corner if infeasible
    live = (w != 0).any(1)
    assert (((w * v).sum(1) - nearest).abs() < 1e-12 * width)[live].all()


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    seed=st.integers(0, 10**6),
    pixels=st.integers(2, 20),
    zeros=st.sampled_from([0.0, 0.3]),
    reach=st.floats(0, 0.99),
)
def test_no_other_point_of_plane_and_box_is_nearer(norm, seed, pixels, zeros, reach):
    t, w, b = planes(seed, pixels, zeros, reach)
    moved, _ = bd.project_hyperplane(t, w, b, norm)
    length = fn.lp_norm(moved, norm)
    g = torch.Generator().manual_seed(seed)
    for _ in range(50):
        # Where a segment between the two sides of the box crosses the plane; then anywhere between
        # that and the projection.
        ends = torch.rand(2, *t.shape, generator=g, dtype=torch.float64)
        pull = torch.rand(2, 8, 1, generator=g, dtype=torch.float64) ** 0.2
        corners = torch.stack([(w < 0).double(), (w > 0).double()])
        low, high = ends + pull * (corners - ends)
        low_value, high_value = (w * low).sum(1), (w * high).sum(1)
        crosses = (low_value <= b) & (b <= high_value) & (high_value > low_value)
        share = ((b - low_value) / (high_value - low_value).clamp_min(1e-300))[:, None]
        other = low + share * (high - low)
        for near in (1.0, 0.1, 0.001):
            found = fn.lp_norm(moved + near * (other - t - moved), norm)
            assert (found >= length - 1e-9)[crosses].all()


def test_projection_in_float32_at_image_size():
    g = torch.Generator().manual_seed(0)
    t, w = torch.rand(4, 3072, generator=g), torch.randn(4, 3072, generator=g)
    b = (w * t).sum(1) - torch.tensor([1e-4, 0.02, 0.2, 0.45]) * w.abs().sum(1)
    for norm in NORMS:
        exact, _ = bd.project_hyperplane(t.double(), w.double(), b.double(), norm)
        moved, _ = bd.project_hyperplane(t, w, b, norm)
        assert (moved - exact).abs().max() < 1e-5


def test_projection_of_nothing_is_nothing():
    moved, feasible = bd.project_hyperplane(
        torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), "linf"
    )
    assert moved.shape == (0, 3)
    assert feasible.shape == (0,)


@pytest.mark.parametrize(("steps", "share"), [(1, 1.05), (2, 1.0052133), (20, 1.0052133)])
def test_fab_on_l3_from_the_clean_point(steps, share):
    found = bd.fab(l3_margin, X0, norm="linf", rng=rng(), steps=steps, start="clean")
    close(found.distance / NEAREST, [share], atol=1e-7)
    assert l3_margin(found.x).item() < 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("alpha_max", [None, 0.9])
def test_the_first_step_follows_the_papers_formula(norm, alpha_max):
    seen: list[Tensor] = []

    def phi(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return 10 * (x @ w) - b

    w, b = array([2.0, -1, 0.5]), array(5.0)
    changes = {} if alpha_max is None else {"alpha_max": alpha_max}
    bd.fab(phi, array([[0.5, 0.5, 0.5]]), norm=norm, rng=rng(), steps=1, **changes)
    x, u, after = seen
    to_u, to_x = (bd.project_hyperplane(p, 10 * w[None], b[None], norm)[0] for p in (u, x))
    share = (fn.lp_norm(to_u, norm) / (fn.lp_norm(to_u, norm) + fn.lp_norm(to_x, norm))).item()
    assert 0.1 < share < 0.9
    alpha = share if alpha_max else 0.1
    expected = (1 - alpha) * (u + 1.05 * to_u) + alpha * (x + 1.05 * to_x)
    torch.testing.assert_close(after, expected.clamp(0, 1))


@pytest.mark.parametrize(("steps", "bound"), [(5, 0.14), (20, 0.025), (100, 0.01)])
def test_fab_on_l3_from_random_points_closes_in(steps, bound):
    for seed in range(5):
        found = bd.fab(l3_margin, X0, norm="linf", rng=rng(seed), steps=steps)
        assert 1 < found.distance.item() / NEAREST < 1 + bound


def test_fab_on_l3_in_l2():
    found = bd.fab(l3_margin, X0, norm="l2", rng=rng(), start="clean")
    assert found.distance.item() == pytest.approx(0.1206723, rel=0.015)


def test_fab_on_circ_finds_the_curved_boundary():
    found = bd.fab(disc, CIRC, norm="linf", rng=rng(), start="clean")
    assert found.distance.item() == pytest.approx(0.1356537, rel=0.015)
    assert torch.allclose(found.x, array([[0.7356537, 0.6856537]]), atol=0.015 * 0.1357)


def test_closed_form_gradient_of_circ():
    """DR/d(r^2) = 1 / ||grad phi(x_b)||_1, against a finite difference of the margin (spec 7.6)."""
    x_b = array([[0.7356537, 0.6856537]])
    close(disc(x_b), [0], atol=1e-7)
    got = 1 / bd.dual_norm(-2 * (x_b - 0.5), "linf")
    close(got, [1.1867817], atol=1e-6)


def test_fab_where_the_box_is_in_the_way():
    found = bd.fab(lambda p: p.sum(1) - 0.3, BOX, norm="linf", rng=rng(), start="clean")
    assert found.distance.item() == pytest.approx(0.5, rel=0.015)
    assert found.x[0, 0] == 0


def trap(x: Tensor) -> Tensor:
    return torch.stack([0 * x[:, 0], 0.2 - x[:, 0] - x[:, 1], 10 * x[:, 1] - 10 * x[:, 0] - 0.6], 1)


def test_the_highest_rival_is_not_the_nearest():
    x = array([[0.2, 0.22]])
    top = bd.fab(lambda p: fn.margin(trap(p), Y0), x, norm="linf", rng=rng(), start="clean")
    assert top.distance.item() == pytest.approx(0.1106, abs=5e-5)
    every = bd.fab_all_classes(trap, x, Y0, norm="linf")
    assert every.distance.item() == pytest.approx(0.02, rel=0.015)


def test_fab_breaks_what_cross_entropy_pgd_does_not():
    """Spec 16: the margin is 0.0692, yet PGD on CE with eps 0.08 leaves phi at 0.024."""
    eps = array([0.08])
    ce = fn.pgd(lambda p: fn.cross_entropy(l3(p), Y0), X0, X0, eps, eps / 10, 100, "linf")
    close(l3_margin(ce), [0.024], atol=1e-9)
    found = bd.fab_all_classes(l3, X0, Y0, norm="linf")
    assert found.distance.item() < 0.08
    assert found.distance.item() == pytest.approx(NEAREST, rel=0.015)


def test_the_settings_are_those_of_the_component_and_of_autoattack():
    from pyautoattack.fab_pt import FABAttack_PT

    ours = inspect.signature(bd.fab).parameters
    for field in dataclasses.fields(FabSearch):
        assert ours[field.name].default == field.default
    assert ours["eps"].default == 8 / 255
    every = inspect.signature(bd.fab_all_classes).parameters
    theirs = inspect.signature(FABAttack_PT.__init__).parameters
    named = {"steps": "n_iter", "eta": "eta", "beta": "beta", "alpha_max": "alpha_max"}
    for name, their_name in named.items():
        assert every[name].default == theirs[their_name].default


def test_fab_takes_one_forward_and_one_backward_per_step():
    calls: list[bool] = []

    def phi(x: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return l3_margin(x)

    bd.fab(phi, X0, norm="linf", rng=rng(), steps=7, restarts=2)
    assert sum(calls) == 14
    assert len(calls) == 14 + 3  # x, and the last iterate of each restart


@pytest.mark.parametrize("norm", NORMS)
def test_all_class_fab_of_linear_logits_follows_the_papers_formula(norm):
    """Where boundaries are planes, going back before or after linearising is the same."""
    x = torch.rand(32, 4, generator=rng(), dtype=torch.float64)
    y = l3(x).argmax(1)
    seen: list[Tensor] = []

    def logits(p: Tensor) -> Tensor:
        seen.append(p.detach())
        return l3(p)

    bd.fab_all_classes(logits, x, y, norm=norm, steps=6)
    normals, offsets = W3[y][:, None] - W3, B3 - B3[y][:, None]  # of all boundaries, [32, 3, ...]
    lengths = torch.stack([bd.dual_norm(w, norm) for w in normals])
    rows, u, backs = torch.arange(32), x, 0
    for after in seen[2:]:
        beyond = fn.margin(l3(u), y) < 0
        backs += int(beyond.sum())
        u = torch.where(beyond[:, None], x + 0.9 * (u - x), u)
        away = ((normals * u[:, None]).sum(2) - offsets).abs() / lengths
        away[rows, y] = torch.inf
        w, b = normals[rows, away.argmin(1)], offsets[rows, away.argmin(1)]
        to_u, to_x = (bd.project_hyperplane(p, w, b, norm)[0] for p in (u, x))
        length_u, length_x = (fn.lp_norm(moved, norm) for moved in (to_u, to_x))
        alpha = (length_u / (length_u + length_x)).clamp_max(0.1)[:, None]
        u = ((1 - alpha) * (u + 1.05 * to_u) + alpha * (x + 1.05 * to_x)).clamp(0, 1)
        torch.testing.assert_close(after, u)
    assert backs > 32


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("official_order", [False, True])
def test_a_point_on_the_boundary_is_not_beyond_it(norm, official_order):
    """Without overshoot the first step ends at phi = 0: not found, and nothing goes back."""
    seen: list[Tensor] = []

    def phi(x: Tensor) -> Tensor:  # past x_0 = 1/2 the boundary turns
        seen.append(x.detach())
        across, along = (x - 0.5).unbind(1)
        return torch.where(across > 0, across, across + along)

    search = partial(bd.fab, phi, array([[0.75, 0.5]]), norm=norm, rng=rng(), start="clean")
    found = search(steps=2, eta=1.0, alpha_max=0.0, official_order=official_order)
    assert seen[-1].tolist() == [[0.5, 0.5]]
    assert not found.found.any()


def test_the_official_order_steps_tests_and_goes_back_before_it_linearises():
    """Forwards: the sample; then, per step, where it linearises and the point it tests."""
    seen: list[Tensor] = []

    def phi(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return l3_margin(x)

    search = partial(bd.fab, phi, X0, norm="linf", rng=rng(), start="clean")
    assert search(steps=2, beta=0.7, official_order=True).found.all()
    x, first, beyond, second, _ = seen
    assert torch.equal(first, x)
    assert l3_margin(beyond) < 0
    torch.testing.assert_close(second, x + 0.7 * (beyond - x))


def test_fab_never_waits_for_the_device():
    """Meta tensors have no values: reading one, or a gather of unknown size, raises."""
    w = torch.randn(6, 3, device="meta")
    x, y = torch.rand(5, 6, device="meta"), torch.zeros(5, dtype=torch.long, device="meta")
    found = fab_net(lambda p: p @ w, x, y, steps=3, shared_bias=True)
    assert found.x.shape == (5, 6)
    assert bd.fab_all_classes(lambda p: p @ w, x, y, norm="l2", steps=2).found.shape == (5,)
    assert bd.kkt_filter(x, x, x, found.distance).shape == (5,)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["random", "clean"])
def test_fab_returns_points_beyond_the_boundary_at_the_distance_it_says(norm, start):
    logits, x, y = net_case(samples=64)
    result = fab_net(logits, x, y, norm, start)
    found, correct = result.found, fn.margin(logits(x), y) > 0
    assert 0 < correct.sum() < len(x)
    assert not found[~correct].any()
    assert found[correct].double().mean() > 0.8  # a random net: some classes are far away
    assert (fn.margin(logits(result.x), y)[found] < 0).all()
    torch.testing.assert_close(result.distance[found], fn.lp_norm(result.x - x, norm)[found])
    assert (result.distance[~found] == torch.inf).all()
    assert torch.equal(result.x[~found], x[~found])
    assert ((result.x >= 0) & (result.x <= 1)).all()


def dead(x: Tensor) -> Tensor:
    """Positive with zero gradient, except in the half x_0 > 0.5, where it falls."""
    return 0.1 - 4 * (x.flatten(1)[:, 0] - 0.5).relu()


@pytest.mark.parametrize("norm", NORMS)
def test_failure_is_an_infinite_distance_and_leaves_the_neighbours_alone(norm):
    x = array([[0.2, 0.5], [0.51, 0.5]])
    found = bd.fab(dead, x, norm=norm, rng=rng(), start="clean")
    assert found.found.tolist() == [False, True]
    assert found.distance[0] == torch.inf
    assert torch.equal(found.x[0], x[0])
    assert found.distance[1].item() == pytest.approx(0.015, rel=0.015)
    none = bd.fab(lambda p: 0 * p.sum(1) + 1, x, norm=norm, rng=rng())
    assert not none.found.any()
    assert none.distance.tolist() == [torch.inf] * 2
    assert torch.equal(none.x, x)


@pytest.mark.parametrize("norm", NORMS)
def test_an_iterate_without_gradient_finds_back(norm):
    x = array([[0.52, 0.5]] * 8)
    start = bd.fab(dead, x, norm=norm, rng=rng(), eps=0.2, steps=0)
    found = bd.fab(dead, x, norm=norm, rng=rng(), eps=0.2, steps=60)
    assert not start.found.all()  # these begin where phi is flat
    assert found.found.all()


def test_fab_takes_wrong_samples_and_ties_for_not_searched():
    x = array([[0.5, 0.5]] * 3)
    offset = array([-0.1, 0.0, 0.1])

    def phi(p: Tensor) -> Tensor:
        return p.sum(1) - 1 + offset

    def logits(p: Tensor) -> Tensor:
        return torch.stack([phi(p), torch.zeros(3)], 1)

    for found in (
        bd.fab(phi, x, norm="linf", rng=rng()),
        bd.fab_all_classes(logits, x, Y0.expand(3), norm="linf"),
        bd.linearised(phi, x, norm="linf"),
    ):
        assert found.found.tolist() == [False, False, True]
        assert found.distance.isinf().tolist() == [True, True, False]


def test_fab_of_nothing_is_nothing():
    x, y = torch.zeros(0, 3, 2, 2, requires_grad=True), torch.zeros(0, dtype=torch.long)
    every = bd.fab_all_classes(lambda p: p.flatten(1), x, y, norm="linf")

    def phi(p: Tensor) -> Tensor:
        return p.flatten(1).sum(1)

    search = partial(bd.fab, phi, x, norm="linf", rng=rng())
    linear = bd.linearised(phi, x, norm="linf")
    for found in (search(), search(shared_bias=True), every, linear):
        assert found.x.shape == x.shape
        assert not found.x.requires_grad
        assert found.distance.shape == found.found.shape == (0,)


@pytest.mark.parametrize("search", ["fab", "all"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_does_not_depend_on_its_neighbours(search, norm):
    logits, x, y = net_case()

    def run(rows: Tensor) -> bd.Boundary:
        if search == "all":
            return bd.fab_all_classes(logits, x[rows], y[rows], norm=norm, steps=10)
        return fab_net(logits, x[rows], y[rows], norm)

    whole = run(torch.arange(len(x)))
    order = torch.randperm(len(x), generator=rng())
    for rows in (order, torch.tensor([3]), torch.tensor([5, 1, 1])):
        some = run(rows)
        torch.testing.assert_close(some.distance, whole.distance[rows], atol=1e-9, rtol=0)
        torch.testing.assert_close(some.x, whole.x[rows], atol=1e-9, rtol=0)
        assert torch.equal(some.found, whole.found[rows])


def test_random_starts_do_not_depend_on_the_neighbours_values():
    logits, x, y = net_case()
    other = x.clone()
    other[1:] = 1 - other[1:]
    a, b = fab_net(logits, x, y, start="random"), fab_net(logits, other, y, start="random")
    index = 1 if a.found[1] else 2
    assert torch.equal(a.x[0], b.x[0])
    assert not torch.equal(a.x[index], b.x[index])


def test_fab_repeats_itself_and_draws_only_from_its_generator():
    logits, x, y = net_case()
    before = torch.get_rng_state()
    first, again = (fab_net(logits, x, y, start="random") for _ in range(2))
    other = bd.fab(lambda p: fn.margin(logits(p), y), x, norm="linf", rng=rng(1))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert torch.equal(before, torch.get_rng_state())


def test_fab_leaves_no_gradient_behind():
    layer = nn.Linear(2, 1).double()
    x = BOX.clone().requires_grad_()
    found = bd.fab(lambda p: layer(p).squeeze(1), x, norm="linf", rng=rng())
    assert not found.x.requires_grad
    assert not found.distance.requires_grad
    assert x.grad is None
    assert layer.weight.grad is None
    plain = BOX.clone()
    bd.fab(disc, plain, norm="linf", rng=rng(), start="clean")
    assert not plain.requires_grad


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_half_the_radius_or_half_the_best_distance_away(norm):
    x = torch.full((6, 4), 0.5, dtype=torch.float64)
    eps = torch.linspace(0.01, 0.2, 6, dtype=torch.float64)
    seen: list[Tensor] = []

    def phi(p: Tensor) -> Tensor:
        seen.append(fn.lp_norm(p.detach() - x, norm))
        return 0.03 - fn.lp_norm(p - x, norm)  # the boundary is 0.03 away on all sides

    first = bd.fab(phi, x, norm=norm, rng=rng(), steps=0, eps=eps)
    torch.testing.assert_close(seen[-1], eps / 2)
    assert torch.equal(first.found, eps > 0.06)  # the start itself counts
    bd.fab(phi, x, norm=norm, rng=rng(), steps=0, eps=eps, restarts=2)
    torch.testing.assert_close(seen[-1], torch.where(eps > 0.06, eps / 2, eps) / 2)
    bd.fab(phi, x, norm=norm, rng=rng(), steps=0, eps=0.04)
    torch.testing.assert_close(seen[-1], torch.full_like(eps, 0.02))


@pytest.mark.parametrize("norm", NORMS)
def test_every_point_asked_for_lies_in_the_box(norm):
    seen: list[Tensor] = []

    def phi(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(1) - 0.5

    bd.fab(phi, array([[0.0, 0.6, 1.0]] * 4), norm=norm, rng=rng(), eps=1.0)
    points = torch.stack(seen)
    assert points.min() == 0
    assert points.max() == 1


@pytest.mark.parametrize("start", ["random", "clean"])
def test_restarts_keep_the_nearest(start):
    logits, x, y = net_case()
    once, twice = (fab_net(logits, x, y, start=start, restarts=n, steps=5) for n in (1, 2))
    assert (twice.distance <= once.distance).all()
    assert (twice.distance < once.distance).any()


def test_shared_bias_is_that_of_the_first_searched_sample():
    """Sample 0 is wrong, so sample 1 gives alpha; it is as if alone, sample 2 is not."""
    x = array([[0.1, 0.1], [0.6, 0.55], [0.52, 0.66]])

    def run(rows: slice, shared_bias: bool) -> Tensor:
        return bd.fab(
            disc, x[rows], norm="linf", rng=rng(), steps=4, start="clean", shared_bias=shared_bias
        ).x

    shared, own = run(slice(0, 3), True), run(slice(0, 3), False)
    assert torch.equal(shared[1], own[1])
    assert not torch.allclose(shared[2], own[2], atol=1e-6)
    torch.testing.assert_close(run(slice(1, 3), True)[1], shared[2])


def test_scaling_the_logits_leaves_the_hard_boundary():
    logits, x, y = net_case()
    hard = fab_net(logits, x, y).distance
    scaled = fab_net(lambda p: 16 * logits(p), x, y).distance
    torch.testing.assert_close(scaled, hard, atol=1e-12, rtol=0)


def test_the_soft_boundary_lies_inside_and_nears_the_hard_one_as_logits_grow():
    def soft(scale: float) -> float:
        return bd.fab(
            lambda p: bd.soft_margin(scale * l3(p), Y0, 5),
            X0,
            norm="linf",
            rng=rng(),
            start="clean",
        ).distance.item()

    assert soft(0.3) < 0.8 * soft(1) < 0.8 * 0.97 * NEAREST
    assert soft(10) == pytest.approx(NEAREST, rel=0.015)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network on scikit-learn's digits, and test samples."""
    from sklearn.datasets import load_digits  # takes seconds

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(15):
            for rows in torch.randperm(1500).split(100):
                optimizer.zero_grad()
                fn.cross_entropy(net(x[rows]), y[rows]).mean().backward()
                optimizer.step()
    return net.requires_grad_(False), x[1500:1660], y[1500:1660]


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
def test_all_class_fab_agrees_with_autoattack(digits, norm, name):
    from pyautoattack.fab_pt import FABAttack_PT

    net, x, y = digits
    attack = FABAttack_PT(net, norm=name, n_restarts=1, n_iter=100, device=x.device)
    with torch.no_grad():
        theirs = attack.attack_single_run(x, y)
        broken = (net(theirs).argmax(1) != y) & (net(x).argmax(1) == y)
    ours = bd.fab_all_classes(net, x, y, norm=norm, steps=100)
    both = broken & ours.found
    assert both.sum() >= 130
    assert (broken ^ ours.found).sum() <= 1
    ratio = ours.distance[both] / fn.lp_norm(theirs - x, norm)[both]
    assert ratio.median().item() == pytest.approx(1, abs=0.02)
    assert ratio.quantile(0.95) < 1.01
    assert ratio.mean() < 1.003


def test_the_papers_settings_come_near_a_long_search(digits):
    """20 steps from one random start, the highest rival: R within a few percent at the median."""
    net, x, y = digits
    short = fab_net(net, x, y, start="random")
    long = bd.fab_all_classes(net, x, y, norm="linf", steps=100)
    assert torch.equal(short.found, long.found)
    ratio = (short.distance / long.distance)[long.found]
    assert ratio.median() < 1.05


def filtered(**changes: Tensor) -> bool:
    """A point that passes, with something changed: 20 pixels, the first 11 at the radius."""
    delta, grad = torch.zeros(1, 20), torch.zeros(1, 20)
    delta[:, :11], grad[:, :11] = 0.03, -1.0
    delta[:, 11:], grad[:, 11:] = 0.01, 0.05
    point = {"delta": delta, "grad": grad, "phi": torch.tensor([-0.01])}
    point |= changes
    x = torch.full((1, 20), 0.5)
    keep = bd.kkt_filter(
        x.view(1, 5, 2, 2),
        (x + point["delta"]).view(1, 5, 2, 2),
        point["grad"].view(1, 5, 2, 2),
        point["phi"],
    )
    return bool(keep.item())


def with_entries(base: float, first: int, rest: float, changed: dict[int, float]) -> Tensor:
    values = torch.full((1, 20), rest)
    values[:, :first] = base
    for index, value in changed.items():
        values[0, index] = value
    return values


def test_filter_keeps_stationary_points_just_beyond_the_boundary():
    assert filtered()
    for phi, kept in [(-0.29, True), (-0.3, False), (0.0, False), (0.1, False)]:
        assert filtered(phi=torch.tensor([phi])) is kept


def test_filter_asks_for_more_than_nine_tenths_of_the_signs():
    assert filtered(grad=with_entries(-1, 11, 0.05, {0: 1}))  # 10 of 11
    assert not filtered(grad=with_entries(-1, 11, 0.05, {0: 1, 1: 1}))  # 9 of 11
    assert not filtered(grad=with_entries(-1, 11, 0.05, {0: 1, 1: 0}))  # flat is not falling
    assert not filtered(grad=with_entries(-1e-6, 11, 0.05, {}))  # nor is 0.03 times -1e-6
    half = with_entries(0.5, 11, 0.01, {})
    assert not filtered(delta=half, grad=with_entries(-2e-7, 11, 0.05, {}))  # nor -1e-7 itself
    ten = with_entries(0.03, 10, 0.01, {})
    assert not filtered(delta=ten, grad=with_entries(-1, 10, 0.05, {0: 1}))  # 9 of 10 is not more


def test_filter_counts_pixels_within_a_fifth_of_the_largest_as_active():
    assert not filtered(delta=with_entries(0.03, 11, 0.0245, {}))  # 9 pixels rise, and count
    assert filtered(delta=with_entries(0.03, 11, 0.0235, {}))
    edge = with_entries(0.5, 11, 0.4, {})  # four fifths exactly are not more
    grad = with_entries(-1, 11, 0.05, {})
    assert bd.kkt_filter(torch.zeros(1, 20), edge, grad, torch.tensor([-0.01])).all()


def test_filter_drops_points_without_a_flat_inactive_pixel():
    assert filtered(grad=with_entries(-1, 11, 0.2, {19: 0.1}))
    assert not filtered(grad=with_entries(-1, 11, 0.2, {}))
    assert not filtered(delta=with_entries(0.03, 20, 0, {}), grad=with_entries(-1, 20, 0, {}))


def test_filter_drops_points_that_did_not_move():
    assert not filtered(delta=torch.zeros(1, 20))


def test_filter_of_nothing_is_nothing():
    x = torch.zeros(0, 3)
    assert bd.kkt_filter(x, x, x, torch.zeros(0)).shape == (0,)
