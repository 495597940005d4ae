"""Single attacks against two other libraries: torchattacks and foolbox (the extra ``oracles``).

PGD and FGSM have no chance in them: the same points. Square and the adaptive attacks draw: their
verdicts may differ as those of two seeds do.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.evaluation import (
    ApgdCe,
    Attack,
    FabT,
    FastApgdCe,
    FastFabT,
    FastSquare,
    Fgsm,
    Pgd,
    Square,
)
from ablation.numerics.functional import margin
from tests.support.patterns import RADII, correct, trained

pytestmark = pytest.mark.extra


def library(name: str) -> Any:
    """Import an oracle whose own imports warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(robust=True)


def ours(net: nn.Module, attack: Attack, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    return attack(net, x, y, RADII["linf"], "linf", torch.Generator().manual_seed(seed))


def near(found: Tensor, other: Tensor) -> None:
    """Equal up to rounding; a gradient entry of rounding size may turn its sign in a few pixels."""
    assert ((found - other).abs() > 1e-5).double().mean() < 1e-3


@pytest.mark.parametrize("steps", [1, 10])
def test_pgd_and_fgsm_of_torchattacks_find_the_same_points(net, steps):
    torchattacks = library("torchattacks")
    (x, y), eps = correct(net), RADII["linf"]
    other = torchattacks.PGD(net, eps=eps, alpha=eps / 4, steps=steps, random_start=False)
    near(ours(net, Pgd(steps, 1 / 4, "clean"), x, y), other(x, y))
    near(ours(net, Fgsm(), x, y), torchattacks.FGSM(net, eps=eps)(x, y))


@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_pgd_of_foolbox_finds_the_same_points(net, loss):
    foolbox, eagerpy = library("foolbox"), library("eagerpy")
    (x, y), eps = correct(net), RADII["linf"]

    class Margin(foolbox.attacks.LinfPGD):  # type: ignore[name-defined,misc]
        """The loop is theirs, Carlini and Wagner's loss is this."""

        def get_loss_fn(self, model, labels):
            return lambda points: eagerpy.astensor(-margin(model(points).raw, y).sum())

    kind = Margin if loss == "cw" else foolbox.attacks.LinfPGD
    other = kind(abs_stepsize=eps / 4, steps=10, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    found = other.run(model, x, foolbox.criteria.Misclassification(y), epsilon=eps)
    near(ours(net, Pgd(10, 1 / 4, "clean", loss=loss), x, y), found)


@pytest.mark.parametrize("name", ["Square", "APGD", "FAB"])
def test_verdicts_are_those_of_torchattacks(net, name):
    torchattacks = library("torchattacks")
    (x, y), eps = correct(net), RADII["linf"]
    settings = {
        "Square": {"n_queries": 600, "resc_schedule": False},  # as AutoAttack calls it
        "APGD": {"steps": 100},
        "FAB": {"steps": 100, "multi_targeted": True},
    }[name]
    pairs: dict[str, tuple[Attack, Attack]] = {
        "Square": (Square(600), FastSquare(600)),
        "APGD": (ApgdCe(), FastApgdCe()),
        "FAB": (FabT(), FastFabT()),
    }
    theirs = [
        net(getattr(torchattacks, name)(net, eps=eps, seed=seed, **settings)(x, y)).argmax(1) != y
        for seed in (0, 1)
    ]
    chance = int((theirs[0] != theirs[1]).sum())
    for attack in pairs[name]:
        wrong = net(ours(net, attack, x, y)).argmax(1) != y
        assert int((wrong != theirs[0]).sum()) <= chance + 2
    assert 0 < int(theirs[0].sum()) < len(x)
