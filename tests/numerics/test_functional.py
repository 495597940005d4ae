"""The numeric cases of the specification (F1, T1-T3, T13.1) and properties, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.numerics import functional as fn
from ablation.random import generator, key
from tests.support.logits import Z_ADV, Y, Z


def close(actual: torch.Tensor, expected: list | float, atol: float = 1e-6) -> None:
    wanted = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, wanted, atol=atol, rtol=0)


def test_f1_losses():
    close(fn.cross_entropy(Z_ADV, Y), [0.407606, 1.180270])
    close(fn.cross_entropy(Z_ADV, Y).mean(), 0.793938)  # T1.3
    close(fn.cross_entropy(Z, Y), [0.169846, 0.407606])
    close(fn.boosted_cross_entropy(Z_ADV, Y), [0.688284, 1.886462])
    close(fn.boosted_cross_entropy(Z_ADV, Y, "official").mean(), 1.287206)
    close(fn.kl_divergence(Z, Z_ADV), [0.081555, 0.270525])
    close(fn.kl_divergence(Z_ADV, Z), [0.096999, 0.266542])
    close(fn.kl_from(F.softmax(Z, 1), Z_ADV), [0.081555, 0.270525])
    close(fn.margin(F.softmax(Z_ADV, 1), Y), [0.420512, -0.199285])


def test_t13_1_cw_loss():
    close(fn.cw_loss(Z_ADV, Y), [-51.0, -49.5])
    z = torch.tensor([[0.0, 60.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = fn.cw_loss(z, torch.tensor([0]))
    (grad,) = torch.autograd.grad(loss.sum(), z)
    assert loss.item() == 0
    assert grad.abs().sum() == 0


def test_t2_2_kl_gradient_reaches_both_arguments():
    z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    fn.kl_divergence(z, z_adv).mean().backward()
    assert z_adv.grad is not None
    assert z.grad is not None
    close(z_adv.grad[0], [-0.089277, 0.065267, 0.024010])
    close(z.grad[0], [0.065903, -0.048179, -0.017724])


def test_t2_3_kl_gradient_vanishes_at_the_clean_point():
    z_adv = Z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(fn.kl_divergence(Z, z_adv).sum(), z_adv)
    assert grad.abs().max() < 1e-12


def test_t3_3_boosted_cross_entropy_picks_the_rival():
    assert fn.without_true(Z_ADV, Y).argmax(1).tolist() == [1, 1]


def test_boosted_cross_entropy_is_finite_where_the_rival_is_certain():
    z = torch.tensor([[-200.0, 200.0, 0.0]])
    assert fn.boosted_cross_entropy(z, torch.tensor([0])).isfinite().all()


def test_the_official_constants_bound_the_boost_of_a_certain_rival():
    z = torch.tensor([[-40.0, 40.0]], dtype=torch.float64)  # p_rival is 1 in float64
    got = fn.boosted_cross_entropy(z, torch.tensor([0]), "official")
    close(got, [80 - math.log(1.0001 - 1 + 1e-12)], atol=1e-10)


def test_gaussian_noise_has_the_standard_deviation_asked_for():
    noise = fn.gaussian_noise(torch.zeros(20000, 1), 0.01, generator(0, "t"))
    assert noise.std().item() == pytest.approx(0.01, rel=0.03)
    assert abs(noise.mean().item()) < 0.001


def linear_objective(x: torch.Tensor) -> torch.Tensor:
    """T1.1: logits = x W^T with W = [[1, -1], [-1, 1]], y = 0."""
    w = torch.tensor([[1.0, -1], [-1, 1]], dtype=x.dtype)
    return fn.cross_entropy(x @ w.T, torch.zeros(len(x), dtype=torch.long))


@pytest.mark.parametrize(
    ("eps", "step", "steps", "expected"),
    [
        (8, 2, 1, [[0.492157, 0.997843], [0.002157, 0.407843]]),
        (8, 2, 10, [[0.468627, 1.0], [0.0, 0.431373]]),
        (4, 1, 10, [[0.484314, 1.0], [0.0, 0.415686]]),  # T1.2
    ],
)
def test_t1_1_pgd_on_a_linear_model(eps, step, steps, expected):
    x = torch.tensor([[0.5, 0.99], [0.01, 0.4]], dtype=torch.float64)
    radius = torch.full((2,), eps / 255, dtype=torch.float64)
    found = fn.pgd(linear_objective, x, x, radius, radius * step / eps, steps, "linf")
    close(found, expected)


def test_pgd_without_steps_returns_the_start():
    x = torch.full((2, 3), 0.5)
    start = x + 0.2
    assert torch.equal(fn.pgd(lambda p: p.sum(1), x, start, x[:, 0], x[:, 0], 0, "linf"), start)


def test_pgd_projects_its_start_only_where_there_are_no_steps():
    """TRADES and MART take the first gradient at the noisy point itself."""
    x, seen = torch.full((1, 3), 0.75), []
    radius = torch.full((1,), 0.125)

    def objective(point: torch.Tensor) -> torch.Tensor:
        seen.append(point.detach())
        return point.sum(1)

    start = x + 0.5
    assert torch.equal(fn.pgd(objective, x, start, radius, radius, 0, "linf"), x + 0.125)
    found = fn.pgd(objective, x, start, radius, radius, 2, "linf")
    assert torch.equal(found, x + 0.125)
    assert torch.equal(torch.cat(seen), torch.cat([start, x + 0.125]))


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 2),
    seed=st.integers(0, 1000),
    scale=st.floats(0, 5),
)
def test_projection_is_in_the_ball_in_the_box_and_idempotent(norm, eps, seed, scale):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 3, 5, generator=g, dtype=torch.float64)
    moved = x + scale * torch.randn(x.shape, generator=g, dtype=torch.float64)
    radius = torch.full((4,), eps, dtype=torch.float64)
    once = fn.project(moved, x, radius, norm)
    assert (fn.lp_norm(once - x, norm) <= eps + 1e-12).all()
    assert ((once >= 0) & (once <= 1)).all()
    torch.testing.assert_close(fn.project(once, x, radius, norm), once, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_uniform_ball_stays_inside_and_fills_the_ball(norm):
    x = torch.zeros(4000, 1, 1, 2, dtype=torch.float64)
    eps = torch.full((4000,), 0.5, dtype=torch.float64)
    draw = fn.uniform_ball(x, eps, norm, generator(0, "t"))
    assert draw.mean().abs() < 0.02
    r = fn.lp_norm(draw, norm) / 0.5
    assert r.max() <= 1
    # In two dimensions the radius of a uniform draw has P(r < t) = t^2 in either norm.
    assert abs((r < 0.5).double().mean() - 0.25) < 0.03


def test_steepest_direction_has_unit_norm_and_survives_zero_gradients():
    g = torch.randn(3, 2, 2, dtype=torch.float64)
    g[1] = 0
    assert fn.lp_norm(fn.steepest(g, "l2"), "l2").tolist() == pytest.approx([1, 0, 1])
    assert fn.lp_norm(fn.steepest(g, "linf"), "linf").tolist() == [1, 0, 1]


def test_random_streams_are_independent_of_each_other_and_of_history():
    a = torch.rand(3, generator=generator(0, "a", 1))
    torch.rand(100)
    assert torch.equal(a, torch.rand(3, generator=generator(0, "a", 1)))
    others = [key(0, "a", 2), key(0, "b", 1), key(1, "a", 1)]
    assert len({key(0, "a", 1), *others}) == 4
    assert key(0, "craft/adv", 3) == 943766767549578159  # pairs arms across machines
