"""The fast attacks by themselves: closed forms, the reference's schedules, passes, independence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.evaluation import (
    FastApgdCe,
    FastApgdDlr,
    FastApgdT,
    FastAutoAttack,
    FastFabT,
    FastSquare,
)
from ablation.evaluation.attacks import check_points
from ablation.evaluation.autoattack import LOGGER
from ablation.evaluation.fast.apgd import Schedule, dlr, dlr_targeted
from ablation.evaluation.fast.hunt import FastAttack
from ablation.evaluation.fast.square import bump, shift, side, window
from ablation.evaluation.warnings import warnings_of
from ablation.numerics.functional import lp_norm, margin
from ablation.random import generator
from ablation.types import Norm
from tests.support.counting import Counting

F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(classes: int, pixels: int, scale: float = 1.0) -> nn.Module:
    """A random linear network, fp64."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes, dtype=F64)).requires_grad_(False)
    drawn = torch.randn(classes, pixels, generator=generator(0, "test/linear"), dtype=F64)
    net[1].weight.data, net[1].bias.data = scale * drawn, torch.zeros(classes, dtype=F64)
    return net


def curved(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A small random network with a hidden layer, fp64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = math.prod(shape)
        layers = nn.Linear(pixels, 24), nn.ReLU(), nn.Linear(24, classes)
    return nn.Sequential(nn.Flatten(), *layers).double().requires_grad_(False)


def images(n: int, shape: tuple[int, int, int], low: float = 0.0) -> Tensor:
    """Random images at least ``low`` from the box."""
    draw = torch.rand(n, *shape, generator=generator(0, "test/images"), dtype=F64)
    return low + (1 - 2 * low) * draw


class Fixed(nn.Module):
    """Logits that no image changes, yet with a gradient that is not zero."""

    def __init__(self, z: list[float]) -> None:
        super().__init__()
        self.z = torch.tensor(z, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.arange(1.0, len(self.z) + 1, dtype=F64)
        return self.z + 1e-3 * x.flatten(1).sum(1, keepdim=True) * slope


ROBUST = [5.0, 0.0, 1.0, 2.0, 3.0]
"""Class 0 stays ahead wherever the image goes."""


# Closed forms -------------------------------------------------------------------------------------


def distances(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """min_j (z_y - z_j) / ||w_y - w_j||_q of a linear network, far from the box."""
    weight, z = cast(nn.Linear, cast(nn.Sequential, net)[1]).weight, net(x)
    apart = (weight[y][:, None] - weight).abs()
    dual = apart.sum(2) if norm == "linf" else apart.square().sum(2).sqrt()
    found = (z.gather(1, y[:, None]) - z) / dual
    return cast(Tensor, found.scatter(1, y[:, None], torch.inf).amin(1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("attack", "classes", "near"),
    [
        (FastApgdCe(), 2, 0.01),
        (FastApgdDlr(), 3, 0.2),  # the reference misses as many
        (FastApgdT(), 5, 0.01),
        (FastFabT(), 2, 0.01),
        (FastFabT(), 5, 0.01),
        (FastSquare(2000), 5, 0.4),  # the last row and column keep their stripes
        (FastAutoAttack("custom", queries=20), 5, 0.01),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_linear_network_is_broken_within_margin_over_dual_norm(attack, classes, near, norm):
    length = 10 if attack.kind == "fast_square" else 4
    net, x = linear(classes, length**2), images(60, (1, length, length), low=0.35)
    y = net(x).argmax(1)
    distance = distances(net, x, y, norm)
    eps = distance.quantile(0.7).item()
    found = attack(net, x, y, eps, norm, rng())
    broken = net(found).argmax(1) != y
    check_points(found, x, eps, norm, attack.kind)
    assert not broken[distance > eps * (1 + 1e-9)].any()
    if (attack.kind, norm) != ("fast_square", "l2"):  # bumps do not add up to every direction
        assert broken[distance < eps * (1 - near)].all()
        assert broken.sum() > 10


def test_t13_2_dlr():
    z, y = torch.tensor([[3.0, 2, 1, 0]]), torch.tensor([0])
    assert dlr(z, y).item() == pytest.approx(-0.5)
    assert dlr_targeted(z, y, torch.tensor([1])).item() == pytest.approx(-0.4)
    assert dlr_targeted(z, y, torch.tensor([3])).item() == pytest.approx(-1.2)


# The reference's schedules ------------------------------------------------------------------------


def losses_to_logits(losses: Tensor) -> Tensor:
    """Two logits whose cross-entropy with label 0 is the loss."""
    return torch.stack([torch.zeros_like(losses), losses.expm1().log()], 1)


def steps_of_the_package(losses: Tensor, steps: int) -> list[float]:
    """Step lengths that APGD of the package takes when it meets these losses."""
    from pyautoattack.autopgd_base import APGDAttack

    left = iter(losses_to_logits(losses))

    def model(x: Tensor) -> Tensor:
        return cast(Tensor, next(left)[None] + 0 * x.flatten(1).sum(1, keepdim=True))

    class Still(APGDAttack):  # type: ignore[misc]
        """Stays at the image: a step of length s to a point that is then not moved to."""

        calls, taken = 0, []

        def normalize(self, x: Tensor) -> Tensor:
            # Once for the start; in a step for the gradient, then twice for where it leads.
            self.calls += 1
            if self.calls % 3 == 0:
                self.taken.append(x.item())
            return torch.full_like(x, float(self.calls % 3 == 2))

    attack = Still(model, n_iter=steps, norm="L2", eps=1.0, device=torch.device("cpu"))
    x = torch.zeros((1, 1, 1, 1))
    attack.init_hyperparam(x)
    attack.attack_single_run(x, torch.tensor([0]), x_init=x)
    return attack.taken


@pytest.mark.parametrize("steps", [100, 20, 3])
@pytest.mark.parametrize("seed", range(6))
def test_steps_are_halved_where_the_package_halves_them(seed, steps):
    g = generator(seed, "test/losses")
    noise = torch.rand(steps + 1, generator=g)
    rise = torch.linspace(0, [0.0, 0.5, 2.0, 5.0, 20.0, 60.0][seed], steps + 1)
    losses = 1 + noise + rise
    if seed == 1:
        losses[steps // 3 :] = losses[steps // 3]  # stuck: neither better nor worse
    wanted = steps_of_the_package(losses, steps)
    assert len(wanted) == steps
    as_seen = nn.functional.cross_entropy(
        losses_to_logits(losses), torch.zeros(steps + 1).long(), reduction="none"
    )
    schedule, found = Schedule.begin(as_seen[:1], 2.0, steps), []
    for loss in as_seen[1:]:
        found.append(schedule.step.item())
        schedule.observe(loss[None])
    assert found == wanted
    assert steps < 100 or seed == 5 or len(set(found)) > 2


def test_the_schedule_goes_back_and_keeps_the_best_with_every_row_on_its_own():
    up, flat = torch.linspace(1, 2, 101), torch.full((101,), 1.0)
    both = Schedule.begin(torch.tensor([1.0, 1.0]), 0.2, 100)
    returns = []
    for i in range(1, 101):
        better, back = both.observe(torch.stack([up[i], flat[i]]))
        assert better.tolist() == [True, False]
        if back is not None:
            returns.append((i, back.tolist()))
    at = [22, 41, 57, 70, 80, 87, 93, 99]
    assert returns == [(i, [False, True]) for i in at]
    assert both.step.tolist() == pytest.approx([0.2, 0.2 / 2**8])
    assert both.keep(torch.tensor([False, True])).step.tolist() == pytest.approx([0.2 / 2**8])


@pytest.mark.parametrize("size", [4, 12, 28, 32, 64])
def test_sides_of_squares_are_the_packages(size):
    from pyautoattack.square import SquareAttack

    theirs = SquareAttack(None, eps=0.1, p_init=0.8, resc_schedule=False)
    for query in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1001, 2001, 4000, 4001, 6001, 8001):
        wanted = max(round(math.sqrt(theirs.p_selection(query) * size**2)), 1)
        assert side(query, size, size, "linf") == min(wanted, size)
        odd = max(wanted, 3)
        assert side(query, size, size, "l2") == min(odd + (odd % 2 == 0), size)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 9, 12])
def test_bumps_are_the_packages(length):
    from pyautoattack.square import SquareAttack

    theirs = SquareAttack(None, norm="L2", eps=0.1, device=torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        found = [theirs.eta(length) for _ in range(12)]
    ours = bump(length)
    wanted = [ours, ours.T]
    assert all(any(torch.allclose(shape, w, atol=1e-6) for w in wanted) for shape in found)


def test_a_window_is_filled_with_what_another_loses_and_eps_leaves_over():
    delta = 0.01 * torch.randn(2, 3, 64, generator=rng(), dtype=F64)
    to, off = (window(torch.tensor(at[0]), torch.tensor(at[1]), 3, 8) for at in
               (([0, 2], [1, 3]), ([4, 3], [4, 4])))  # fmt: skip
    assert to[0].tolist() == [1, 2, 3, 9, 10, 11, 17, 18, 19]
    fresh = bump(3).double().flatten().expand(2, 3, 9)
    moved = shift(delta, to, off, fresh, 0.5)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.tensor([0.5, 0.5], dtype=F64))
    only_off = sorted(set(off[0].tolist()) - set(to[0].tolist()))
    assert not moved[0][:, only_off].any()
    touched = {*off[1].tolist(), *to[1].tolist()}
    rest = [i for i in range(64) if i not in touched]
    assert torch.equal(moved[1][:, rest], delta[1][:, rest])
    direction = fresh + delta.gather(2, to[:, None].expand(2, 3, 9)) / (
        delta.gather(2, to[:, None].expand(2, 3, 9)).norm(dim=2, keepdim=True)
    )
    filled = moved.gather(2, to[:, None].expand(2, 3, 9))
    torch.testing.assert_close(
        nn.functional.normalize(filled, dim=2), nn.functional.normalize(direction, dim=2)
    )


# Passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (FastApgdCe(20), 21, 20),
        (FastApgdCe(20, restarts=2), 42, 40),
        (FastApgdDlr(20), 21, 20),
        (FastApgdT(20), 1 + 4 * 21, 4 * 20),
        (FastApgdT(20, 2), 1 + 2 * 21, 2 * 20),
        (FastFabT(20), 1 + 4 * 21, 4 * 20),
        (FastSquare(130), 131, 0),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_robust_example_costs_no_pass_more_than_its_search(attack, forwards, backwards, norm):
    net = Counting(Fixed(ROBUST))
    attack(net, images(3, (1, 5, 5)), torch.zeros(3).long(), 0.1, norm, rng())
    assert (net.forwards, net.images) == (forwards, 3 * forwards)
    assert net.backwards == backwards


@pytest.mark.parametrize(
    ("attack", "most", "norm"),
    [
        *((FastApgdCe(), 4, norm) for norm in ("linf", "l2")),
        *((FastApgdDlr(), 4, norm) for norm in ("linf", "l2")),
        *((FastApgdT(), 5, norm) for norm in ("linf", "l2")),
        *((FastFabT(), 4, norm) for norm in ("linf", "l2")),
        (FastSquare(), 60, "linf"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_broken_example_leaves_at_once(attack, most, norm):
    shape = (1, 4, 4)
    net = Counting(linear(5, 16))
    x = images(30, shape, low=0.35)
    y = net.net(x).argmax(1)
    eps = 3 * distances(net.net, x, y, norm).amax().item()
    found = attack(net, x, y, eps, norm, rng())
    assert (net.net(found).argmax(1) != y).all()
    assert net.images <= most * len(x)


def test_only_what_is_left_is_passed_through_the_network_of_later_targets():
    shape = (1, 4, 4)
    net, x = Counting(linear(5, 16)), images(40, shape, low=0.35)
    y = net.net(x).argmax(1)
    eps = distances(net.net, x, y, "linf").median().item()
    for attack in (FastApgdT(30), FastFabT(30)):
        net.images = 0
        found = attack(net, x, y, eps, "linf", rng())
        robust = int((net.net(found).argmax(1) == y).sum())
        whole = 1 + 4 * 31
        assert robust * whole <= net.images < robust * whole + (len(x) - robust) * whole / 2


# What another network may not do ------------------------------------------------------------------


def hunted(attack: FastAttack, predict, searched, x, y, norm: Norm = "linf") -> Tensor:
    return attack.hunt(predict, searched, x, y, 0.1, norm, range(len(x)))


@pytest.mark.parametrize(
    "attack",
    [FastApgdCe(10), FastApgdDlr(10), FastApgdT(10), FastFabT(10), FastSquare(30)],
    ids=lambda attack: attack.kind,
)
def test_a_point_that_the_network_does_not_confirm_is_none_and_the_search_goes_on(attack):
    x, y = images(4, (1, 5, 5)), torch.zeros(4).long()
    honest, liar = Counting(Fixed(ROBUST)), Counting(Fixed(ROBUST[::-1]))
    found = hunted(attack, honest, liar, x, y)
    assert torch.equal(found, x)
    alone = Counting(Fixed(ROBUST))
    attack(alone, x, y, 0.1, "linf", rng())
    assert liar.forwards == alone.forwards  # to its end
    assert liar.images == 4 * liar.forwards
    assert honest.backwards == 0
    assert honest.forwards >= 4  # asked again and again


def test_a_point_wrong_by_a_hair_is_kept_but_a_better_one_is_sought():
    """A verdict that rounding could turn is not left to it."""
    x, y = images(4, (1, 5, 5)), torch.zeros(4).long()
    net = Counting(Fixed([5.0, 5.0, 0.0, 1.0]))  # class 1 is ahead by 1e-3 of the pixels' sum
    found = FastApgdCe(10)(net, x * 1e-4, y, 1e-4, "linf", rng())
    assert (net.net(found).argmax(1) != y).all()
    assert net.images == 4 * 11


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_search_in_bf16_breaks_nothing_that_fp32_classifies_correctly(norm):
    shape = (3, 6, 6)
    net, x = curved(6, shape).float(), images(80, shape).float()
    y = net(x).argmax(1)
    eps = 0.02 if norm == "linf" else 0.12
    dtypes = set()

    def seen(point: Tensor) -> Tensor:
        z = net(point)
        dtypes.add(z.dtype)
        return cast(Tensor, z)

    for exact, coarse in (
        (FastApgdCe(30), FastApgdCe(30, search="bf16")),
        (FastApgdT(30), FastApgdT(30, search="bf16")),
        (FastFabT(30), FastFabT(30, search="bf16")),
        (FastSquare(200), FastSquare(200, search="bf16")),
    ):
        found = coarse(seen, x, y, eps, norm, rng())
        moved = (found != x).flatten(1).any(1)
        broken = net(found).argmax(1) != y
        assert torch.equal(moved, broken)
        check_points(found, x, eps, norm, coarse.kind)
        wanted = net(exact(net, x, y, eps, norm, rng())).argmax(1) != y
        assert (broken != wanted).sum() <= 4
        assert 5 < broken.sum() < 75
    assert dtypes == {torch.float32, torch.bfloat16}


# Independence -------------------------------------------------------------------------------------

SHORT: tuple[FastAttack, ...] = (
    FastApgdCe(12, restarts=2),
    FastApgdT(12),
    FastFabT(8),
    FastSquare(120),
)


@settings(max_examples=12)
@given(
    rows=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
    attack=st.sampled_from(SHORT),
    norm=st.sampled_from(["linf", "l2"]),
)
def test_an_examples_point_depends_on_no_other_example(rows, attack, norm):
    shape = (2, 5, 4)
    net, x = curved(5, shape), images(12, shape)
    y = net(x).argmax(1)
    eps = 0.05 if norm == "linf" else 0.2
    whole = attack.hunt(net, net, x, y, eps, norm, range(12))
    part = attack.hunt(net, net, x[rows], y[rows], eps, norm, rows)
    torch.testing.assert_close(part, whole[rows], atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", SHORT, ids=lambda attack: attack.kind)
def test_points_follow_from_the_seed_and_the_global_generator_stays(attack, norm):
    shape = (1, 6, 6)
    net, x = curved(5, shape), images(20, shape)
    y = net(x).argmax(1)
    state = torch.get_rng_state()
    eps = 0.05 if norm == "linf" else 0.2
    first, again, other = (attack(net, x, y, eps, norm, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert attack.kind == "fast_fab_t" or not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, images(20, shape))


# Shapes, classes, settings ------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 9, 5), (2, 3, 14), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_any_image_and_number_of_classes(shape, classes, norm):
    whole = FastAutoAttack("custom", n_iter=5, queries=15)
    net = curved(classes, shape)
    for n in (1, 6):
        x = images(n, shape)
        y = net(x).argmax(1)
        with warnings_of(LOGGER) as messages:
            found = whole(net, x, y, 0.3, norm, rng())
        check_points(found, x, 0.3, norm, "aa")
        assert len(messages) == (classes < 4)
        moved = lp_norm(found - x, norm) > 0
        assert torch.equal(moved, margin(net(found), y) < 0)


def test_fallbacks_and_refusals_are_the_references():
    whole = FastAutoAttack(search="bf16")
    assert list(whole.parts(10)) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert list(whole.parts(3)) == ["apgd_ce", "apgd_dlr", "fab_t", "square"]
    assert list(whole.parts(2)) == ["apgd_ce", "fab_t", "square"]
    assert {getattr(part, "search", None) for part in whole.parts(10).values()} == {"bf16"}
    assert {part.n_iter for part in whole.parts(10).values() if hasattr(part, "n_iter")} == {100}
    with pytest.raises(InputError, match="needs 4 classes, the model has 3"):
        FastApgdT().describe(0.1, 3)
    with pytest.raises(InputError, match="needs 3 classes, the model has 2"):
        FastApgdDlr().describe(0.1, 2)
    with pytest.raises(ValueError, match="queries=7: the standard version has 5000"):
        FastAutoAttack(queries=7)
    for build in (FastApgdCe, FastApgdDlr, FastApgdT, FastFabT):
        with pytest.raises(ValueError, match="n_iter=0 must be positive"):
            build(0)
    with pytest.raises(ValueError, match="queries=0 must be positive"):
        FastSquare(0)


def test_a_start_without_gradient_of_the_dlr_loss_is_logged():
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(ROBUST, dtype=F64) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = images(3, (1, 4, 4)), torch.zeros(3).long()
    attacks: tuple[Callable[..., Tensor], ...] = (FastApgdDlr(2), FastApgdT(2, 1))
    for attack in attacks:
        with warnings_of(LOGGER) as messages:
            attack(Steps(), x, y, 0.1, "linf", rng())
        assert messages == [
            "3 of 3 starts have a zero gradient of the DLR loss: it may not move them"
        ]
    with warnings_of(LOGGER) as messages:
        FastApgdDlr(2)(Fixed(ROBUST), x, y, 0.1, "linf", rng())
        FastApgdCe(2)(Steps(), x, y, 0.1, "linf", rng())
    assert messages == []
