"""Checks of gradient masking: networks that mask, networks that do not, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ablation.config.experiment import EvaluationConfig
from ablation.data import ImageSet
from ablation.errors import InterruptedRunError
from ablation.evaluation import (
    ApgdCe,
    AutoAttack,
    Check,
    Evaluation,
    FabT,
    Fgsm,
    Pgd,
    Request,
    Spsa,
    Square,
    evaluate,
)
from ablation.evaluation import checks as module
from ablation.evaluation.probes import NAMES, SHARPNESS, Nearest, logit_gap, rescale
from ablation.evaluation.results import Probe
from ablation.jobs import attack, setup, summary
from ablation.random import generator
from ablation.reports.records import read
from ablation.runs.directory import Run
from tests.support.attacks import attacked
from tests.support.configs import compose_config

SIDE, EPS = 6, 0.1
SMALL = AutoAttack("custom", n_iter=10, queries=60)
SUITE: dict[str, Any] = {
    "clean": None,
    "fgsm": Fgsm(),
    "pgd20": Pgd(20, 0.25, "clean"),
    "pgd40": Pgd(40, 0.25, "clean"),
    "apgd_ce": ApgdCe(15),
    "aa": SMALL,
    "square": Square(60),
}
ALL = (
    *("logit_gap", "zero_gradient", "rescaled_apgd", "ordering", "autoattack_lowest"),
    *("black_box", "pgd_gap", "square_last", "zero_radius", "large_radius", "boundary_distance"),
    "predicted_classes",
)


def centres(classes: int) -> Tensor:
    return 0.25 + 0.5 * torch.rand(classes, SIDE**2, generator=generator(0, "test/centres"))


class Centroids(nn.Module):
    """Logits -scale/2 ||x - c_k||^2 up to a constant: a linear network, healthy at scale 16."""

    def __init__(self, classes: int = 10, scale: float = 16.0) -> None:
        super().__init__()
        c = centres(classes)
        self.linear = nn.Linear(SIDE**2, classes)
        self.linear.weight.data = scale * c
        self.linear.bias.data = -scale / 2 * c.square().sum(1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(x.flatten(1))
        return z


class Quantised(Centroids):
    """The input is rounded: right answers, no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 32).round() / 32)


class Random(Centroids):
    """Another answer at every call."""

    rng = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z + 20 * torch.randn(z.shape, generator=self.rng)


def images(n: int = 150, classes: int = 10) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % classes
    noise = 0.1 * torch.randn(n, SIDE**2, generator=generator(0, "test/noise"))
    x = (centres(classes)[y] + noise).clamp(0, 1)
    return (x * 255).round().to(torch.uint8).view(n, 1, SIDE, SIDE), y


def run(
    net: nn.Module, attacks: dict[str, Any], data: Any = None, eps: float = EPS, **kwargs: Any
) -> Evaluation:
    x, y = data or images()
    return evaluate(net, x, y, Request(attacks, eps, **kwargs))


def by_name(found: Evaluation) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def tripped(found: Evaluation) -> set[str]:
    return {check.name for check in found.checks if check.outcome == "tripped"}


def value(found: Evaluation, metric: str) -> float:
    return next(entry.value for entry in found.entries if entry.metric == metric)


@pytest.fixture(scope="module")
def healthy() -> Evaluation:
    return run(Centroids(), SUITE)


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_healthy_network_passes_every_check(norm, eps, dtype):
    found = run(Centroids().to(dtype), SUITE, eps=eps, norm=norm)
    assert tuple(check.name for check in found.checks) == ALL
    assert {check.outcome for check in found.checks} == {"passed"}
    assert found.flags == ()
    # It has something to lose: a check that compares nothing would pass as well.
    assert 10 < value(found, "aa") < value(found, "clean") - 10


def test_what_was_measured_is_recorded_with_its_limit(healthy):
    checks = by_name(healthy)
    for check in healthy.checks:
        assert check.threshold is not None
        assert 0 <= len(check.text.splitlines()) <= 1
        assert next(iter(check.values.values())) <= check.threshold
    gaps = healthy.examples["logit_gap"]
    with torch.no_grad():
        expected = logit_gap(Centroids()(images()[0] / 255))
    assert gaps.to_numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert checks["logit_gap"].values["mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert checks["logit_gap"].values["p99"] == pytest.approx(gaps.quantile(0.99))
    rescaled = checks["rescaled_apgd"].values
    assert rescaled["plain"] == pytest.approx(value(healthy, "apgd_ce"))
    assert rescaled["worst_case"] <= rescaled["plain"]
    json.dumps([vars(check) for check in healthy.checks])


@pytest.mark.parametrize("factor", [1e3, 1e4])
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
def test_inflated_logits_trip_what_looks_at_gradients_and_leave_autoattack_as_it_was(
    factor, norm, eps
):
    masked = run(Centroids(scale=16 * factor), SUITE, eps=eps, norm=norm)
    plain = run(Centroids(), SUITE, eps=eps, norm=norm)
    expected = {"logit_gap", "zero_gradient", "rescaled_apgd", "pgd_gap", "large_radius"}
    assert tripped(masked) == expected
    assert value(masked, "apgd_ce") > value(plain, "apgd_ce") + 20
    assert value(masked, "aa") == pytest.approx(value(plain, "aa"), abs=3)
    # The rescaled attack finds what plain APGD-CE finds in the network before.
    rescaled = by_name(masked)["rescaled_apgd"].values
    assert rescaled["worst_case"] == pytest.approx(value(plain, "apgd_ce"), abs=3)
    # The boundary is where it was.
    assert by_name(masked)["boundary_distance"].outcome == "passed"


def test_flags_are_the_texts_of_the_tripped_checks():
    found = run(Centroids(scale=2e4), {"apgd_ce": ApgdCe(10)})
    assert found.flags == tuple(c.text for c in found.checks if c.outcome == "tripped")
    assert len(found.flags) == 4
    assert any("logit gap above 16.6" in flag for flag in found.flags)
    assert any("its accuracy depends on the scale of the logits" in flag for flag in found.flags)


@pytest.mark.parametrize(("share", "outcome"), [(0.1, "passed"), (0.11, "tripped")])
def test_the_share_of_saturated_images_trips_the_gap(share, outcome):
    count = round(100 * share)
    gaps = [17.0] * count + [16.0] * (100 - count)
    # Those that are wrong anyway do not count.
    table = pd.DataFrame({"clean_correct": [True] * 100 + [False] * 50})
    table["logit_gap"] = gaps + [1000.0] * 50
    check = module.logit_gap(table)
    assert check.outcome == outcome
    assert check.values["saturated"] == pytest.approx(count)


@pytest.mark.parametrize(
    ("predicted", "outcome", "unpredicted"),
    [
        (range(10), "passed", 0.0),
        ([0, 1, 2], "tripped", 70.0),
        (range(1, 10), "tripped", 10.0),  # one of ten classes
    ],
)
def test_robustness_of_a_few_classes_is_flagged(predicted, outcome, unpredicted):
    labels = pd.Series(range(100)) % 10
    table = pd.DataFrame({"label": labels})
    table["prediction"] = labels.where(labels.isin(predicted), predicted[0])
    check = module.predicted_classes(table)
    assert check.outcome == outcome
    assert check.values["unpredicted"] == pytest.approx(unpredicted)
    assert f"{len(predicted)} of 10 classes are predicted" in check.text


def test_too_few_images_say_nothing_about_classes():
    table = pd.DataFrame({"label": [0, 1] * 9, "prediction": [0] * 18})
    assert module.predicted_classes(table).text == "needs 10 images per class"


def test_the_gap_at_which_cross_entropy_saturates_is_that_of_fp32():
    def gradient(gap: float) -> float:
        z = torch.tensor([[gap, 0.0]], requires_grad=True)
        nn.functional.cross_entropy(z, torch.tensor([0])).backward()
        assert z.grad is not None
        return float(z.grad[0, 0])

    assert gradient(module.SATURATED_GAP - 0.1) != 0
    assert gradient(module.SATURATED_GAP + 0.1) == 0


NO_AA = {"autoattack_lowest", "pgd_gap", "square_last", "boundary_distance"}


@pytest.mark.parametrize(
    ("attacks", "missing"),
    [
        ({"clean": None}, set(ALL) - {"logit_gap"}),
        ({"spsa": Spsa(2, 1)}, set(ALL) - {"logit_gap", "zero_gradient"}),
        ({"pgd20": SUITE["pgd20"]}, {"rescaled_apgd", "ordering", "black_box", *NO_AA}),
        ({"fgsm": Fgsm(), "pgd20": SUITE["pgd20"]}, {"rescaled_apgd", "black_box", *NO_AA}),
        ({"fgsm": Fgsm(), "square": Square(5)}, {"rescaled_apgd", "ordering", *NO_AA}),
        ({"apgd_ce": ApgdCe(2)}, {"ordering", "black_box", *NO_AA}),
        ({"aa": SMALL}, {"ordering", "autoattack_lowest", "black_box", "pgd_gap"}),
        ({"aa": SMALL, "pgd20": SUITE["pgd20"]}, {"ordering", "black_box"}),
        (
            {"aa": AutoAttack("custom", n_iter=2, queries=2, eps=0.0)},
            {"ordering", "autoattack_lowest", "black_box", "pgd_gap", "rescaled_apgd"}
            | {"boundary_distance"},
        ),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else "",
)
def test_a_check_whose_attacks_were_not_run_says_what_it_needs(attacks, missing):
    found = run(Centroids(), attacks, images(40))
    missing = missing | {"predicted_classes"}
    assert {check.name for check in found.checks if check.outcome == "not run"} == missing
    assert tuple(check.name for check in found.checks) == ALL
    for name in missing:
        check = by_name(found)[name]
        assert check.text.startswith("needs ")
        assert (check.values, check.threshold) == ({}, None)
    assert found.flags == ()


def test_a_radius_that_reaches_every_image_breaks_all_but_obfuscated_networks():
    attacks = {"pgd20": SUITE["pgd20"]}
    assert by_name(run(Centroids(), attacks))["large_radius"].values["robust"] == 0
    found = run(Quantised(), attacks)
    check = by_name(found)["large_radius"]
    assert check.outcome == "tripped"
    assert check.values["robust"] == check.values["clean"] > 90
    assert "radius 0.5" in check.text
    assert {"zero_gradient", "large_radius"} == tripped(found)
    in_l2 = by_name(run(Quantised(), attacks, norm="l2"))["large_radius"]
    assert in_l2.outcome == "tripped"
    assert "radius 3," in in_l2.text  # 0.5 * sqrt(36)


def test_radius_zero_must_give_clean_accuracy():
    check = by_name(run(Random(), {"pgd20": SUITE["pgd20"]}))["zero_radius"]
    assert check.outcome == "tripped"
    assert check.values["changed"] > 10
    # Wrong images count too: the network must be wrong again.
    x, y = images()
    half = run(Centroids(), {"pgd20": SUITE["pgd20"]}, (x, torch.where(y < 5, y, 9)))
    values = by_name(half)["zero_radius"].values
    assert values["changed"] == 0
    assert values["accuracy"] == values["clean"] < 70


def robust(count: int, of: int = 100) -> list[bool]:
    return [i < count for i in range(of)]


def test_no_attack_at_its_radius_is_below_autoattack():
    table = pd.DataFrame({"aa_robust": robust(40), "cw_robust": robust(39)})
    cw = attacked("cw", "pgd", loss="cw")
    check = module.autoattack_lowest([attacked("aa", "auto_attack"), cw], table)
    assert check.outcome == "tripped"
    assert check.values == {"excess": pytest.approx(1.0)}
    assert "aa is 1.00 points above cw, at the same radius" in check.text
    table["cw_robust"] = robust(40)
    check = module.autoattack_lowest([attacked("aa", "auto_attack"), cw], table)
    assert (check.outcome, check.values["excess"]) == ("passed", 0)
    other = attacked("cw", "pgd", loss="cw", eps=0.2)
    assert (
        module.autoattack_lowest([attacked("aa", "auto_attack"), other], table).outcome == "not run"
    )


def test_all_that_is_out_of_order_is_said_in_one_line():
    common: dict[str, Any] = {"loss": "ce", "start": "clean", "restarts": 1, "seed": 0}
    robust_of = {10: 30, 20: 31, 40: 35, 80: 30}  # the last is as strong as the first
    steps = [attacked(f"pgd{n}", "pgd", steps=n, **common) for n in robust_of]
    table = pd.DataFrame({f"pgd{n}_robust": robust(k) for n, k in robust_of.items()})
    check = module.ordering(steps, table)
    assert check.values["excess"] == pytest.approx(5.0)
    assert check.text.count("which is the weaker attack") == 3
    assert "pgd40 is 5.00 points above pgd10, which is" in check.text
    assert "both together leave 30.00%" in check.text
    assert "\n" not in check.text


@pytest.mark.parametrize(("narrow", "outcome"), [(30, "tripped"), (31, "passed")])
def test_a_larger_radius_leaves_no_more_also_of_an_attack_without_steps(narrow, outcome):
    one_step = [attacked(f"fgsm_{eps}", "fgsm", eps=eps) for eps in (0.1, 0.2)]
    table = pd.DataFrame({"fgsm_0.1_robust": robust(narrow), "fgsm_0.2_robust": robust(31)})
    assert module.ordering(one_step, table).outcome == outcome


PGD: dict[str, Any] = {"loss": "ce", "start": "clean", "restarts": 1, "seed": 0}


@pytest.mark.parametrize(
    "pair",
    [
        (attacked("a", "fgsm"), attacked("b", "pgd", **PGD | {"loss": "cw"})),
        (attacked("a", "fgsm"), attacked("b", "pgd", eps=0.2, **PGD)),
        (attacked("a", "pgd", steps=2, **PGD), attacked("b", "pgd", steps=2, **PGD)),
        (attacked("a", "pgd", steps=2, **PGD), attacked("b", "pgd", steps=3, eps=0.2, **PGD)),
        (attacked("a", "pgd", steps=3, **PGD), attacked("b", "pgd", steps=2, eps=0.2, **PGD)),
    ],
)
def test_attacks_that_differ_otherwise_have_no_order(pair):
    table = pd.DataFrame({"a_robust": robust(30), "b_robust": robust(31)})
    assert module.ordering(pair, table).outcome == "not run"


@pytest.mark.parametrize(("broken", "outcome"), [(0, "passed"), (1, "tripped"), (3, "tripped")])
def test_what_square_breaks_last_is_a_share_of_the_images_attacked(broken, outcome):
    by = ["square"] * broken + ["fab-t"] * 5 + [None] * (95 - broken)
    table = pd.DataFrame({"aa_broken_by": pd.Series(by, dtype="string")})
    check = module.square_last([attacked("aa", "auto_attack")], table)
    assert (check.outcome, check.values["excess"]) == (outcome, broken)


@pytest.mark.parametrize(("gap", "outcome"), [(10, "passed"), (11, "tripped")])
def test_autoattack_may_be_ten_points_below_the_strongest_pgd(gap, outcome):
    parts = [attacked("aa", "auto_attack"), attacked("weak", "pgd"), attacked("pgd", "pgd")]
    counts = {"aa": 40, "weak": 90, "pgd": 40 + gap}
    table = pd.DataFrame({f"{name}_robust": robust(count) for name, count in counts.items()})
    check = module.pgd_gap(parts, table)
    assert check.outcome == outcome
    assert check.values["excess"] == pytest.approx(gap)


@pytest.mark.parametrize(("after", "outcome"), [(200, "passed"), (199, "tripped")])
def test_not_one_answer_may_change_at_radius_zero(after, outcome):
    assert module.zero_radius(probe(200, after, 200)).outcome == outcome


@pytest.mark.parametrize(("left", "outcome"), [(5, "passed"), (6, "tripped")])
def test_a_twentieth_may_survive_a_radius_that_reaches_grey(left, outcome):
    check = module.large_radius(probe(80, left, 100))
    assert check.outcome == outcome
    assert check.values == pytest.approx({"robust": left, "clean": 80})


@pytest.mark.parametrize(("others", "outcome"), [(5, "passed"), (6, "tripped")])
def test_a_twentieth_of_the_images_may_be_of_a_class_never_predicted(others, outcome):
    labels = [1] * others + [0] * (100 - others)
    check = module.predicted_classes(pd.DataFrame({"label": labels, "prediction": 0}))
    assert check.outcome == outcome
    assert check.values["unpredicted"] == pytest.approx(others)


def test_zero_gradients_are_a_share_of_the_correct_images():
    correct, zero = [True] * 200 + [False], [True] + [False] * 199 + [True]
    check = module.zero_gradient(pd.DataFrame({"clean_correct": correct, "zero_gradient": zero}))
    assert (check.outcome, check.values["share"]) == ("tripped", 0.5)


def probe(before: int, after: int, of: int) -> Probe:
    return Probe("aa", torch.tensor(robust(before, of)), torch.tensor(robust(after, of)), 0.1)


@pytest.mark.parametrize(
    ("before", "after", "of", "outcome"),
    [
        (4000, 4200, 10000, "passed"),
        (4000, 4300, 10000, "tripped"),
        (4300, 4000, 10000, "tripped"),  # AutoAttack missed what is near the boundary
        (10, 12, 32, "passed"),  # two images of 32 are chance
        (10, 20, 32, "tripped"),
    ],
)
def test_autoattack_and_the_boundary_agree_within_two_points_and_chance(before, after, of, outcome):
    assert module.boundary_distance(probe(before, after, of)).outcome == outcome


@pytest.mark.parametrize(
    ("before", "after", "of", "outcome"),
    [(600, 540, 1000, "passed"), (600, 530, 1000, "tripped"), (20, 16, 32, "passed")],
)
def test_rescaled_logits_may_gain_a_little(before, after, of, outcome):
    check = module.rescaled_apgd(probe(before, after, of))
    assert check.outcome == outcome
    assert check.threshold == pytest.approx(5 + 200 * (before - after) ** 0.5 / of)
    assert check.values == pytest.approx(
        {
            "broken_more": 100 * (before - after) / of,
            "plain": 100 * before / of,
            "worst_case": 100 * after / of,
        }
    )


def titles_of(attacks: dict[str, Any], **kwargs: Any) -> tuple[set[str], Evaluation]:
    seen: set[str] = set()
    x, y = images()
    found = evaluate(
        Centroids(),
        x,
        y,
        Request(attacks, EPS, **kwargs),
        progress=lambda title, done, total: seen.add(title),
    )
    return seen, found


def test_the_boundary_is_that_of_the_requests_own_fab_if_it_has_one():
    seen, found = titles_of({"aa": SMALL, "fab": FabT(10)})
    values = by_name(found)["boundary_distance"].values
    assert "checks/boundary_distance" not in seen
    assert (values["farther"], values["autoattack"]) == (value(found, "fab"), value(found, "aa"))
    seen, found = titles_of({"aa": SMALL, "fab": FabT(10, eps=2 * EPS)})
    assert "checks/boundary_distance" in seen
    assert by_name(found)["boundary_distance"].values["farther"] > value(found, "fab")


def test_a_boundary_that_cannot_be_found_trips():
    attack = AutoAttack("custom", n_iter=2, targets=1, queries=200)
    found = run(Quantised(), {"aa": attack}, images(100), eps=0.2)
    assert "boundary_distance" in tripped(found)
    values = by_name(found)["boundary_distance"].values
    assert values["farther"] > values["autoattack"] + 20


def test_the_search_for_the_boundary_agrees_with_a_linear_networks_own_distance():
    net = Centroids().double()
    x, y = images()
    x, w = x.double() / 255, net.linear.weight.detach()
    z = net(x).detach()
    gap = z.gather(1, y[:, None]) - z
    slope = (w[y][:, None] - w[None]).abs().sum(2)
    distance = (gap / slope.where(slope > 0, torch.inf)).masked_fill(slope == 0, torch.inf).amin(1)
    correct = z.argmax(1) == y
    moved = Nearest()(net, x, y, EPS, "linf", torch.Generator())
    broken = (net(moved).argmax(1) != y) & correct
    assert (moved - x).abs().amax() <= EPS * (1 + 1e-9)
    # FAB's points are half a percent too far; inside the box the distance is the closed form.
    assert broken[correct & (distance < 0.98 * EPS)].all()
    assert not broken[correct & (distance > EPS)].any()
    assert 20 < broken.sum() < correct.sum() - 20


def test_a_typical_gap_becomes_half_the_sharpness():
    z = torch.tensor([[2.0, 0, -1], [6, 0, 0]])
    assert logit_gap(rescale(z, typical=2.0)).tolist() == pytest.approx([5, 7.5])
    assert torch.equal(rescale(torch.zeros(1, 3), 0.0), torch.zeros(1, 3))


def test_a_single_class_has_no_gap():
    assert logit_gap(torch.ones(3, 1)).tolist() == [0, 0, 0]
    assert logit_gap(torch.tensor([[1.0, 5, 3]])).tolist() == [2]


@pytest.mark.parametrize(("targets", "found"), [(1, False), (2, True)])
def test_the_search_goes_towards_the_most_likely_rivals_first(targets, found):
    """The boundary of the second class is 0.11 away, that of the third, less likely, 0.02."""

    def trap(x: Tensor) -> Tensor:
        a, b = x.flatten(1).unbind(1)
        return torch.stack([0 * a, 0.2 - a - b, 10 * b - 10 * a - 0.6], 1)

    x = torch.tensor([0.2, 0.22]).view(1, 1, 1, 2)
    near = Nearest(steps=5, targets=targets)
    point = near(trap, x, torch.tensor([0]), 0.05, "linf", torch.Generator())
    assert bool((trap(point).argmax(1) != 0).item()) == found


def test_rescaled_logits_have_healthy_gaps_at_any_scale():
    z = 5 * torch.randn(200, 10, generator=generator(0, "test/logits"), dtype=torch.float64)
    typical = logit_gap(z).mean().item()
    for factor in (1.0, 1e-6, 1e6):
        scaled = rescale(factor * z, factor * typical)
        assert torch.allclose(scaled, rescale(z, typical))
    assert (logit_gap(scaled) < SHARPNESS).all()
    assert torch.equal(scaled.argmax(1), z.argmax(1))
    # A larger gap stays one: the loss of APGD's step control still has an order.
    assert torch.equal(logit_gap(scaled).argsort(), logit_gap(z).argsort())
    assert rescale(torch.zeros(2, 3), 0.0).isfinite().all()


def test_without_diagnosis_nothing_is_checked_or_paid_for():
    attacks = {"clean": None, "fgsm": Fgsm(), "apgd_ce": ApgdCe(3), "aa": SMALL}
    grads: list[bool] = []
    net = Centroids()
    net.register_forward_hook(lambda m, inputs, z: grads.append(z.requires_grad))
    found = run(net, {"clean": None, "spsa": Spsa(2, 1)}, diagnose=False)
    assert not any(grads)
    seen, found = titles_of(attacks, diagnose=False)
    assert not any(title.startswith("checks/") for title in seen)
    assert (found.checks, found.flags) == ((), ())
    assert not {"zero_gradient", "logit_gap"} & set(found.examples)
    assert "checks" not in found.seconds
    seen, diagnosed = titles_of(attacks)
    assert {f"checks/{name}" for name in NAMES} <= seen
    assert diagnosed.entries == found.entries


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_diagnosis_goes_on_where_it_stopped(name, tmp_path):
    x, y = images(20)
    attack = AutoAttack("custom", n_iter=2, targets=1, queries=2)
    request = Request({"fgsm": Fgsm(), "aa": attack}, EPS, batch_size=10)
    seen: list[str] = []

    def attempt(stop: Callable[[], bool]) -> Evaluation:
        seen.clear()
        path = tmp_path / "partial"
        progress = lambda title, done, total: seen.append(title)  # noqa: E731
        return evaluate(
            Centroids(), x, y, request, progress=progress, should_stop=stop, partial=path
        )

    with pytest.raises(InterruptedRunError, match=f"checks/{name}"):
        attempt(lambda: seen[-1:] == [f"checks/{name}"])
    done = set(seen) - {"clean", f"checks/{name}"}
    resumed = attempt(lambda: False)
    assert not done & set(seen)
    assert f"checks/{name}" in seen
    fresh = evaluate(Centroids(), x, y, request)
    assert resumed.checks == fresh.checks
    assert resumed.examples.equals(fresh.examples)
    # A third time all of it is known.
    assert attempt(lambda: False).checks == fresh.checks
    assert set(seen) == {"clean"}


def test_diagnoses_repeat_and_batches_do_not_matter(healthy):
    again = run(Centroids(), SUITE)
    assert again.checks == healthy.checks
    small = run(Centroids(), {"pgd20": SUITE["pgd20"]}, batch_size=7)
    whole = run(Centroids(), {"pgd20": SUITE["pgd20"]})
    assert by_name(small)["large_radius"] == by_name(whole)["large_radius"]


def test_a_network_that_is_always_wrong_has_nothing_to_check():
    x, y = images(40)
    found = run(Centroids(), SUITE, (x, (y + 1) % 10))
    idle = {check.name: check.text for check in found.checks if check.outcome == "not run"}
    del idle["predicted_classes"]
    assert idle.keys() == {"logit_gap", "zero_gradient", *NAMES}
    assert set(idle.values()) == {"needs a correctly classified image"}
    assert found.flags == ()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_and_few_images_are_checked_as_well(classes):
    net, data = Centroids(classes, 6.0), images(32, classes)
    attacks = {"fgsm": Fgsm(), "apgd_ce": ApgdCe(10), "aa": SMALL}
    found = run(net, attacks, data)
    assert tripped(found) == set()
    ran = {check.name for check in found.checks if check.outcome == "passed"}
    assert ran >= {"logit_gap", "rescaled_apgd", "zero_radius", "large_radius", "boundary_distance"}
    masked = run(Centroids(classes, 6e4), attacks, data, eps=0.2)
    assert tripped(masked) >= {"logit_gap", "zero_gradient", "rescaled_apgd", "large_radius"}


def test_subsets_of_attacks_are_compared_on_their_own_images():
    attacks = {"apgd_ce": ApgdCe(5, n=20), "aa": AutoAttack("custom", n_iter=5, queries=5, n=30)}
    found = run(Centroids(), attacks, n=80)
    assert "same 20 images" in by_name(found)["rescaled_apgd"].text
    assert "same 30 images" in by_name(found)["boundary_distance"].text
    assert by_name(found)["rescaled_apgd"].values["plain"] == pytest.approx(value(found, "apgd_ce"))
    assert by_name(found)["boundary_distance"].values["autoattack"] == value(found, "aa")


class Recorder:
    """A tracker that keeps its summary."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def summary(self, values: Any) -> None:
        self.values.update(values)


def masked_record(run_: Run, attacks: dict[str, Any]) -> Evaluation:
    net: Any = Centroids(scale=2e4)
    node = EvaluationConfig(attacks, None, "test", EPS, "linf", 50, 0, None, None)
    subject = attack.Subject("last", "raw", EPS, "linf", node)
    with run_.open("seed: 0\n"):
        found = subject.record(run_, net, ImageSet(*images(40)), lambda: False)
        assert found is not None
        return found


@pytest.fixture
def run_dir(tmp_path) -> Run:
    return Run(tmp_path / "run-0123456789", "0123456789")


def test_a_tripped_check_reaches_the_result_the_report_and_the_terminal(run_dir):
    found = masked_record(run_dir, {"clean": None, "apgd_ce": ApgdCe(10)})
    result = json.loads(run_dir.result_path.read_text())
    names = [check["name"] for check in result["checks"]]
    assert names == list(ALL)
    first = result["checks"][0]
    place = {"checkpoint": "last", "weights": "raw", "split": "test"}
    assert first.items() >= {**place, "name": "logit_gap", "outcome": "tripped"}.items()
    assert first["values"]["mean"] > 1000
    assert result["flags"] == list(found.flags)
    assert all(number.flags == found.flags for number in read(run_dir.path).measurements)
    lines = summary.result_table(run_dir).splitlines()
    assert "checks: 1 passed, 4 tripped, 7 not run" in lines
    assert [line for line in lines if line.startswith("warning: ")] == [
        f"warning: {flag}" for flag in found.flags
    ]
    # Another evaluation adds what it ran; what it did not run stays as it was.
    masked_record(run_dir, {"fgsm": Fgsm(), "pgd20": Pgd(20, 0.25)})
    assert "checks: 2 passed, 4 tripped, 6 not run" in summary.result_table(run_dir).splitlines()


def test_records_without_checks_are_read_as_before(run_dir):
    masked_record(run_dir, {"clean": None})
    (path,) = run_dir.evaluations.glob("*.json")
    record = json.loads(path.read_text())
    del record["checks"]
    path.write_text(json.dumps(record))
    result = run_dir.result()
    assert result is not None
    assert "checks" not in result
    assert "checks" not in summary.result_table(run_dir)
    assert len(read(run_dir.path).measurements) == 1


def test_selection_is_not_diagnosed_and_results_reach_the_tracker(tmp_path, monkeypatch):
    config = compose_config(
        *("data=digits", "evaluation=quick", "evaluation.n=30", f"runs_dir={tmp_path}")
    )
    data = setup.load_images(config, torch.device("cpu"))
    net = setup.build_net(config, data.train, config.phases[-1].method, torch.device("cpu"))
    with torch.no_grad():
        for weight in list(net.parameters())[-2:]:
            weight.mul_(1e5)
    requests: list[Request] = []

    def spy(*arguments: Any, **options: Any) -> Evaluation:
        requests.append(arguments[3])
        return evaluate(*arguments, **options)

    monkeypatch.setattr("ablation.jobs.attack.evaluate", spy)
    monkeypatch.setattr("ablation.jobs.setup.evaluate", spy)
    monkeypatch.setattr("ablation.jobs.attack.build_net", lambda *_: net)
    monkeypatch.setattr("ablation.jobs.attack.load_into", lambda *_: None)
    assert set(setup.validator(config, data, lambda: False)(net)) == {"val_clean", "val_robust"}
    tracker: Any = Recorder()
    run_ = Run(config.run_dir, config.train_id)
    monkeypatch.setattr(run_.checkpoints, "load_weights", lambda *_: {})
    with run_.open("seed: 0\n"):
        attack.evaluate_checkpoint(
            *(config, run_, "last", config.evaluation, data, torch.device("cpu")),
            *(lambda: False, tracker),
        )
    assert [request.diagnose for request in requests] == [False, True]
    assert tracker.values["last/checks/logit_gap"] == "tripped"
    assert tracker.values["last/checks/logit_gap/mean"] > 17
    assert "last/checks/rescaled_apgd" not in tracker.values
    flags = (run_.result() or {})["flags"]
    assert tracker.values["flags"] == len(flags) > 0
    assert tracker.values["flags_text"] == "; ".join(flags)
