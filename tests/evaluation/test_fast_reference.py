"""The fast attacks against pyautoattack, example by example, and as an evaluation runs them."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ablation.config.parser import Parser
from ablation.evaluation import (
    ApgdCe,
    ApgdT,
    Attack,
    AutoAttack,
    FabT,
    FastApgdCe,
    FastApgdT,
    FastAutoAttack,
    FastFabT,
    FastSquare,
    Pgd,
    Request,
    Square,
    describe,
    evaluate,
    judge,
)
from ablation.evaluation.attacks import check_points
from ablation.evaluation.fast import apgd
from ablation.evaluation.fast.hunt import Hunt, Streams
from ablation.models import ResNet, build_model
from ablation.models.folding import search_copy
from ablation.reports.deviations import attack_key, mismatches
from tests.support.counting import Counting
from tests.support.patterns import RADII, correct, patterns, trained
from tests.support.sampling import some_pairs

CONF = Path(__file__).parents[2] / "conf" / "evaluation"


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {"robust": trained(robust=True), "weak": trained(robust=False)}


PAIRS: dict[str, tuple[Attack, Attack]] = {
    "apgd_ce": (FastApgdCe(), ApgdCe()),
    "apgd_t": (FastApgdT(), ApgdT()),
    "fab_t": (FastFabT(), FabT()),
    "square": (FastSquare(600), Square(600)),
    "autoattack": (FastAutoAttack("custom", queries=100), AutoAttack("custom", queries=100)),
}
SETTINGS = ("robust l2", "weak linf", "robust linf", "weak l2")


@pytest.mark.parametrize(
    ("pair", "setting"),
    [
        *some_pairs([name for name in PAIRS if name != "autoattack"], SETTINGS, 4),
        *(pytest.param("autoattack", one, marks=pytest.mark.slow) for one in SETTINGS),
    ],
)
def test_verdicts_differ_from_the_references_as_its_seeds_do(networks, pair, setting):
    (ours, theirs), (kind, norm) = PAIRS[pair], setting.split()
    net, eps = networks[kind], RADII[norm]
    x, y = correct(net)

    def broken(attack: Attack, seed: int) -> Tensor:
        found = attack(net, x, y, eps, norm, torch.Generator().manual_seed(seed))
        check_points(found, x, eps, norm, attack.kind)
        wrong = net(found).argmax(1) != y
        if attack is ours:
            assert torch.equal(wrong, (found != x).flatten(1).any(1))
        return cast(Tensor, wrong)

    fast, first, second = broken(ours, 0), broken(theirs, 0), broken(theirs, 1)
    seeds = int((first != second).sum())
    assert len(x) > 100
    assert 0 < fast.sum() < len(x)
    assert (fast != first).sum() <= 1.5 * seeds + 2
    assert abs(int(fast.sum()) - int(first.sum())) <= seeds / 2 + 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["robust", "weak"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_from_the_same_start_breaks_the_same(networks, loss, kind, norm, monkeypatch):
    from pyautoattack.autopgd_base import APGDAttack

    net, eps = networks[kind], RADII[norm]
    x, y = correct(net)
    hunt = Hunt(net, net, "fp32", x, y)
    begin = apgd.start(hunt, eps, norm, Streams(range(len(x)), "test"))
    name = {"linf": "Linf", "l2": "L2"}[norm]
    theirs = APGDAttack(net, norm=name, eps=eps, loss=loss, device=x.device)
    theirs.init_hyperparam(x)
    with torch.random.fork_rng(devices=[]):
        _, still, _, _ = theirs.attack_single_run(x, y, x_init=begin)
    monkeypatch.setattr(apgd, "start", lambda *arguments: begin)
    function = apgd.UNTARGETED[loss]
    with torch.no_grad():
        apgd.ascend(hunt, function, y, eps, norm, 100, Streams(range(len(x)), "test"))
    left = torch.zeros(len(x), dtype=torch.bool)
    left[hunt.left] = True
    assert (left != still).sum() <= 1  # rounding may turn a gradient's sign
    assert 10 < left.sum() < 110


# As an evaluation runs them -----------------------------------------------------------------------

WHOLE = FastAutoAttack("custom", n_iter=10, queries=60)


def settings(**changes: Any) -> Request:
    return replace(Request({"clean": None, "aa": WHOLE}, RADII["linf"], diagnose=False), **changes)


def test_the_preset_is_autoattacks_with_our_attack():
    names = ("fast_autoattack", "autoattack")
    loaded = (OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")) for name in names)
    ours, theirs = (cast(dict[str, Any], each) for each in loaded)
    attack = ours["attacks"].pop("aa")
    theirs["attacks"].pop("aa")
    assert ours == theirs
    assert Parser().parse(Attack, attack, "aa") == FastAutoAttack()


def test_entries_say_whose_attack_it_is_and_a_table_tags_it():
    fast, reference = (
        describe(attack, 0.1, "linf", 10) for attack in (FastAutoAttack(), AutoAttack())
    )
    assert (fast["implementation"], fast["search"], fast["version"]) == ("fast", "fp32", "standard")
    assert mismatches(fast, reference) == ("attack fast_auto_attack, not auto_attack",)
    coarse = describe(FastAutoAttack(search="bf16"), 0.1, "linf", 10)
    assert mismatches(coarse, reference) == (
        "search bf16, not fp32",
        "attack fast_auto_attack, not auto_attack",
    )
    assert len({attack_key(params) for params in (fast, reference, coarse)}) == 3
    for ours, theirs in (
        (FastApgdCe(), ApgdCe()),
        (FastApgdT(), ApgdT()),
        (FastFabT(), FabT()),
        (FastSquare(), Square()),
    ):
        mine, yours = (describe(attack, 0.1, "linf", 10) for attack in (ours, theirs))
        assert mine == {**yours, "attack": ours.kind, "implementation": "fast", "search": "fp32"}


def test_verdicts_depend_on_the_seed_but_not_on_batches_and_neighbours(networks):
    net = copy.deepcopy(networks["weak"]).double()
    x, y = patterns(60, 2)
    state = torch.get_rng_state()
    whole = evaluate(net, x, y, settings())
    table = whole.examples
    for batch_size in (1, 7, 60):
        again = evaluate(net, x, y, settings(batch_size=batch_size))
        assert again.examples.equals(table)
    part = evaluate(net, x, y, settings(n=20)).examples
    assert part.set_index("index").equals(table.set_index("index").loc[part["index"]])
    assert set(table["aa_broken_by"].dropna()) >= {"apgd_ce", "apgd_t"}
    square = settings(attacks={"square": FastSquare(60)}, eps=0.15)
    first, second = (evaluate(net, x, y, replace(square, seed=s)).examples for s in (0, 1))
    assert not first["square_robust"].equals(second["square_robust"])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_masking_check_runs_as_for_the_reference(networks):
    x, y = patterns(100, 2)
    outcomes = []
    for whole, first, square in (
        (WHOLE, FastApgdCe(10), FastSquare(20)),
        (AutoAttack("custom", n_iter=10, queries=60), ApgdCe(10), Square(20)),
    ):
        attacks = {"pgd20": Pgd(20, 0.25), "aa": whole, "apgd_ce": first, "square": square}
        found = evaluate(networks["robust"], x, y, Request(attacks, RADII["linf"]))
        outcomes.append({check.name: check.outcome for check in found.checks})
    assert outcomes[0] == outcomes[1]
    assert [name for name, outcome in outcomes[0].items() if outcome == "not run"] == ["ordering"]


def test_radii_of_the_fast_attack_share_verdicts(networks):
    x, y = patterns(60, 2)
    attacks = {name: replace(WHOLE, eps=eps) for name, eps in (("near", 0.03), ("far", 0.1))}
    found = evaluate(networks["weak"], x, y, settings(attacks=attacks))
    params = {entry.metric: entry.params for entry in found.entries}
    assert "reuses" in params["near"]
    assert "reuses" not in params["far"]


def test_an_interrupted_evaluation_goes_on(networks, tmp_path):
    net, (x, y) = networks["weak"], patterns(40, 2)
    wanted = evaluate(net, x, y, settings())
    path = tmp_path / "partial"
    for _ in range(2):
        found = evaluate(net, x, y, settings(), partial=path)
        assert found.examples.equals(wanted.examples)


# The network that is searched ---------------------------------------------------------------------


class Divided(nn.Module):
    """A network inside another, as for a temperature."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x) / 2
        return z


def narrow() -> nn.Module:
    """A ResNet of width 4 after a few steps: BatchNorm has statistics of its own."""
    x, y = patterns(100, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_model(ResNet(width=4), channels=1, size=8, classes=10).train()
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(10):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    return net.eval()


def test_the_search_runs_on_a_folded_copy_and_the_network_only_judges():
    net, (x, y) = narrow(), patterns(20, 2)
    y = net(x).argmax(1)
    calls = []
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    handle = norm.register_forward_hook(lambda module, given, z: calls.append(len(z)))  # not folded
    attack = FastApgdCe(30)
    found = evaluate(net, x, y, settings(attacks={"apgd_ce": attack}, eps=0.07))
    handle.remove()
    assert 0 < found.entries[0].value < 100
    # Clean accuracy, the comparison of both, the verdict; else only suspected points.
    assert calls[:2] == [20, 20]
    assert calls[-1] == 20
    assert all(size < 20 for size in calls[2:-1])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_search_copy_is_the_function_without_batchnorm(wrapped):
    net = narrow().double()
    whole = Divided(net) if wrapped else net
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    copied, x = search_copy(whole), patterns(8, 2)[0].double()
    assert copied is not whole
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert not any(weight.requires_grad for weight in copied.parameters())
    torch.testing.assert_close(copied(x), whole(x), atol=1e-10, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())


def test_another_network_is_searched_as_it_is():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert search_copy(net) is net

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    own = narrow()
    own.body = Branching()
    assert search_copy(own) is own


def test_a_copy_that_computes_something_else_is_not_used(monkeypatch):
    net, (x, _) = narrow(), patterns(20, 2)
    y = net(x).argmax(1)
    request = settings(attacks={"apgd_ce": FastApgdCe(5)}, eps=0.07)
    module = sys.modules["ablation.evaluation.judge"]
    monkeypatch.setattr(module, "search_copy", lambda net: net)
    wanted = evaluate(net, x, y, request).examples
    other = Counting(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    monkeypatch.setattr(module, "search_copy", lambda net: other)
    assert evaluate(net, x, y, request).examples.equals(wanted)
    assert other.forwards == 1


@pytest.mark.parametrize(
    ("largest", "error", "same"),
    [(100.0, 0.05, True), (100.0, 0.2, False), (0.01, 5e-6, True), (0.01, 2e-5, False)],
)
def test_a_copy_is_searched_on_if_it_errs_by_little_of_the_largest_logit(
    largest, error, same, monkeypatch
):
    net, x = nn.Flatten(), torch.linspace(0, 1, 8).view(2, 1, 2, 2)
    scaled = nn.Sequential(net, Affine(largest, 0.0))
    monkeypatch.setattr(judge, "search_copy", lambda net: nn.Sequential(net, Affine(1.0, error)))
    subject = judge.Subject(scaled, x, torch.zeros(2).long(), x.device, x.dtype)
    chosen = judge._SearchCopy(subject)(x)
    assert (chosen is not None) == same
    assert chosen is None or torch.equal(chosen(x), subject.predict(x) + error)
    monkeypatch.setattr(judge, "search_copy", lambda net: net)
    assert judge._SearchCopy(subject)(x) is None


class Affine(nn.Module):
    """factor * z + offset."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, z):
        return self.factor * z + self.offset
