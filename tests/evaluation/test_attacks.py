"""Single attacks: the specification's numeric cases (T1, T13, the L3 trap) and their contracts."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ablation.config.parser import Parser
from ablation.errors import InputError
from ablation.evaluation import (
    ApgdCe,
    ApgdDlr,
    ApgdT,
    Attack,
    AutoAttack,
    FabT,
    Fgsm,
    Measure,
    Pgd,
    Spsa,
    Square,
    attacks,
    autoattack,
)
from ablation.numerics.functional import lp_norm, margin
from ablation.random import generator
from ablation.types import Norm

CONF = Path(__file__).parents[2] / "conf" / "evaluation"
F64 = torch.float64


class Linear(nn.Module):
    """logits = flatten(x) W^T + b, counting its forward passes and the images in them."""

    def __init__(self, weight, bias=0.0) -> None:
        super().__init__()
        self.weight = torch.as_tensor(weight, dtype=F64)
        self.bias = torch.as_tensor(bias, dtype=F64)
        self.passes = self.images = 0

    def forward(self, x):
        self.passes += 1
        self.images += len(x)
        return x.flatten(1).to(F64) @ self.weight.T + self.bias


TWO = Linear([[1.0, -1], [-1, 1]])
"""T1.1: two classes on two pixels."""


def l3(fourth: bool = False) -> Linear:
    """Three linear classes on four pixels; a fourth never wins but makes DLR-T possible."""
    weight = [[1.0, -2, 0.5, 0.3], [-0.5, 1, 0.25, -0.6], [0.2, 0.4, -1, 0.8]]
    bias = [0.1, -0.2, 0.05]
    return Linear([*weight, [0.0] * 4], [*bias, -10.0]) if fourth else Linear(weight, bias)


X0 = torch.tensor([[[[0.6, 0.3], [0.5, 0.4]]]], dtype=F64)
Y0 = torch.tensor([0])
"""L3's first point; its L-inf margin is .0692308."""


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def close(actual, expected, atol=1e-6) -> None:
    wanted = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, wanted, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("eps", "steps", "expected"),
    [
        (8, 1, [[0.492157, 0.997843], [0.002157, 0.407843]]),
        (8, 10, [[0.468627, 1.0], [0.0, 0.431373]]),
        (4, 10, [[0.484314, 1.0], [0.0, 0.415686]]),  # T1.2
    ],
)
def test_t1_1_pgd_reaches_the_corner_of_ball_and_box(eps, steps, expected):
    x = torch.tensor([[0.5, 0.99], [0.01, 0.4]], dtype=F64).view(2, 1, 1, 2)
    attack = Pgd(steps, step_size=1 / 4, start="clean")
    found = attack(TWO, x, torch.zeros(2, dtype=torch.long), eps / 255, "linf", rng())
    close(found.flatten(1), expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_one_full_step_on_cross_entropy(norm):
    x = X0.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(l3()(x), Y0), x)
    step = grad.sign() if norm == "linf" else grad / grad.norm()
    close(Fgsm()(l3(), X0, Y0, 0.031, norm, rng()), X0 + 0.031 * step)


@pytest.mark.parametrize(
    ("eps", "phi"), [(0.08, 0.024), (0.1, -0.06), (0.031, 0.2298)], ids=["trap", "wide", "narrow"]
)
def test_l3_where_cross_entropy_misleads_pgd(eps, phi):
    attack = Pgd(100, step_size=1 / 4, start="clean")
    found = attack(l3(), X0, Y0, eps, "linf", rng())
    close(margin(l3()(found), Y0), [phi], atol=1e-4)
    # The direction (-, +, -, -) is constant, so one step is as good as a hundred.
    close(margin(l3()(Fgsm()(l3(), X0, Y0, eps, "linf", rng())), Y0), [phi], atol=1e-4)


@pytest.mark.parametrize(
    ("attack", "fourth"),
    [
        (FabT(n_iter=20), False),
        (ApgdDlr(n_iter=20), False),
        (AutoAttack("custom", n_iter=20, queries=10), False),
        (Pgd(20, 0.25, "clean", loss="cw"), False),
        (ApgdT(n_iter=20), True),
        (FabT(n_iter=20), True),
        (Square(queries=200), True),
        (Spsa(samples=64, iterations=40), True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bool) else None,
)
def test_l3_is_broken_by_attacks_on_the_margin(attack, fourth):
    model = l3(fourth)
    found = attack(model, X0, Y0, 0.08, "linf", rng())
    assert margin(model(found), Y0).item() < 0
    assert lp_norm(found - X0, "linf").item() <= 0.08 + 1e-6


def test_fab_finds_l3s_margin():
    found = FabT(n_iter=20)(l3(), X0, Y0, 0.08, "linf", rng())
    assert lp_norm(found - X0, "linf").item() == pytest.approx(0.0692308, rel=0.015)


def test_t13_1_the_cw_loss_stops_pulling_once_the_margin_is_minus_50():
    model = Linear([[1.0, 0], [-1.0, 0]], [0.0, 60.0])
    x = torch.full((1, 1, 1, 2), 0.5, dtype=F64)
    found = Pgd(5, 0.25, "clean", loss="cw")(model, x, torch.tensor([0]), 0.1, "linf", rng())
    assert torch.equal(found, x)


def test_t13_2_dlr_as_the_package_has_it():
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    z, y = torch.tensor([[3.0, 2, 1, 0]]), torch.tensor([0])
    assert APGDAttack(None, eps=0.1).dlr_loss(z, y).item() == pytest.approx(-0.5)
    targeted = APGDAttack_targeted(None, eps=0.1)
    for target, value in ((1, -0.4), (3, -1.2)):
        targeted.y_target = torch.tensor([target])
        assert targeted.dlr_loss_targeted(z, y).item() == pytest.approx(value)


def test_t13_3_spsa_gradient_of_a_linear_margin():
    model = Linear([[2.0, 1], [0, 0]])  # margin (2, 1) . x
    x, y = torch.full((3, 1, 1, 2), 0.5, dtype=F64), torch.zeros(3, dtype=torch.long)
    signs = torch.tensor([[1.0, -1], [1, 1]], dtype=F64).view(2, 1, 1, 2)
    spsa = Spsa(samples=2, iterations=1)
    close(spsa.gradient(model, x, y, signs[:1]).flatten(1), [[1.0, -1]] * 3)
    close(spsa.gradient(model, x, y, signs[1:]).flatten(1), [[3.0, 3]] * 3)
    close(spsa.gradient(model, x, y, signs).flatten(1), [[2.0, 1]] * 3)


@pytest.mark.parametrize(("steps", "length"), [(1, 0.01), (2, 0.02), (3, 0.03), (4, 8 / 255)])
def test_t13_4_adam_under_a_constant_sign(steps, length):
    model = Linear([[2.0], [0]])  # one pixel: every direction gives the exact slope 2
    x, y = torch.full((1, 1, 1, 1), 0.5, dtype=F64), torch.tensor([0])
    found = Spsa(samples=4, iterations=steps)(model, x, y, 8 / 255, "linf", rng())
    close((found - x).flatten(), [-length], atol=1e-8)


def test_spsa_adam_is_torchs():
    model, x = l3(), X0
    spsa = Spsa(samples=3, iterations=4)
    found = spsa(model, x, Y0, 1.0, "linf", rng())
    shared, moved = rng(), x.clone().requires_grad_()
    adam = torch.optim.Adam([moved], lr=0.01)
    for _ in range(4):
        signs = 2 * torch.randint(0, 2, (3, 1, 2, 2), generator=shared, dtype=torch.int8) - 1
        moved.grad = spsa.gradient(model, moved.detach(), Y0, signs.to(F64))
        adam.step()
    close(found, moved.detach(), atol=1e-12)


def test_spsa_depends_neither_on_the_chunk_nor_on_the_neighbours():
    x = torch.rand(5, 2, 1, 2, generator=generator(0, "x"), dtype=F64)
    y = l3()(x).argmax(1)
    whole = Spsa(7, 3, chunk=1000)(l3(), x, y, 0.05, "linf", rng())
    small = Spsa(7, 3, chunk=1)(l3(), x, y, 0.05, "linf", rng())
    alone = Spsa(7, 3)(l3(), x[2:3], y[2:3], 0.05, "linf", rng())
    close(small, whole, atol=1e-12)
    close(alone, whole[2:3], atol=1e-12)


@pytest.mark.parametrize(
    ("chunk", "sizes"),
    [
        (1000, [2 * 7 * 4]),  # all directions at once: two probes of four images each
        (24, [24, 24, 8]),  # three directions fill a pass
        (31, [24, 24, 8]),
        (8, [8] * 7),
        (1, [8] * 7),  # never less than one direction
    ],
)
def test_no_pass_of_spsa_is_larger_than_its_chunk(chunk, sizes):
    seen = []

    def predict(x):
        seen.append(len(x))
        return l3()(x)

    x = torch.rand(4, 1, 2, 2, generator=generator(0, "x"), dtype=F64)
    Spsa(7, 1, chunk=chunk)(predict, x, torch.zeros(4, dtype=torch.long), 0.05, "linf", rng())
    assert seen == sizes


@pytest.mark.parametrize(
    ("attack", "passes", "images"),
    [(Fgsm(), 1, 4), (Pgd(7, 0.25), 7, 28), (Spsa(6, 3, chunk=24), 6, 2 * 6 * 3 * 4)],
)
def test_no_pass_more_than_needed(attack, passes, images):
    x = torch.rand(4, 1, 2, 2, generator=generator(0, "x"), dtype=F64)
    model = l3()
    attack(model, x, torch.zeros(4, dtype=torch.long), 0.01, "linf", rng())
    assert (model.passes, model.images) == (passes, images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_a_given_start_is_the_start(norm, start):
    x = torch.rand(3, 1, 2, 2, generator=generator(0, "x"), dtype=F64)
    attack = Pgd(1, 0.0, start)
    offsets = attack.offsets(x, 0.2, norm, rng())
    assert offsets is not None
    assert offsets.shape == (1, *x.shape)
    assert (lp_norm(offsets[0], norm) <= 0.2).all()
    found = attack(l3(), x, torch.zeros(3, dtype=torch.long), 0.2, norm, rng(), offsets)
    close(found, (x + offsets[0]).clamp(0, 1))
    assert torch.equal(found, attack(l3(), x, Y0.expand(3), 0.2, norm, rng()))


def test_restarts_continue_only_where_needed():
    """Two starts, steps of length 0: the second one is tried on what the first left."""
    model = Linear([[1.0], [-1.0]], [-0.5, 0.5])  # class 0 iff x > .5
    x, y = torch.tensor([0.55, 0.55, 0.9], dtype=F64).view(3, 1, 1, 1), torch.zeros(3).long()
    attack = Pgd(1, 0.0, "uniform", restarts=2)
    offsets = torch.tensor([[-0.1, 0.1, -0.1], [0.1, -0.1, 0.1]], dtype=F64).view(2, 3, 1, 1, 1)
    found = attack(model, x, y, 0.1, "linf", rng(), offsets).flatten()
    close(found, [0.45, 0.45, 1.0])
    assert model.images == 3 + 3 + 2  # a step, a look, a step on two


def test_starts_are_of_the_law_that_is_asked_for():
    like = torch.full((500, 3, 2, 2), 0.5, dtype=F64)
    uniform = Pgd(1, 0.25, "uniform", restarts=2).offsets(like, 0.2, "linf", rng())
    gaussian = Pgd(1, 0.25, "gaussian", start_std=0.01).offsets(like, 0.2, "linf", rng())
    assert uniform is not None
    assert gaussian is not None
    assert uniform.shape == (2, *like.shape)
    assert uniform.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.05)
    assert gaussian.std().item() == pytest.approx(0.01, rel=0.05)
    assert Pgd(1, 0.25, "clean").offsets(like, 0.2, "linf", rng()) is None


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_a_uniform_start_alone_is_clamped_before_the_first_step(start):
    seen = []

    def predict(x):
        seen.append(x.detach())
        return TWO(x)

    x = torch.tensor([0.95, 0.05], dtype=F64).view(1, 1, 1, 2)
    offsets = torch.tensor([0.1, -0.1], dtype=F64).view(1, 1, 1, 1, 2)
    Pgd(1, 0.25, start)(predict, x, Y0, 0.2, "linf", rng(), offsets)
    close(seen[0].flatten(), [1.0, 0.0] if start == "uniform" else [1.05, -0.05])


def test_restarts_end_once_every_image_is_broken():
    model = Linear([[1.0], [-1.0]], [-0.5, 0.5])  # class 0 iff x > .5
    x, offsets = torch.full((1, 1, 1, 1), 0.55, dtype=F64), torch.full((3, 1, 1, 1, 1), -0.1)
    Pgd(1, 0.0, "uniform", restarts=3)(model, x, Y0, 0.1, "linf", rng(), offsets.to(F64))
    assert model.passes == 2  # a step and a look


def test_attacks_state_what_checks_and_records_read():
    fgsm = {"steps": 1, "step_size": 0.1, "start": "clean", "restarts": 1, "loss": "ce"}
    assert Fgsm().describe(0.1, 10) == fgsm
    pgd = {"steps": 7, "step_size": pytest.approx(0.025), "restarts": 2, "loss": "cw"}
    uniform = Pgd(7, 0.25, "uniform", 2, "cw").describe(0.1, 10)
    gaussian = Pgd(7, 0.25, "gaussian", 2, "cw", start_std=0.01).describe(0.1, 10)
    assert uniform == pgd | {"start": "uniform"}
    assert gaussian == pgd | {"start": "gaussian", "start_std": 0.01}
    spsa = {"samples": 6, "iterations": 5, "queries": 60, "delta": 0.01, "lr": 0.1}
    start = {"start": "clean", "restarts": 1, "loss": "margin"}
    assert Spsa(6, 5, delta=0.01, lr=0.1).describe(0.1, 10) == spsa | start


def test_the_smallest_radius_and_subset_are_accepted():
    assert Fgsm(eps=0.0, n=1) == Fgsm(eps=0, n=1)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([0.45, -0.01], r"pixels in \[-0.01, 0.45\], outside \[0, 1\]"),
        ([0.45, 1.01], r"pixels in \[0.45, 1.01\], outside \[0, 1\]"),
        ([0.45, float("nan")], "outside"),
        ([0.45, 0.2], "linf distance 0.3 exceeds eps=0.1"),
        ([0.45], "shape"),
    ],
)
def test_points_outside_ball_or_pixel_range_are_refused(points, message):
    x = torch.full((1, 1, 1, 2), 0.5, dtype=F64)
    found = torch.tensor(points, dtype=F64).view(1, 1, 1, -1)
    with pytest.raises(attacks.AttackError, match=f"mine: .*{message}"):
        attacks.check_points(found, x, 0.1, "linf", "mine")
    attacks.check_points(x.new_tensor([0.4, 0.6]).view_as(x), x, 0.1, "linf", "mine")


@pytest.mark.parametrize(("distance", "refused"), [(0.1000015, False), (0.1000025, True)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_may_leave_the_ball_by_rounding_alone(norm, distance, refused):
    """The distance is of the farthest image, over all its channels and pixels."""
    x = torch.full((3, 2, 1, 2), 0.5, dtype=F64)
    away = x.new_ones(x.shape) * (distance if norm == "linf" else distance / 2)
    away[0] /= 2
    with pytest.raises(attacks.AttackError) if refused else nullcontext():
        attacks.check_points(x - away, x, 0.1, norm, "mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pgd(0, 0.25), "steps=0 must be positive"),
        (lambda: Pgd(5, -1.0), "step_size=-1"),
        (lambda: Pgd(5, 0.25, "clean", restarts=2), "set start: uniform"),
        (lambda: Fgsm(eps=-0.1), "eps=-0.1: a radius is not negative"),
        (lambda: Spsa(0, 5), "samples=0"),
        (lambda: Square(n=0), "n=0"),
        (lambda: AutoAttack(queries=100), "queries=100: the standard version has 5000"),
        (lambda: AutoAttack(n_iter=9, queries=100), "n_iter=9: the standard version has 100"),
        (lambda: ApgdT(targets=0), "targets=0"),
    ],
)
def test_wrong_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def standard_package(attack: Attack, norm: Norm):
    """The same attack inside pyautoattack's standard version."""
    import pyautoattack

    whole = pyautoattack.AutoAttack(
        nn.Identity(), eps=0.1, norm=autoattack.NAMES[norm], seed=3, version="standard"
    )
    whole.fab.targeted = True  # as its loop sets it for FAB-T
    found = {
        ApgdCe: whole.apgd,
        ApgdT: whole.apgd_targeted,
        FabT: whole.fab,
        Square: whole.square,
    }
    return found[type(attack)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [ApgdCe(), ApgdT(), FabT(), Square()], ids=str)
def test_parts_are_built_as_the_standard_version_builds_them(attack, norm, monkeypatch):
    built = []

    def keep(made, x, y):
        built.append(made)
        return x

    monkeypatch.setattr(autoattack, "_perturb", keep)
    x = torch.rand(2, 1, 3, 3)
    model = Linear(torch.rand(10, 9))
    attack(model, x, torch.zeros(2).long(), 0.1, norm, torch.Generator().manual_seed(3))
    ours, theirs = vars(built[0]), vars(standard_package(attack, norm))
    plain = {key for key, value in theirs.items() if isinstance(value, (int, float, str))}
    assert len(plain) > 8
    differing = {key: (ours[key], theirs[key]) for key in plain if ours[key] != theirs[key]}
    assert set(differing) <= {"device"}


def test_t13_4_and_7_schedules_of_the_package():
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.square import SquareAttack

    apgd = APGDAttack(None, eps=0.1)
    at, period, checkpoints = 0, apgd.n_iter_2, []
    while at + period <= apgd.n_iter:
        at += period
        checkpoints.append(at)
        period = max(period - apgd.size_decr, apgd.n_iter_min)
    assert checkpoints == [22, 41, 57, 70, 80, 87, 93, 99]
    square = SquareAttack(None, eps=0.1, p_init=0.8, resc_schedule=False)
    at_queries = (0, 11, 51, 201, 501, 1001, 2001, 4001)
    sides = [round((square.p_selection(q) * 32 * 32) ** 0.5) for q in at_queries]
    assert sides == [29, 20, 14, 10, 7, 5, 4, 3]


@pytest.mark.parametrize(("attack", "needed"), [(ApgdT(), 4), (ApgdDlr(), 3)])
def test_too_few_classes_for_a_loss_are_named(attack, needed):
    with pytest.raises(InputError, match=f"needs {needed} classes, the model has {needed - 1}"):
        attack.describe(0.1, needed - 1)
    assert attack.describe(0.1, needed)["steps"] == 100


@pytest.mark.parametrize(
    ("classes", "middle", "said"),
    [
        (10, ["apgd_t"], ""),
        (4, ["apgd_t"], ""),
        (3, ["apgd_dlr"], "with 3 classes .*; APGD-DLR was run instead of APGD-T"),
        (2, [], "with 2 classes .*; APGD-T was left out"),
    ],
)
def test_autoattack_makes_do_with_few_classes_and_says_so(classes, middle, said, caplog):
    whole = AutoAttack()
    assert list(whole.parts(classes)) == ["apgd_ce", *middle, "fab_t", "square"]
    (message,) = [record.getMessage() for record in caplog.records] or [""]
    assert re.search(said, message)
    assert bool(message) == bool(said)
    assert whole.describe(0.1, classes)["version"] == ("custom" if said else "standard")


def test_the_standard_version_is_the_papers():
    """Croce and Hein, 2020: 100 iterations, 9 targets, 5,000 queries, no restarts."""
    apgd = {"steps": 100, "step_size": "adaptive", "start": "uniform", "restarts": 1}
    targets, black_box = {"targets": 9}, {"queries": 5000, "start": "stripes", "loss": "margin"}
    said = {name: part.describe(0.1, 10) for name, part in AutoAttack().parts(10).items()}
    assert said == {
        "apgd_ce": apgd | {"loss": "ce"},
        "apgd_t": apgd | {"loss": "dlr_targeted"} | targets,
        "fab_t": {"steps": 100, "start": "clean", "restarts": 1} | targets,
        "square": black_box | {"restarts": 1},
    }
    whole = {"version": "standard", "steps": 100, "targets": 9, "queries": 5000, "restarts": 1}
    assert AutoAttack().describe(0.1, 10) == whole
    alone: dict[str, Attack] = {"apgd_ce": ApgdCe(), "apgd_t": ApgdT()}
    alone |= {"fab_t": FabT(), "square": Square()}
    assert AutoAttack().parts(10) == alone
    assert ApgdDlr().describe(0.1, 3) == apgd | {"loss": "dlr"}
    for attack in (ApgdT(), FabT(), AutoAttack()):
        assert [attack.describe(0.1, k)["targets"] for k in (4, 10, 100)] == [3, 9, 9]


def test_autoattack_ends_once_every_image_is_broken(monkeypatch):
    ran = []

    def break_all(attack, x, y):
        ran.append(type(attack).__name__)
        return 1 - x

    monkeypatch.setattr(autoattack, "_perturb", break_all)
    model = Linear([[1.0], [-1.0]], [-0.5, 0.5])  # class 0 iff x > .5
    x = torch.full((2, 1, 1, 1), 0.6, dtype=F64)
    found = AutoAttack()(model, x, torch.zeros(2).long(), 0.2, "linf", rng())
    assert torch.equal(found, 1 - x)
    assert ran == ["APGDAttack"]


@pytest.mark.parametrize(
    "attack",
    [ApgdCe(5), ApgdT(5), FabT(5), Square(5), Pgd(2, 0.5), Spsa(2, 2)],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_are_silent_deterministic_and_leave_the_global_generator_alone(attack, norm, capfd):
    x = torch.rand(6, 1, 6, 6, generator=generator(0, "x"), dtype=F64)
    model = Linear(torch.randn(10, 36, generator=generator(0, "w"), dtype=F64))
    y = model(x).argmax(1)
    before = torch.get_rng_state()
    first = attack(model, x, y, 0.1, norm, rng())
    torch.rand(3)  # whatever others draw in between
    torch.set_rng_state(before)
    second = attack(model, x, y, 0.1, norm, rng())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert first.dtype == x.dtype
    assert (lp_norm(first - x, norm) <= 0.1 + 1e-6).all()
    assert ((first >= 0) & (first <= 1)).all()
    assert capfd.readouterr() == ("", "")


class Dynamic(nn.Module):
    """Differentiates inside its forward pass, as test-time defences do."""

    def forward(self, x):
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(inner.square().sum(), inner)
        return (x + grad).flatten(1)


def test_inspecting_finds_dynamic_defences_and_restores_a_debuggers_trace(caplog):
    x, y = torch.rand(2, 1, 2, 2), torch.zeros(2).long()
    calls = []

    def tracer(frame, event, argument):
        calls.append(frame.f_code.co_name)

    outer = sys.gettrace()
    sys.settrace(tracer)
    try:
        autoattack.inspect(Dynamic(), x, y)
        kept = sys.gettrace()
        autoattack.inspect(nn.Flatten(), x, y)  # the package's counters must not remember
    finally:
        sys.settrace(outer)
    assert kept is tracer
    assert [record.message[:31] for record in caplog.records] == ["it seems to be a dynamic defens"]


CONTRACT = {
    *("clean", "fgsm", "pgd10", "pgd20", "pgd100", "pgd20_eps6", "pgd20_eps10", "pgd20_eps12"),
    *("cw", "aa", "aa_l2", "apgd_ce", "apgd_t", "square", "spsa", "fab"),
    *("margin_train", "margin_test", "margin_adv_train", "pgd10_uniform"),
    *("loss_rise", "loss_rise_train", "radius_clean_images"),
    *(f"aa_eps{pixels}" for pixels in range(2, 17, 2)),
}


def read(path: Path) -> dict[str, Any]:
    text = path.read_text().replace("${eps}", "8/255").replace("${norm}", "linf")
    node = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def parsed(path: Path, eps: float = 8 / 255) -> dict[str, Any]:
    parser = Parser()
    node = read(path)["attacks"]
    found = {
        name: None if value is None else parser.parse(Attack | Measure, value, name, eps)
        for name, value in node.items()
    }
    assert parser.problems == []
    return found


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_parse_and_use_the_contracts_names(path):
    assert set(parsed(path)) <= CONTRACT
    node = read(path)
    wanted = (
        "attacks",
        "n",
        "split",
        "eps",
        "norm",
        "temperature",
        "batch_size",
        "seed",
        "checkpoints",
        "weights",
        "val",
    )
    assert set(node) == set(wanted)


def test_step_sizes_in_pixels_follow_an_attacks_own_radius():
    attacks = parsed(CONF / "mwpb.yaml")
    for name, eps in (("pgd20", 8), ("pgd20_eps6", 6), ("pgd20_eps10", 10), ("pgd20_eps12", 12)):
        attack = attacks[name]
        own = attack.eps if attack.eps is not None else 8 / 255
        assert own == pytest.approx(eps / 255)
        assert attack.describe(own, 10)["step_size"] == pytest.approx(1 / 255)
    assert (attacks["aa_l2"].norm, attacks["aa_l2"].eps) == ("l2", pytest.approx(128 / 255))
    assert attacks["spsa"].describe(0.1, 10)["queries"] == 51_200


@pytest.mark.parametrize("attack", [ApgdCe(n_iter=2), Square(queries=5), FabT(n_iter=2)])
def test_the_packages_attacks_take_images_of_any_memory_format(attack):
    net = torch.nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 5)).double()
    x = torch.rand(3, 3, 6, 6, dtype=F64, generator=generator(0, "x"))
    y = net(x).argmax(1)
    found = [
        attack(net, images, y, 0.1, "linf", torch.Generator().manual_seed(0))
        for images in (x, x.contiguous(memory_format=torch.channels_last))
    ]
    assert torch.equal(*found)
