"""What attack and measure classes declare, and that the masking checks go by nothing else."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn

import ablation.evaluation
from ablation.evaluation import (
    ApgdCe,
    Attack,
    AttackBase,
    AutoAttack,
    Check,
    Ensemble,
    Evaluation,
    Family,
    Fgsm,
    MeasureBase,
    Pgd,
    Request,
    Spsa,
    Square,
    describe,
    evaluate,
)
from ablation.random import generator

SIDE, EPS = 6, 0.2
BATCHED = {"auto_attack": "batched_ensemble", "apgd_ce": "batched_apgd"}


@dataclasses.dataclass(frozen=True)
class BatchedApgd(AttackBase):
    """APGD-CE that is no ``ApgdCe``."""

    kind: ClassVar[str] = "batched_apgd"
    family: ClassVar[Family] = "adaptive steps"

    n_iter: int = 100

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        return ApgdCe(self.n_iter)(*arguments, **named)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        return ApgdCe(self.n_iter).describe(eps, classes)


@dataclasses.dataclass(frozen=True)
class BatchedEnsemble(AttackBase):
    """AutoAttack that is no ``AutoAttack``."""

    kind: ClassVar[str] = "batched_ensemble"
    family: ClassVar[Family] = "ensemble"

    n_iter: int = 100
    queries: int = 5000

    def _whole(self) -> AutoAttack:
        return AutoAttack("custom", n_iter=self.n_iter, queries=self.queries)

    def parts(self, classes: int) -> Mapping[str, Attack]:
        return {**self._whole().parts(classes), "apgd_ce": BatchedApgd(self.n_iter)}

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        return self._whole()(*arguments, **named)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        return self._whole().describe(eps, classes)


@dataclasses.dataclass(frozen=True)
class Corners(AttackBase):
    """The best of random corners of the ball: an attack by queries."""

    kind: ClassVar[str] = "corners"
    family: ClassVar[Family] = "black box"

    queries: int = 300

    def __call__(self, predict, x, y, eps, norm, rng):
        best, right = x.clone(), torch.arange(len(x))
        for _ in range(self.queries):
            signs = torch.randint(0, 2, x[right].shape, generator=rng) * 2 - 1
            best[right] = (x[right] + eps * signs).clamp(0, 1)
            right = right[predict(best[right]).argmax(1) == y[right]]
            if not len(right):
                break
        return best


class Centroids(nn.Module):
    """Logits -scale/2 ||x - c_k||^2 up to a constant; at a large scale cross-entropy saturates."""

    def __init__(self, scale: float = 16.0, levels: int = 0) -> None:
        super().__init__()
        self.levels, centres = levels, _centres()
        self.linear = nn.Linear(SIDE**2, len(centres))
        self.linear.weight.data = scale * centres
        self.linear.bias.data = -scale / 2 * centres.square().sum(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.levels:
            x = (x * self.levels).round() / self.levels  # no gradient
        z: Tensor = self.linear(x.flatten(1))
        return z


def _centres() -> Tensor:
    return 0.25 + 0.5 * torch.rand(10, SIDE**2, generator=generator(0, "test/centres"))


def run(net: nn.Module, attacks: Mapping[str, Any], eps: float = EPS) -> Evaluation:
    y = torch.arange(100) % 10
    noise = 0.1 * torch.randn(100, SIDE**2, generator=generator(0, "test/noise"))
    x = (_centres()[y] + noise).clamp(0, 1).view(-1, 1, SIDE, SIDE)
    return evaluate(net, x, y, Request(attacks, eps))


def check(evaluation: Evaluation, name: str) -> Check:
    return next(one for one in evaluation.checks if one.name == name)


def exported(base: type) -> list[Any]:
    classes = [value for value in vars(ablation.evaluation).values() if inspect.isclass(value)]
    return [cls for cls in classes if issubclass(cls, base) and cls is not base]


# Declarations -------------------------------------------------------------------------------------


def test_every_attack_and_measure_declares_its_own_kind_and_a_family():
    attacks, measures = exported(AttackBase), exported(MeasureBase)
    assert len(attacks) == 15
    assert len(measures) == 4
    kinds = [vars(cls)["kind"] for cls in (*attacks, *measures)]
    assert len(set(kinds)) == len(kinds)
    for cls in attacks:
        assert vars(cls)["family"] in get_args(Family)
        assert (cls.family == "ensemble") == issubclass(cls, Ensemble)
    assert {cls.family for cls in measures} == {"margin", "radius", "loss"}


def test_kinds_are_those_that_saved_evaluations_hold():
    assert {cls.__name__: cls.kind for cls in (*exported(AttackBase), *exported(MeasureBase))} == {
        "Fgsm": "fgsm",
        "Pgd": "pgd",
        "Spsa": "spsa",
        "ApgdCe": "apgd_ce",
        "ApgdDlr": "apgd_dlr",
        "ApgdT": "apgd_t",
        "FabT": "fab_t",
        "Square": "square",
        "AutoAttack": "auto_attack",
        "FastApgdCe": "fast_apgd_ce",
        "FastApgdDlr": "fast_apgd_dlr",
        "FastApgdT": "fast_apgd_t",
        "FastFabT": "fast_fab_t",
        "FastSquare": "fast_square",
        "FastAutoAttack": "fast_auto_attack",
        "EffectiveMargin": "effective_margin",
        "MarginWeightedRadius": "margin_weighted_radius",
        "AdversarialMargin": "adversarial_margin",
        "LossRise": "loss_rise",
    }


@pytest.mark.parametrize("cls", exported(AttackBase), ids=lambda cls: cls.kind)
def test_every_attack_takes_radius_norm_and_number_by_keyword_only(cls):
    parameters = inspect.signature(cls).parameters
    for name in ("eps", "norm", "n"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"eps": -0.1}, r"eps=-0\.1: a radius is not negative"), ({"n": 0}, "n=0: attack at least")],
)
def test_every_attack_refuses_a_negative_radius_and_no_examples(settings, message):
    required = {"steps": 1, "step_size": 1.0, "samples": 1, "iterations": 1}
    for cls in exported(AttackBase):
        names = inspect.signature(cls).parameters
        with pytest.raises(ValueError, match=message):
            cls(**{k: v for k, v in required.items() if k in names}, **settings)


def test_an_attack_that_says_no_more_is_described_by_its_own_settings():
    facts = describe(Corners(7, n=3), EPS, "l2", 10)
    wanted = {"attack": "corners", "queries": 7, "norm": "l2", "eps": EPS, "eps_text": "51/255"}
    assert facts == wanted


# Checks -------------------------------------------------------------------------------------------


def suite(whole: Attack, first: Attack, *, square: bool = True) -> dict[str, Any]:
    """A request with AutoAttack, or an ensemble in its place."""
    attacks = {"pgd20": Pgd(20, 0.25, "clean"), "aa": whole}
    return attacks | ({"apgd_ce": first, "square": Square(60)} if square else {})


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with_apgd"])
@pytest.mark.parametrize(
    ("net", "trips"),
    [
        (Centroids(16e4), {"pgd_gap", "rescaled_apgd", "large_radius"}),
        (Centroids(levels=16), {"square_last", "pgd_gap", "boundary_distance"}),
        (Centroids(), set()),
    ],
    ids=["saturated", "quantised", "healthy"],
)
def test_another_ensemble_gets_every_check_that_autoattack_gets(net, trips, alone):
    whole = AutoAttack("custom", n_iter=10, queries=300)
    wanted = run(net, suite(whole, ApgdCe(15), square=not alone))
    batched = BatchedEnsemble(10, 300)
    got = run(net, suite(batched, BatchedApgd(15), square=not alone))
    assert got.checks == wanted.checks
    assert got.flags == wanted.flags
    assert got.examples.equals(wanted.examples)
    assert {one.name for one in got.checks if one.outcome == "tripped"} >= trips
    # Each of them ran: an equal "not run" would say nothing.
    idle = {one.name for one in got.checks if one.outcome == "not run"}
    assert idle == ({"ordering", "black_box"} if alone else {"ordering"})
    for here, there in zip(got.entries, wanted.entries, strict=True):
        kind = there.params["attack"]
        assert here.params == {**there.params, "attack": BATCHED.get(kind, kind)}


def test_parts_are_told_from_other_attacks_by_their_kind():
    net, attacks = Centroids(levels=16), {"whole": BatchedEnsemble(1, 1), "corners": Corners()}
    assert "above corners, at the same radius" in check(run(net, attacks), "autoattack_lowest").text
    attacks = {"whole": BatchedEnsemble(1, 1), "square": Square(500)}
    assert "above square, one of its parts" in check(run(net, attacks), "autoattack_lowest").text


def test_a_new_black_box_attack_is_compared_with_the_gradient_attacks():
    outcome = check(run(Centroids(levels=16), {"fgsm": Fgsm(), "corners": Corners()}), "black_box")
    assert outcome.outcome == "tripped"
    assert "corners is" in outcome.text
    healthy = check(run(Centroids(), {"fgsm": Fgsm(), "corners": Corners()}), "black_box")
    assert healthy.outcome == "passed"
    # Two of them have no gradient attack to be compared with, and no probe either.
    alone = run(Centroids(), {"spsa": Spsa(2, 1), "corners": Corners()})
    assert {check(alone, name).outcome for name in ("black_box", "zero_radius")} == {"not run"}


def test_attacks_that_state_no_steps_are_ordered_by_their_radius():
    class Stay(AttackBase):
        kind: ClassVar[str] = "stay"
        family: ClassVar[Family] = "fixed steps"

        def __call__(self, predict, x, y, eps, norm, rng):
            return x

    found = run(Centroids(), {"near": Stay(), "far": Stay(eps=2 * EPS), "fgsm": Fgsm()})
    ordering = check(found, "ordering")
    assert (ordering.outcome, ordering.values) == ("passed", {"excess": 0.0})
