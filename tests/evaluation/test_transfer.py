"""Attacks by another network's points: who searches, who judges, and the check on gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ablation.errors import InputError, InterruptedRunError
from ablation.evaluation import (
    AutoAttack,
    EffectiveMargin,
    FastApgdCe,
    Fgsm,
    Pgd,
    Request,
    Source,
    evaluate,
)
from ablation.evaluation.checks import transfer
from ablation.evaluation.results import Probe
from ablation.evaluation.resume import identify

EPS = 0.1
ATTACKS = {"clean": None, "fgsm": Fgsm(), "pgd5": Pgd(5, 0.5, "clean")}


class Linear(nn.Module):
    """Two classes by a direction; counts its calls with gradients."""

    def __init__(self, direction: list[float], classes: int = 2) -> None:
        super().__init__()
        w = torch.tensor(direction, dtype=torch.float64)
        rows = [w, -w, *[torch.zeros_like(w)] * (classes - 2)]
        self.w = nn.Parameter(torch.stack(rows))
        self.searched = 0

    def forward(self, x: Tensor) -> Tensor:
        self.searched += torch.is_grad_enabled()
        return (x.flatten(1) - 0.5) @ self.w.T


def images() -> tuple[Tensor, Tensor]:
    """Four images of two pixels at different distances from 0.5, all of class 0 by (1, 0)."""
    first = torch.tensor([0.52, 0.58, 0.65, 0.9], dtype=torch.float64)
    return torch.stack([first, torch.full_like(first, 0.5)], 1).view(4, 1, 1, 2), torch.zeros(4)


def run(net: nn.Module, source: nn.Module | None, attacks=ATTACKS, **more):
    x, y = images()
    given = None if source is None else Source("other", source)
    request = Request(attacks, EPS, batch_size=2, diagnose=False)
    return evaluate(net, x, y.long(), request, source=given, **more)


def values(found):
    return {entry.metric: entry.value for entry in found.entries}


def test_the_source_searches_and_the_network_judges():
    net, along, across = Linear([1, 0]), Linear([2, 0]), Linear([0, 1])
    assert values(run(net, None)) == {"clean": 100, "fgsm": 50, "pgd5": 50}
    net.searched = 0
    assert values(run(net, along)) == {"clean": 100, "fgsm": 50, "pgd5": 50}
    assert net.searched == 0
    assert along.searched > 0
    # Points that do not fool the network count as robust, whatever they do to the source.
    assert values(run(net, across)) == {"clean": 100, "fgsm": 100, "pgd5": 100}


def test_attacks_of_ours_search_on_the_source_too():
    net, along, wrong = Linear([1, 0]), Linear([2, 0]), Linear([-1, 0])
    attacks = {"clean": None, "apgd_ce": FastApgdCe(10)}
    assert values(run(net, along, attacks)) == {"clean": 100, "apgd_ce": 50}
    assert net.searched == 0
    assert along.searched > 0
    assert values(run(net, wrong, attacks)) == {"clean": 100, "apgd_ce": 100}


def test_images_that_the_source_gets_wrong_count_by_the_networks_answer():
    assert values(run(Linear([1, 0]), Linear([-1, 0])))["fgsm"] == 100
    assert values(run(Linear([-1, 0]), Linear([1, 0])))["clean"] == 0


def test_every_attack_says_whose_points_they_are_and_clean_accuracy_does_not():
    found = run(Linear([1, 0]), Linear([2, 0]))
    sources = {entry.metric: entry.params.get("attack_from") for entry in found.entries}
    assert sources == {"clean": None, "fgsm": "other", "pgd5": "other"}
    plain = run(Linear([1, 0]), None)
    assert all("attack_from" not in entry.params for entry in plain.entries)


def test_the_checks_of_attacks_are_left_out_and_the_images_described():
    x, y = images()
    request = Request(ATTACKS, EPS)
    found = evaluate(Linear([1, 0]), x, y.long(), request, source=Source("o", Linear([2, 0])))
    assert found.checks == ()
    assert {"logit_gap", "top_classes"} <= {*found.examples.columns}


def test_both_networks_are_left_as_they_were():
    net, source = Linear([1, 0]).train(), Linear([2, 0]).train()
    run(net, source)
    assert net.training
    assert source.training
    assert source.w.requires_grad
    assert source.w.grad is None


def test_radii_of_autoattack_are_not_derived_from_each_other():
    attacks = {
        f"aa_{n}": AutoAttack(version="custom", eps=n / 100, n_iter=2, queries=2) for n in (5, 10)
    }
    found = run(Linear([1, 0], 4), Linear([2, 0], 4), attacks)
    assert all("reuses" not in entry.params for entry in found.entries)
    assert any("reuses" in e.params for e in run(Linear([1, 0], 4), None, attacks).entries)


@pytest.mark.parametrize(
    ("source", "attacks", "message"),
    [
        (Linear([1, 0], 3), ATTACKS, "attack_from=other: it has 3 classes, the attacked network 2"),
        (Linear([1, 0]), {"margin": EffectiveMargin()}, "measures the network itself"),
        (Linear([1, 0]).half(), ATTACKS, "evaluation is in fp32"),
    ],
)
def test_what_cannot_be_transferred_is_refused(source, attacks, message):
    with pytest.raises(InputError, match=message):
        run(Linear([1, 0]), source, attacks)


def test_a_resumed_evaluation_takes_no_verdict_of_another_source(tmp_path):
    net, path = Linear([1, 0]), tmp_path / "x.partial"
    stops = iter([*[False] * 4, True])
    with pytest.raises(InterruptedRunError):
        run(net, Linear([2, 0]), partial=path, should_stop=lambda: next(stops))
    assert path.is_dir()
    assert values(run(net, Linear([0, 1]), partial=path))["fgsm"] == 100
    x, y = images()
    keys = {
        identify(*nets, images=x, labels=y, request="same")
        for nets in ((net,), (net, Linear([2, 0])), (net, Linear([0, 1])))
    }
    assert len(keys) == 3


def probe(own: int, other: int, of: int = 200) -> Probe:
    """Of 200 images so many survive the network's own attack, and the transferred one."""
    index = torch.arange(of)
    return Probe("pgd20", index < own, index < other, EPS)


@pytest.mark.parametrize(
    ("own", "other", "outcome"),
    [(100, 180, "passed"), (100, 100, "passed"), (100, 97, "passed"), (100, 60, "tripped")],
)
def test_a_transferred_attack_that_is_clearly_stronger_trips(own, other, outcome):
    check = transfer({"pgd20": probe(own, other)})
    assert (check.name, check.outcome) == ("transfer", outcome)
    if outcome == "tripped":
        assert "pgd20 by another network's points leaves 30.00%" in check.text
        assert "50.00% of the same 200 images" in check.text
        # 40 images of 200, less two standard errors: 20 - 200 sqrt(40) / 200.
        assert check.values["excess"] == pytest.approx(20 - 40**0.5)


def test_without_a_pair_the_check_says_what_it_needs():
    check = transfer({})
    assert (check.outcome, check.values) == ("not run", {})
    assert "leave out attack_from" in check.text
