"""AutoAttack at several radii: what is known of one radius is used at the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from ablation.errors import InterruptedRunError
from ablation.evaluation import Attack, AutoAttack, Fgsm, Measure, Pgd, Request, evaluate
from ablation.evaluation import autoattack as package
from ablation.evaluation.ladders import Rung, ladders, running_order, settle
from ablation.evaluation.results import Verdict

SHORT = AutoAttack("custom", n_iter=5, queries=20)
RADII = (0.02, 0.1, 0.05)
"""In no order, as a user may write them."""


class Linear(nn.Module):
    """Four classes of which two fight over the first pixel: the margin is |x - 1/2| there."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(4, 4)
        weight[0, 0], weight[1, 0] = 20.0, -20.0
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.tensor([-10.0, 10.0, -50.0, -60.0]))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def images(distances) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.full((len(distances), 1, 2, 2), 0.5)
    x[:, 0, 0, 0] += torch.tensor(distances)
    return x, torch.zeros(len(distances), dtype=torch.long)


DISTANCES = [0.01, 0.03, 0.03, 0.07, 0.2, 0.3, -0.1]
"""To the boundary; the last is misclassified."""


def attacked(attacks, **options):
    x, y = images(DISTANCES)
    request = Request(attacks, eps=0.1, diagnose=False, **options)
    return evaluate(Linear(), x, y, request)


def three(**options) -> dict[str, AutoAttack]:
    return {f"aa_{eps}": replace(SHORT, eps=eps, **options) for eps in RADII}


def test_verdicts_are_those_of_each_radius_alone():
    whole = attacked({"clean": None, **three()})
    for name, attack in three().items():
        alone = attacked({name: attack}).examples[f"{name}_robust"]
        assert whole.examples[f"{name}_robust"].tolist() == alone.tolist()
    assert [entry.metric for entry in whole.entries] == ["clean", *three()]
    assert whole.examples["aa_0.05_robust"].tolist() == [False] * 3 + [True] * 3 + [False]
    assert whole.flags == attacked({"aa_0.1": three()["aa_0.1"]}).flags


def test_a_ladder_has_two_radii_or_more_the_largest_first():
    attacks: dict[str, Attack | Measure] = {
        "a": replace(SHORT, eps=0.1),
        "b": replace(SHORT, eps=0.2),
    }
    grouped = ladders(attacks, lambda attack: (attack.eps or 0.0, "linf"))
    assert grouped == [[Rung("b", 0.2), Rung("a", 0.1)]]
    del attacks["b"]
    assert ladders(attacks, lambda attack: (attack.eps or 0.0, "linf")) == []


def test_what_is_robust_at_a_larger_radius_meets_the_first_part_alone(monkeypatch):
    seen: list[tuple[str, float, int]] = []
    for kind in (package.ApgdCe, package.ApgdT, package.FabT, package.Square):
        original = kind.__call__

        def call(self, predict, x, y, eps, norm, rng, original=original):
            seen.append((self.kind, eps, len(x)))
            return original(self, predict, x, y, eps, norm, rng)

        monkeypatch.setattr(kind, "__call__", call)
    found = attacked(three())
    first = [call for call in seen if call[0] == "apgd_ce"]
    assert first == [("apgd_ce", 0.1, 6), ("apgd_ce", 0.05, 6), ("apgd_ce", 0.02, 6)]
    later = {(kind, eps): count for kind, eps, count in seen if kind != "apgd_ce"}
    assert later["square", 0.1] == 2  # 0.2 and 0.3 away
    assert later["square", 0.05] == 1  # 0.07 away, which 0.1 has broken
    assert later["square", 0.02] == 2  # both 0.03 away
    reused = [entry.params.get("reuses") for entry in found.entries]
    assert reused == ["eps 0.05", None, "eps 0.1"]
    fractions = attacked({f"aa_{n}": replace(SHORT, eps=n / 255) for n in (16, 8)})
    assert fractions.entries[1].params["reuses"] == "eps 16/255"


@dataclass(frozen=True)
class Blind(package.ApgdCe):
    """Fails at large radii, as a masked gradient does."""

    def __call__(self, predict, x, y, eps, norm, rng):
        return x if eps > 0.04 else super().__call__(predict, x, y, eps, norm, rng)


def test_what_is_broken_at_a_smaller_radius_is_broken_at_a_larger_one(monkeypatch):
    monkeypatch.setattr(AutoAttack, "parts", lambda self, classes: {"blind": Blind(5)})
    found = attacked(three())
    robust = {eps: found.examples[f"aa_{eps}_robust"].tolist() for eps in RADII}
    assert robust[0.02] == robust[0.05] == robust[0.1] == [False, *[True] * 5, False]
    assert found.examples["aa_0.1_broken_by"][0] == "blind"
    assert [entry.value for entry in found.entries] == pytest.approx([500 / 7] * 3)
    masked = [flag for flag in found.flags if "broken at a smaller radius" in flag]
    assert [flag.split(":")[0] for flag in masked] == ["aa_0.1", "aa_0.05"]
    assert "1 of 7 images" in masked[0]


def test_an_image_that_only_the_smaller_radius_saw_stays_unjudged_at_the_larger():
    def verdict(chosen, broken):
        robust = torch.tensor([not b for b in broken])
        by = torch.tensor([0 if b else -1 for b in broken])
        return Verdict(torch.tensor(chosen), robust, {}, by, torch.where(by < 0, -1, 7))

    wide, near = verdict([0, 1], [False, False, False]), verdict([0, 1, 2], [True, False, True])
    (warning,) = settle([Rung("wide", 0.2), Rung("near", 0.1)], {"wide": wide, "near": near})
    assert wide.robust.tolist() == [False, True, True]
    assert wide.became.tolist() == [7, -1, -1]
    assert "1 of 2" in warning


def test_only_equal_attacks_share():
    def threat(attack):
        return attack.eps or 0.1, attack.norm or "linf"

    attacks: dict[str, Attack | Measure] = {
        "small": replace(SHORT, eps=0.02),
        "pgd": Pgd(5, 0.3),
        "aa": SHORT,
        "other": AutoAttack("custom", n_iter=6, queries=20, eps=0.05),
        "l2": replace(SHORT, norm="l2", eps=0.5),
        "part": replace(SHORT, eps=0.3, n=5),
        "named": replace(SHORT, norm="linf", eps=0.03),
        "fgsm": Fgsm(),
    }
    (group,) = ladders(attacks, threat)
    assert [rung.metric for rung in group] == ["part", "aa", "named", "small"]
    order = running_order(list(attacks), [group])
    assert order == ["part", "pgd", "aa", "other", "l2", "named", "small", "fgsm"]


def test_a_radius_of_zero_is_clean_accuracy():
    attacks = {"aa_0": replace(SHORT, eps=0.0), **three()}
    found = attacked(attacks)
    assert found.entries[0].value == pytest.approx(600 / 7)
    assert "reuses" not in found.entries[0].params


def test_an_interrupted_ladder_goes_on_with_the_same_verdicts(tmp_path):
    x, y = images(DISTANCES)
    request = Request(three(), eps=0.1, diagnose=False)
    whole = evaluate(Linear(), x, y, request)
    calls = iter([*[False] * 6, *[True] * 100])
    partial = tmp_path / "partial"
    with pytest.raises(InterruptedRunError):
        evaluate(Linear(), x, y, request, should_stop=lambda: next(calls), partial=partial)
    again = evaluate(Linear(), x, y, request, partial=partial)
    assert again.examples.equals(whole.examples)
    assert again.entries == whole.entries
