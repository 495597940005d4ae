"""Effective and Taylor margins: the specification's numbers, invariances, and what stays as it was;
the metrics that print them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ablation import job
from ablation.boundary import dual_norm
from ablation.collect import IMMATERIAL, Found, mismatches
from ablation.config import check
from ablation.errors import InputError
from ablation.evaluation import EffectiveMargin, Pgd, Request, SplitName, describe, evaluate
from ablation.functional import margin
from ablation.margins import effective_margin, summarise, survey, top_margin
from tests.helpers import compose_config, compose_plain
from tests.parts import small_batch, small_net

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


def run(measure: EffectiveMargin, split: SplitName = "test", **more):
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
    test, train = job.evaluations(config)
    assert (test.split, list(test.attacks)) == ("test", ["clean", "pgd10", "pgd20", "margin_test"])
    assert (train.split, list(train.attacks), train.n) == ("train", ["margin_train"], None)
    alone = compose_config("evaluation=emr_margins", "~evaluation.attacks.margin_train")
    both = compose_config("evaluation=emr_margins")
    ids = [
        [job.eval_id(node, c.eps, c.norm, "raw") for node in job.evaluations(c)]
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
     ("clean", "val", "clean_val"), ("margin", "train", "margin_train")],
)  # fmt: skip
def test_a_column_names_the_split_once(metric, split, column):
    found = Found(metric, split, "last", "raw", 1.0, "margin", 3, {}, (), "0", None)
    assert found.column == column
