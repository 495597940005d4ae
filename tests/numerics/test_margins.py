"""Effective and Taylor margins: the specification's numbers, invariances, and what stays as it was;
the metrics that print them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.config import evaluations
from ablation.config.validation import check
from ablation.errors import InputError
from ablation.evaluation import EffectiveMargin, Pgd, Request, SplitName, describe, evaluate
from ablation.evaluation.measures import AdversarialMargin
from ablation.numerics.boundary import dual_norm
from ablation.numerics.functional import margin
from ablation.numerics.margins import effective_margin, summarise, survey, top_margin
from ablation.reports.deviations import IMMATERIAL, mismatches
from ablation.reports.records import Measurement
from tests.support.configs import compose_config, compose_plain
from tests.support.parts import small_batch, small_net

W = torch.tensor(
    [[1, -2, 0.5, 0.3], [-0.5, 1, 0.25, -0.6], [0.2, 0.4, -1, 0.8]], dtype=torch.float64
)
B = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
X = torch.tensor([[0.6, 0.3, 0.5, 0.4], [0.1, 0.9, 0.2, 0.3]], dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    """L3 of methods-margin.md, section 0."""
    return x @ W.T + B


def by_hand(net: nn.Module, x: Tensor, y: Tensor, q: float) -> Tensor:
    """Every class's gradient on its own, image by image: [N, K], infinite at the true class."""
    rows = []
    for image, label in zip(x, y.tolist(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: net(p[None])[0], image).flatten(1)
        z = net(image[None])[0]
        lengths = torch.linalg.vector_norm(jacobian[label] - jacobian, q, dim=1)
        row = (z[label] - z) / lengths
        row[label] = torch.inf
        rows.append(row.detach())
    return torch.stack(rows)


def test_the_specifications_numbers():
    found = effective_margin(linear, X, torch.tensor([0, 1]))
    expected = torch.tensor([0.1206723, 0.0239114], dtype=torch.float64)
    torch.testing.assert_close(found.value, expected, atol=1e-6, rtol=0)
    assert found.value.mean().item() == pytest.approx(0.0722918, abs=1e-6)
    wrong = effective_margin(linear, X[:1], torch.tensor([1])).value
    assert wrong.item() == pytest.approx(-0.2254621, abs=1e-6)
    assert not found.zero_gradient.any()


@pytest.mark.parametrize(("norm", "q"), [("l2", 2), ("linf", 1), ("l1", math.inf)])
def test_all_classes_count_and_each_gradient_is_its_samples_own(norm, q):
    net, batch = small_net().eval(), small_batch()
    expected = by_hand(net, batch.x, batch.y, q)
    found = effective_margin(net, batch.x, batch.y, norm)
    torch.testing.assert_close(found.value, expected.amin(1), atol=1e-9, rtol=1e-9)
    top = top_margin(net, batch.x, batch.y, norm)
    rival = net(batch.x).scatter(1, batch.y[:, None], -torch.inf).argmax(1)
    chosen = expected.gather(1, rival[:, None]).squeeze(1)
    torch.testing.assert_close(top.value, chosen, atol=1e-6, rtol=1e-5)


def test_the_nearest_class_need_not_have_the_highest_logit():
    x, y = X[:1], torch.tensor([0])
    z = linear(x)
    assert z[0, 2] > z[0, 1]
    top, nearest = (f(linear, x, y, "l2").value.item() for f in (top_margin, effective_margin))
    assert top == pytest.approx(nearest)  # here it has
    steep = torch.tensor([[1.0, 0], [10, 0], [0, 0.1]], dtype=torch.float64)
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    bias = torch.tensor([1, -5, 1.2], dtype=torch.float64)  # z = (1.5, 0, 1.25)
    net = lambda p: p @ steep.T + bias  # noqa: E731
    nearest = effective_margin(net, x, torch.tensor([0])).value.item()
    top = top_margin(net, x, torch.tensor([0]), "l2").value.item()
    assert nearest == pytest.approx(1.5 / 9)
    assert top == pytest.approx(0.25 / math.hypot(1, 0.1), rel=1e-6)
    assert nearest < top


@pytest.mark.parametrize("factor", [0.5, 2.0, 1e3])
def test_scaled_logits_and_a_constant_added_to_all_change_nothing(factor):
    net, batch = small_net().eval(), small_batch()
    before = effective_margin(net, batch.x, batch.y).value
    after = effective_margin(lambda p: factor * net(p) + 7, batch.x, batch.y).value
    torch.testing.assert_close(after, before, atol=0, rtol=1e-7)


def test_two_classes_have_the_distance_to_a_hyperplane():
    w = torch.tensor([[2.0, -1.0], [-1.0, 3.0]], dtype=torch.float64)
    x = torch.tensor([[0.2, 0.9], [0.8, 0.1]], dtype=torch.float64)
    found = effective_margin(lambda p: p @ w.T, x, torch.tensor([1, 1])).value
    expected = (x @ (w[1] - w[0])) / (w[1] - w[0]).norm()
    torch.testing.assert_close(found, expected)
    top = top_margin(lambda p: p @ w.T, x, torch.tensor([1, 1]), "l2").value
    torch.testing.assert_close(top, expected, atol=1e-8, rtol=1e-7)


def test_stepping_to_the_margin_reaches_the_boundary_of_a_linear_network():
    y = torch.tensor([0, 1])
    found = effective_margin(linear, X, y)
    for norm in ("l2", "linf"):
        reach = effective_margin(linear, X, y, norm).value
        shifts = []
        for i, label in enumerate(y.tolist()):
            gaps = [(margin_to, j) for j, margin_to in enumerate(_to_each(i, label, norm))]
            _, j = min((g, j) for g, j in gaps if j != label)
            w = W[label] - W[j]
            way = w / w.norm() if norm == "l2" else w.sign()
            shifts.append(X[i] - reach[i] * way)
        assert margin(linear(torch.stack(shifts)), y).abs().max() < 1e-10
    assert (found.value > 0).all()


def _to_each(i: int, label: int, norm: str) -> list[float]:
    z = linear(X[i : i + 1])[0]
    w = W[label] - W
    lengths = w.norm(dim=1) if norm == "l2" else w.abs().sum(1)
    return [float((z[label] - z[j]) / lengths[j]) if j != label else math.inf for j in range(3)]


def test_gradients_that_vanish_are_counted_not_divided_by():
    def dead(x: Tensor) -> Tensor:
        """Constant logits at the second sample, for every class."""
        alive = torch.tensor([1.0, 0.0], dtype=x.dtype)[:, None]
        return linear(x * alive)

    found = effective_margin(dead, X, torch.tensor([0, 1]))
    assert found.zero_gradient.tolist() == [False, True]
    assert found.value.isfinite().all()
    assert found.value[0].item() == pytest.approx(0.1206723, abs=1e-6)
    assert top_margin(dead, X, torch.tensor([0, 1])).zero_gradient.tolist() == [False, True]
    for f in (effective_margin, top_margin):
        constant = f(lambda x: B.expand(len(x), 3), X, torch.tensor([0, 1]))
        assert constant.zero_gradient.all()


def test_a_class_without_gradient_that_is_not_the_nearest_is_no_zero():
    w = torch.tensor([[1.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    bias = torch.tensor([0, -1, 0], dtype=torch.float64)  # z_0 - z_1 is 1 everywhere
    x = torch.tensor([[0.9, 0.2]], dtype=torch.float64)
    found = effective_margin(lambda p: p @ w.T + bias, x, torch.tensor([0]))
    assert not found.zero_gradient.any()
    assert found.value.item() == pytest.approx(0.7 / math.sqrt(2))


def test_logits_that_do_not_depend_on_the_image_have_no_gradient():
    """They need one with respect to something else: here, to themselves."""
    z = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    found = top_margin(lambda x: z.expand(len(x), 3), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert found.zero_gradient.all()


def test_a_survey_sees_saturation():
    flat = lambda p: 1e4 * linear(p)  # noqa: E731
    y = torch.tensor([0, 1])
    calm, hot = survey(linear, X, y, "l2"), survey(flat, X, y, "l2")
    assert not calm.zero_gradient.any()
    assert hot.zero_gradient[0]
    top = linear(X).topk(2, 1).values
    torch.testing.assert_close(calm.logit_gap, top[:, 0] - top[:, 1])
    torch.testing.assert_close(hot.logit_gap, 1e4 * calm.logit_gap)
    torch.testing.assert_close(hot.margin, calm.margin, atol=0, rtol=1e-6)
    torch.testing.assert_close(calm.margin, top_margin(linear, X, y, "l2").value)


def test_a_taylor_margin_divides_by_the_dual_norm_of_the_top_gap():
    net, batch = small_net().eval(), small_batch()
    x = batch.x.clone().requires_grad_(True)
    phi = margin(net(x), batch.y)
    (grad,) = torch.autograd.grad(phi.sum(), x)
    expected = phi.detach() / dual_norm(grad, "linf")
    torch.testing.assert_close(top_margin(net, batch.x, batch.y, "linf").value, expected)


@pytest.mark.parametrize("measure", [effective_margin, top_margin, survey])
def test_a_network_gets_everything_back(measure):
    net, batch = small_net().train(), small_batch()
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    next(net.parameters()).requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    x = batch.x.clone()
    state = torch.get_rng_state()
    with torch.no_grad():
        found = measure(net, x, batch.y)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad
    assert not any(value.requires_grad for value in vars(found).values())
    again = measure(net.eval(), x, batch.y)  # it was measured in evaluation mode
    pairs = zip(vars(found).values(), vars(again).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_summary_counts_what_it_is_told_to():
    value = torch.tensor([1.0, 3.0, -50.0, torch.nan])
    counted = torch.tensor([True, True, False, False])
    assert summarise(value, counted) == (2.0, 1.0)
    assert all(map(math.isnan, summarise(value, torch.zeros(4, dtype=torch.bool))))


# The metric


def images() -> tuple[Tensor, Tensor]:
    batch = small_batch(n=12)
    return batch.x.float(), batch.y


def run(measure: EffectiveMargin | AdversarialMargin, split: SplitName = "test", **more):
    net = small_net().float()
    x, y = images()
    request = Request({"clean": None, "margin": measure}, 0.1, split=split, batch_size=5, **more)
    return evaluate(net, x, y, request), net.eval()


def test_the_metric_is_the_mean_over_correct_images():
    found, net = run(EffectiveMargin())
    x, y = images()
    margins = effective_margin(net, x, y).value.double()
    correct = net(x).argmax(1) == y
    assert 0 < int(correct.sum()) < len(y)
    clean, entry = found.entries
    assert (entry.metric, entry.unit, entry.n) == ("margin", "margin", 12)
    assert entry.value == pytest.approx(margins[correct].mean().item(), rel=1e-5)
    assert entry.params["std"] == pytest.approx(margins[correct].std(correction=0).item(), rel=1e-5)
    assert entry.params["mean_all"] == pytest.approx(margins.mean().item(), rel=1e-4)
    assert entry.params["correct"] == int(correct.sum()) == round(clean.value * 12 / 100)
    assert entry.params["zero_gradients"] == 0
    assert (entry.params["measure"], entry.params["norm"]) == ("effective_margin", "l2")
    table = torch.tensor(found.examples["margin"].to_numpy())
    torch.testing.assert_close(table, margins, atol=1e-6, rtol=1e-4)
    assert "margin" in found.seconds


def test_a_cap_takes_a_subset_and_leaves_the_rest_out():
    found, _ = run(EffectiveMargin(n=4))
    assert found.entries[1].n == 4
    assert int(found.examples["margin"].notna().sum()) == 4


def test_images_without_gradient_are_left_out_with_a_warning():
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = (x.flatten(1).mean(1) > 0.5).to(x.dtype)[:, None]
            return torch.cat([x.flatten(1)[:, :1] * bright + 1, 0 * x.flatten(1)[:, :2]], 1)

    x, _ = images()
    y = torch.zeros(len(x), dtype=torch.long)
    bright = x.flatten(1).mean(1) > 0.5
    assert 0 < int(bright.sum()) < len(x)
    found = evaluate(Dead(), x, y, Request({"margin_test": EffectiveMargin()}, 0.1))
    (entry,) = found.entries
    expected = x.flatten(1)[bright, 0].double() + 1
    assert entry.value == pytest.approx(expected.mean().item(), rel=1e-5)
    assert entry.params["zero_gradients"] == int((~bright).sum())
    assert any(f.startswith(f"margin_test: {int((~bright).sum())} of 12 ") for f in found.flags)


def test_without_a_correct_image_there_is_no_margin():
    x, _ = images()
    net = small_net().float().eval()
    wrong = net(x).argmin(1)
    found = evaluate(net, x, wrong, Request({"margin_test": EffectiveMargin()}, 0.1))
    assert math.isnan(found.entries[0].value)
    assert math.isfinite(found.entries[0].params["mean_all"])
    assert found.entries[0].params["correct"] == 0


def test_a_measure_is_not_run_on_images_of_another_split():
    with pytest.raises(InputError, match="measured on train images"):
        run(EffectiveMargin(split="train"))
    assert run(EffectiveMargin(split="train"), split="train")[0].entries[1].split == "train"


def test_a_measure_with_a_split_of_its_own_is_an_evaluation_of_its_own():
    config = compose_config("evaluation=emr_margins", "data.train_size=100", "evaluation.n=200")
    test, train = evaluations.evaluations(config)
    assert (test.split, list(test.attacks)) == ("test", ["clean", "pgd10", "pgd20", "margin_test"])
    assert (train.split, list(train.attacks), train.n) == ("train", ["margin_train"], None)
    alone = compose_config("evaluation=emr_margins", "~evaluation.attacks.margin_train")
    both = compose_config("evaluation=emr_margins")
    ids = [
        [evaluations.eval_id(node, c.eps, c.norm, "raw") for node in evaluations.evaluations(c)]
        for c in (alone, both)
    ]
    assert ids[1][:1] == ids[0]
    assert len(set(ids[1])) == 2
    assert alone.train_id == both.train_id


def test_splits_that_contradict_each_other_are_named():
    _, problems = check(compose_plain("evaluation=emr_margins", "evaluation.val=[margin_test]"))
    assert any("stays on its images" in problem for problem in problems)
    _, problems = check(
        compose_plain(
            *("evaluation=emr_margins", "evaluation.attacks.margin_test.split=val"),
            *("data.val_size=0", "selection.n=null", "selection.metric=last"),
        )
    )
    assert any("data.val_size=0 leaves no such images" in problem for problem in problems)


def test_what_a_measure_found_does_not_tell_its_numbers_apart():
    wanted = describe(EffectiveMargin(split="train"), 0.1, "linf", 10)
    found, _ = run(EffectiveMargin())
    params = found.entries[1].params
    assert set(params) - set(wanted) <= set(IMMATERIAL)
    assert mismatches(params, wanted) == ()
    assert mismatches(params, describe(EffectiveMargin(norm="linf"), 0.1, "linf", 10)) == (
        "norm l2, not linf",
    )
    assert describe(Pgd(2, 0.5), 0.1, "linf", 10)["attack"] == "pgd"


@pytest.mark.parametrize(
    ("metric", "split", "column"),
    [("margin_train", "train", "margin_train"), ("margin_test", "test", "margin_test"),
     ("clean", "val", "clean_val"), ("margin", "train", "margin_train"),
     ("margin_adv_train", "train", "margin_adv_train")],
)  # fmt: skip
def test_a_column_names_the_split_once(metric, split, column):
    found = Measurement(metric, split, "last", "raw", 1.0, "margin", 3, {}, (), "0", None)
    assert found.column == column


# At the points of an attack


def attack(**more: Any) -> Pgd:
    return replace(Pgd(3, 1.0, "clean", eps=0.1, norm="linf"), **more)


class Halfspace(nn.Module):
    """z_0 - z_1 = w x + b in fp32; its margins have a closed form at every point."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        gap = x.flatten(1) @ self.w + self.b
        return torch.stack([gap, torch.zeros_like(gap)], 1)


def halfspace() -> tuple[Halfspace, Tensor, Tensor]:
    """Images [12, 1, 1, 4] far enough from 0 and 1 that an attack is not clamped; labels 0."""
    g = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(12, 1, 1, 4, generator=g)
    return Halfspace(torch.tensor([1.0, -2.0, 0.5, -1.5]), 1.0), x, torch.zeros(12).long()


@pytest.mark.parametrize(
    ("norm", "lost"), [("linf", 0.1 * 5), ("l2", 0.1 * math.sqrt(1 + 4 + 0.25 + 2.25))]
)
def test_an_attack_takes_its_radius_times_the_dual_norm_from_every_gap(norm, lost):
    net, x, y = halfspace()
    gap = net(x)[:, 0].detach().double()
    adversarial = (gap - lost) / net.w.detach().double().norm()
    kept = adversarial > 0
    assert 0 < int(kept.sum()) < int((gap > 0).sum()) < len(x)
    measure = AdversarialMargin(attack(norm=norm))
    request = Request({"clean": None, "m": EffectiveMargin(), "adv": measure}, 0.3, batch_size=5)
    found = evaluate(net, x, y, request)
    _, clean, entry = found.entries
    table = torch.tensor(found.examples["adv"].to_numpy())
    torch.testing.assert_close(table, adversarial, atol=1e-5, rtol=0)
    assert entry.value == pytest.approx(adversarial[kept].mean().item(), abs=1e-5)
    assert entry.params["std"] == pytest.approx(
        adversarial[kept].std(correction=0).item(), abs=1e-5
    )
    assert entry.params["mean_all"] == pytest.approx(adversarial.mean().item(), abs=1e-5)
    assert entry.params["mean_all"] == pytest.approx(
        clean.params["mean_all"] - lost / net.w.detach().norm().item(), abs=1e-5
    )
    assert (entry.params["correct"], entry.n, entry.unit) == (int(kept.sum()), 12, "margin")


def test_the_points_are_the_attacks_own_and_no_batch_matters():
    x, y = images()
    net = small_net().float().eval()
    point = attack(step_size=0.25)(net, x, y, 0.1, "linf", torch.Generator())
    expected = effective_margin(net, point, y).value.double()
    measure = AdversarialMargin(attack(step_size=0.25))
    for size in (5, 12):
        request = Request({"adv": measure}, 0.3, batch_size=size)
        table = torch.tensor(evaluate(net, x, y, request).examples["adv"].to_numpy())
        torch.testing.assert_close(table, expected, atol=1e-5, rtol=1e-4)
    still = AdversarialMargin(attack(eps=0.0))
    clean, adversarial = (run(found)[0].entries[1] for found in (EffectiveMargin(), still))
    assert adversarial.value == clean.value
    assert adversarial.params["correct"] == clean.params["correct"]


def test_a_clean_margin_is_never_taken_for_an_adversarial_one():
    clean = describe(EffectiveMargin(), 0.3, "linf", 10)
    found, _ = run(AdversarialMargin(attack()))
    params = found.entries[1].params
    wanted = describe(AdversarialMargin(attack()), 0.3, "l2", 10)
    assert mismatches(params, wanted) == ()
    assert set(params) - set(wanted) <= set(IMMATERIAL)
    assert mismatches(params, clean)
    assert mismatches(clean, wanted)
    for other in (attack(eps=0.2), attack(norm="l2"), attack(steps=4), attack(step_size=0.5)):
        assert mismatches(params, describe(AdversarialMargin(other), 0.3, "linf", 10))
    assert (params["eps"], params["norm"], params["attack_norm"]) == (0.1, "l2", "linf")


def test_a_point_on_the_boundary_is_not_classified_correctly():
    attack = Pgd(steps=1, step_size=1.0, start="clean", eps=0.1, norm="linf")
    values = torch.tensor([0.0, 0.5, 1.0])
    reading = AdversarialMargin(attack=attack).read(values, torch.ones(3, dtype=torch.bool))
    assert (reading.value, reading.facts["correct"]) == (0.75, 2)


def test_where_the_attack_breaks_everything_there_is_no_margin():
    net, x, y = halfspace()
    found = evaluate(net, x, y, Request({"adv": AdversarialMargin(attack(eps=0.3))}, 0.1))
    (entry,) = found.entries
    assert math.isnan(entry.value)
    assert math.isfinite(entry.params["mean_all"])
    assert entry.params["correct"] == 0
    assert not found.flags


def test_points_without_gradient_are_left_out_with_a_warning():
    class Flat(nn.Module):
        """Constant, and right, where the first pixel is above 0.5."""

        def forward(self, x: Tensor) -> Tensor:
            first = x.flatten(1)[:, 0]
            gap = torch.where(first > 0.5, torch.ones_like(first), 4 * first)
            return torch.stack([gap, torch.zeros_like(gap)], 1)

    x = torch.tensor([0.9, 0.8, 0.4, 0.3]).view(4, 1, 1, 1)
    measure = AdversarialMargin(attack(steps=1))
    found = evaluate(Flat(), x, torch.zeros(4).long(), Request({"adv": measure}, 0.1))
    (entry,) = found.entries
    assert entry.value == pytest.approx((0.3 + 0.2) / 2, abs=1e-6)
    assert (entry.params["zero_gradients"], entry.params["correct"]) == (2, 2)
    text = "adv: 2 of 4 correct images have no gradient where attacked: left out"
    assert text in found.flags


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"eps": None}, "a measure inherits neither"),
        ({"norm": None}, "a measure inherits neither"),
        ({"start": "uniform"}, "set attack.start=clean"),
        ({"n": 5}, "set n of the measure"),
    ],
)
def test_an_attack_that_leaves_its_points_open_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        AdversarialMargin(attack(**more))


def test_the_options_attack_has_the_radius_of_training():
    config = compose_config("evaluation=emr_adversarial_margins", "eps=0.2", "evaluation.eps=0.05")
    measure = config.evaluation.attacks["margin_adv_train"]
    assert isinstance(measure, AdversarialMargin)
    assert measure.split == "train"
    facts = measure.describe(0.05, 10)
    assert (facts["eps"], facts["steps"], facts["start"]) == (0.2, 20, "clean")
    assert facts["step_size"] == pytest.approx(0.02)
    assert facts["attack_norm"] == "linf"
    again = check(config.container())[0]
    assert again is not None
    assert again.evaluation == config.evaluation
    _, problems = check(compose_plain("evaluation=emr_adversarial_margins", "evaluation.attacks."
                                      "margin_adv_train.attack.eps=null"))  # fmt: skip
    (problem,) = problems
    assert problem.startswith("evaluation.attacks.margin_adv_train: attack.eps and attack.norm:")


def test_ids_of_clean_margins_are_what_they_were():
    """Finished evaluations are found by these: computed before there were adversarial margins."""
    config = compose_config("evaluation=emr_margins")
    ids = [
        evaluations.eval_id(node, 0.1, "linf", "raw") for node in evaluations.evaluations(config)
    ]
    assert ids == ["926b9e2e62", "4e81daee24"]
