"""mHuber and the moving averages of logits: numbers, limits, gradients, and what is remembered."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from ablation.numerics.functional import modified_huber
from ablation.terms import LogitPairing
from ablation.training.memory import Memories
from ablation.types import Clock
from tests.support.logits import Z_ADV, Y, Z, given

ALPHAS = st.floats(0.5, 10)


def huber(value: float, alpha: float) -> tuple[float, float]:
    """Value and derivative."""
    d = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    out = modified_huber(d, alpha)
    out.backward()
    assert d.grad is not None
    return out.item(), d.grad.item()


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [
        (1.345, [0, 0.004998, 0.123567, 0.477388, 1.657593, 1.809025, 12.417415]),
        (5.345, [0, 0.005000, 0.124909, 0.498543, 1.976773, 28.569025, 37.142905]),
    ],
)
def test_t5_4_and_t5_5(alpha, wanted):
    d = torch.tensor([0, 0.1, 0.5, 1, 2, alpha * math.pi / 2, 10], dtype=torch.float64)
    assert modified_huber(d, alpha).tolist() == pytest.approx(wanted, abs=1e-5)
    assert modified_huber(-d, alpha).tolist() == pytest.approx(wanted, abs=1e-5)


@over(ALPHAS, st.floats(-1e3, 1e3))
@settings(deadline=None)
def test_it_is_the_papers_formula_and_its_slope_is_bounded(alpha, value):
    inside = abs(value) / alpha <= math.pi / 2
    bowl = alpha**2 * (1 - math.cos(value / alpha))
    cone = alpha * abs(value) + (1 - math.pi / 2) * alpha**2
    slope = math.sin(value / alpha) if inside else math.copysign(1, value)
    found, gradient = huber(value, alpha)
    assert found == pytest.approx(bowl if inside else cone, rel=1e-9, abs=1e-9)
    assert gradient == pytest.approx(alpha * slope, rel=1e-9, abs=1e-9)


@over(ALPHAS)
@settings(deadline=None)
def test_it_is_continuous_with_its_slope_where_bowl_and_cone_meet(alpha):
    edge = alpha * math.pi / 2
    for place in (edge * (1 - 1e-9), edge, edge * (1 + 1e-9)):
        value, slope = huber(place, alpha)
        assert value == pytest.approx(alpha**2, rel=1e-7)
        assert slope == pytest.approx(alpha, rel=1e-7)


@over(ALPHAS, st.floats(1e-6, 1e-2))
@settings(deadline=None)
def test_near_zero_it_is_half_the_square_in_single_precision_too(alpha, value):
    d = torch.tensor(value, dtype=torch.float32)
    assert modified_huber(d, alpha).item() == pytest.approx(value**2 / 2, rel=1e-4)


def test_a_huge_difference_has_a_finite_gradient():
    assert huber(1e30, 1.345)[1] == 1.345


def memories(term: LogitPairing, n: int = 2, classes: int = 3) -> Memories:
    device = torch.device("cpu")
    return Memories([term], n_train=10, batch_size=n, classes=classes, device=device)


def averaged(term: LogitPairing, differences: list[float]) -> list[float]:
    """D after each step, of one position."""
    kept, zero = memories(term, 1, 1), torch.zeros(1, 1, dtype=torch.float64)
    found = []
    for step, value in enumerate(differences):
        views = given(zero, zero + value, torch.tensor([0]), Clock(0, step), kept)
        found.append(term.commit(views)["logit_difference"].item())
        kept.commit([term], views)
    return found


@pytest.mark.parametrize(
    ("weight", "wanted"), [(0.8, [0.8, -0.64, 1.472]), (0.2, [0.2, -0.04, 0.368])]
)
@pytest.mark.parametrize("index", ["position", "sample"])
def test_t5_6_the_average_of_one_position(weight, wanted, index):
    term = LogitPairing(weight=weight, index=index)
    assert averaged(term, [1, -1, 2]) == pytest.approx(wanted, abs=1e-6)


def test_t5_7_a_constant_difference():
    wanted = [3 * (1 - 0.7**t) for t in (1, 2, 3, 4)]
    assert averaged(LogitPairing(weight=0.3), [3, 3, 3, 3]) == pytest.approx(wanted, abs=1e-6)


def fed_twice(term: LogitPairing) -> list[tuple[Tensor, Tensor]]:
    """Loss [N] and adversarial gradient of 86 times its mean, at two steps of the fixture."""
    kept, found = memories(term), []
    for step in range(2):
        z_adv = Z_ADV.clone().requires_grad_()
        views = given(Z, z_adv, Y, Clock(0, step), kept)
        loss = term(views)
        (grad,) = torch.autograd.grad(86 * loss.mean(), z_adv)
        kept.commit([term], views)
        found.append((loss.detach(), grad))
    return found


@pytest.mark.parametrize(
    ("weight", "slope"), [(0.8, -10.948911), (0.2, -1.031220), (1.0, -14.249861)]
)
def test_t5_8_the_gradient_at_the_second_step(weight, slope):
    assert fed_twice(LogitPairing(weight=weight))[1][1][0, 0].item() == pytest.approx(
        slope, abs=1e-5
    )


@pytest.mark.parametrize(
    ("weight", "values"),
    [(0.8, (0.133122, 0.191562)), (0.2, (0.008333, 0.026991)), (1.0, (0.207817, 0.207817))],
)
def test_t5_9_the_loss_at_two_steps(weight, values):
    found = [loss.mean().item() for loss, _ in fed_twice(LogitPairing(weight=weight))]
    assert found == pytest.approx(values, abs=1e-6)


def test_without_an_average_nothing_is_remembered():
    term = LogitPairing(weight=1.0)
    assert term.memory == {}
    assert term.commit(given(Z, Z_ADV, Y)) == {}


def test_gradient_reaches_both_logits_of_this_step():
    z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    term = LogitPairing(weight=0.5)
    loss = term(given(z, z_adv, Y, memories=memories(term))).sum()
    clean, adversarial = torch.autograd.grad(loss, (z, z_adv))
    torch.testing.assert_close(clean, -adversarial)
    assert adversarial.abs().sum() > 0


def test_positions_meet_other_images_and_samples_themselves():
    """Batch 2 holds sample 1 at position 0: only the average per sample follows it."""
    other = {"position": 0, "sample": 1}
    for index, place in other.items():
        term = LogitPairing(weight=0.5, index=index)  # type: ignore[arg-type]
        kept = memories(term)
        views = given(Z, Z_ADV, Y, Clock(0, 0), kept)
        first = term.commit(views)["logit_difference"]
        kept.commit([term], views)
        views = given(Z[[1]], Z_ADV[[1]], Y[[1]], Clock(0, 1), kept)
        views.batch.index.fill_(1)
        before = views.memory("logit_difference")
        torch.testing.assert_close(before, first[[place]].float())


def test_a_short_batch_leaves_the_rest_as_it_was():
    term = LogitPairing(weight=0.5)
    kept = memories(term)
    kept.commit([term], given(Z, Z_ADV, Y, memories=kept))
    second = kept.state_dict()["logit_difference"][1].clone()
    kept.commit([term], given(Z[:1], Z_ADV[:1], Y[:1], memories=kept))
    assert torch.equal(kept.state_dict()["logit_difference"][1], second)


def test_the_state_is_kept_in_single_precision():
    term = LogitPairing(weight=0.5)
    assert term.memory["logit_difference"].dtype == torch.float32
