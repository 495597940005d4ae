"""What each validation measures besides accuracies: right numbers, and no trace in the weights."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.config.validation import check, load
from ablation.data import ImageSet, to_float
from ablation.errors import DONE, INTERRUPTED, InterruptedRunError
from ablation.evaluation import Pgd
from ablation.evaluation.judge import never
from ablation.jobs import setup
from ablation.jobs import train as job
from ablation.jobs.monitor import BATCH, Curves, Monitor, fixed_subset, numbers
from ablation.numerics.margins import Survey, effective_margin, top_margin
from ablation.random import generator
from ablation.runs.state_dicts import load_into
from ablation.runs.tracking import NoTracker, WandbTracker
from tests.support.configs import compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, stop_after, weights
from tests.support.parts import small_net

SMALL = (
    "epochs=2",
    "data.train_size=130",
    "selection.attack.steps=1",
    "selection.n=10",
    "attack.steps=1",
    "evaluation=none",
)
QUANTILES = [f"margin_q{q}" for q in (0, 25, 50, 75, 100)]
KEYS = {*QUANTILES, "logit_gap_mean", "logit_gap_p99", "zero_gradient"}


def image_set(n: int, seed: int = 0) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 2, 5, 5), generator=g, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 3)


def unmonitored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in KEYS and not k.startswith("margin_")}
        for row in rows
    ]


def test_the_numbers_of_a_network():
    net, images = small_net().float(), image_set(600)
    found = Monitor(images, "val", "linf", {"test": image_set(40, seed=1)})(net)
    net.eval()
    x, y = to_float(images.images), images.labels
    margins = top_margin(net, x, y, "linf").value.double()
    levels = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.double)
    expected = torch.quantile(margins, levels).tolist()
    assert [found[name] for name in QUANTILES] == pytest.approx(expected, rel=1e-4)
    assert min(expected) < 0 < max(expected)
    top = net(x).detach().topk(2, 1).values.double()
    gap = top[:, 0] - top[:, 1]
    assert found["logit_gap_mean"] == pytest.approx(gap.mean().item(), rel=1e-4)
    assert found["logit_gap_p99"] == pytest.approx(torch.quantile(gap, 0.99).item(), rel=1e-4)
    assert found["zero_gradient"] == 0
    assert (found["margin_split"], found["margin_norm"]) == ("val", "linf")
    test = image_set(40, seed=1)
    effective = effective_margin(net, to_float(test.images), test.labels).value.double()
    right = effective[effective > 0]
    assert 0 < len(right) < 40
    assert found["margin_test"] == pytest.approx(right.mean().item(), rel=1e-4)
    assert found["margin_test_std"] == pytest.approx(right.std(correction=0).item(), rel=1e-4)
    assert "margin_train" not in found


def test_curves_are_accuracies_and_the_loss_under_attack_the_same_in_every_call():
    net, images = small_net().float(), image_set(300)
    attack = Pgd(3, 0.5, "uniform")
    curves = Curves({"test": images}, attack, 8 / 255, "linf", 0)
    found = Monitor(image_set(20), "val", "linf", {}, curves)(net)
    again = Monitor(image_set(20), "val", "linf", {}, curves)(net)
    assert found == again
    net.eval()
    x, y = to_float(images.images), images.labels
    rng = generator(0, "curves", 0)
    points = torch.cat(
        [
            attack(net, a, b, 8 / 255, "linf", rng)
            for a, b in zip(x.split(250), y.split(250), strict=True)
        ]
    )
    right, robust = net(x).argmax(1) == y, net(points).argmax(1) == y
    loss = torch.nn.functional.cross_entropy(net(points), y)
    assert found["curve_test_clean"] == pytest.approx(100 * right.float().mean().item())
    expected = 100 * (right & robust).float().mean().item()
    assert found["curve_test_robust"] == pytest.approx(expected)
    assert 0 < expected < 100 * right.float().mean().item()
    assert found["curve_test_robust_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_curves_choose_nothing_and_change_no_weights(tmp_path):
    runs = []
    for name, extra in (("without", []), ("with", ["monitor.curves=[val,test]"])):
        container = plain(tmp_path / name, *SMALL, *extra)
        assert job.train(container) == DONE
        runs.append(run_of(container))
    assert runs[0].path.name == runs[1].path.name
    assert {"curve_val_robust_loss", "curve_test_clean"} <= metrics(runs[1])[-1].keys()
    assert weights(runs[0]) == weights(runs[1])


def test_curves_of_validation_images_need_some():
    _, problems = check(compose_plain("data.val_size=0", "monitor.curves=[val]"))
    assert any("monitor.curves" in problem for problem in problems)


def test_the_share_of_vanished_gradients_and_the_order_of_quantiles():
    survey = Survey(
        torch.tensor([0.3, -0.1, 0.2, 0.1, 0.4]),
        torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        torch.tensor([True, False, False, False, True]),
    )
    found = numbers(survey)
    assert [found[name] for name in QUANTILES] == pytest.approx([-0.1, 0.1, 0.2, 0.3, 0.4])
    assert found["zero_gradient"] == pytest.approx(0.4)
    assert found["logit_gap_mean"] == 3.0
    assert found["logit_gap_p99"] == pytest.approx(4.96)


def test_a_saturated_network_is_seen_by_its_gap_and_its_gradients_not_by_its_margins():
    net, images = small_net().float().eval(), image_set(90)
    with torch.no_grad():
        labels = net(to_float(images.images)).argmax(1)
    images = ImageSet(images.images, labels)
    watch = Monitor(images, "val", "l2", {})
    calm = watch(net)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.mul_(1e5)
    hot = watch(net)
    assert hot["margin_q50"] == pytest.approx(calm["margin_q50"], rel=1e-3)
    assert hot["logit_gap_mean"] == pytest.approx(1e5 * float(calm["logit_gap_mean"]), rel=1e-3)
    assert calm["zero_gradient"] == 0
    assert float(hot["zero_gradient"]) > 0.5


def test_a_network_in_training_keeps_its_state():
    net, images = small_net().float().train(), image_set(30)
    net(to_float(images.images)).sum().backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    Monitor(images, "val", "linf", {"train": images})(net)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    after = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(after, grads, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_that_changes_its_weights_in_every_pass_is_left_as_it_is():
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, features: Tensor) -> Tensor:
            self.linear.weight.data.mul_(1.01)
            out: Tensor = self.linear(features)
            return out

    head = Restless()
    net = small_net(head=head).float()
    before = head.linear.weight.detach().clone()
    Monitor(image_set(9), "val", "linf", {})(net)
    assert torch.equal(head.linear.weight, before)


def test_the_subset_is_fixed_by_the_seed_and_nested():
    images = image_set(50)
    few, more = fixed_subset(images, 10, seed=0), fixed_subset(images, 20, seed=0)
    assert torch.equal(few.images, more.images[:10])
    assert not torch.equal(few.images, fixed_subset(images, 10, seed=1).images)
    assert len(fixed_subset(images, None, 0)) == len(fixed_subset(images, 500, 0)) == 50
    assert not torch.equal(few.images, images.images[:10])


@pytest.mark.parametrize("more", [(), ("average=ema", "optim.clip=1e-6")])
def test_weights_and_all_other_numbers_are_the_same_with_and_without(tmp_path, more):
    off = plain(tmp_path / "off", *SMALL, *more, "monitor.enabled=false")
    on = plain(tmp_path / "on", *SMALL, *more, "monitor.effective_margin=true", "monitor.n=30")
    assert job.train(off) == job.train(on) == DONE
    assert load(off).train_id == load(on).train_id
    assert weights(run_of(off)) == weights(run_of(on))
    with_, without = metrics(run_of(on)), metrics(run_of(off))
    assert unmonitored(with_) == without
    assert not KEYS & set(without[0])
    for row in with_:
        assert set(row) >= KEYS
        quantiles = [row[name] for name in QUANTILES]
        assert quantiles == sorted(quantiles)
        assert row["margin_split"] == "val"
        assert row["margin_train"] > 0 < row["margin_test"]
    assert with_[0]["margin_q50"] != with_[1]["margin_q50"]
    assert [row.get("clipped") for row in with_] == [1.0 if more else None] * 2


def test_the_averaged_network_is_what_is_measured(tmp_path):
    container = plain(tmp_path, *SMALL, "average=ema", "epochs=1", "monitor.n=40")
    assert job.train(container) == DONE
    config, run = load(container), run_of(container)
    device = torch.device("cpu")
    images = setup.load_images(config, device)
    rows = []
    for averaged in (True, False):
        net = setup.build_net(config, images.train, config.phases[-1].method, device)
        load_into(net, run.checkpoints.load_weights("last", averaged), "last")
        watch = setup.monitor(config, images, never)
        assert watch is not None
        rows.append(watch(net))
    logged = metrics(run)[-1]
    assert {name: logged[name] for name in KEYS} == {name: rows[0][name] for name in KEYS}
    assert logged["margin_q50"] != rows[1]["margin_q50"]


def test_resumed_rows_are_those_of_an_uninterrupted_run(tmp_path, monkeypatch):
    whole, broken = plain(tmp_path / "whole", *SMALL), plain(tmp_path / "broken", *SMALL)
    assert job.train(whole) == DONE
    assert metrics(finish_interrupted(monkeypatch, broken, 3)) == metrics(run_of(whole))
    assert len(metrics(run_of(whole))) == 2


def test_a_run_from_before_there_was_a_monitor_goes_on(tmp_path, monkeypatch):
    container = plain(tmp_path, *SMALL)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert job.train(container) == INTERRUPTED
    path = run_of(container).config_path
    text = path.read_text()
    start = text.index("monitor:")
    end = text.index("\n", text.index("curves:")) + 1
    path.write_text(text[:start] + text[end:])
    assert "monitor" not in path.read_text()
    assert job.train(container) == DONE
    assert len(metrics(run_of(container))) == 2


def test_without_validation_training_images_are_measured_where_it_would_be_validated(tmp_path):
    container = plain(
        *(tmp_path, *SMALL, "epochs=3", "selection.every=2", "optim.clip=1e6"),
        *("data.val_size=0", "selection.n=null", "selection.metric=last"),
    )
    assert job.train(container) == DONE
    rows = metrics(run_of(container))
    assert [row.get("margin_split") for row in rows] == [None, "train", "train"]
    assert ["margin_q50" in row for row in rows] == [False, True, True]
    assert math.isfinite(rows[1]["margin_q50"])
    assert [row["clipped"] for row in rows] == [0.0] * 3


def test_curves_and_histograms_go_to_the_tracker(tmp_path, monkeypatch):
    class Recorder(NoTracker):
        rows: list[tuple[int, dict[str, float]]] = []  # noqa: RUF012
        histograms: list[tuple[str, int, int]] = []  # noqa: RUF012

        def log(self, row, epoch):
            self.rows.append((epoch, dict(row)))

        def histogram(self, name, values, epoch):
            self.histograms.append((name, len(values), epoch))
            assert sorted(values)[0] == self.rows[-1][1]["margin_q0"]

    tracker = Recorder()
    monkeypatch.setattr("ablation.jobs.setup.start", lambda *args, **options: tracker)
    assert job.train(plain(tmp_path, *SMALL, "monitor.n=25")) == DONE
    assert tracker.histograms == [("margins", 25, 0), ("margins", 25, 1)]
    assert set(tracker.rows[0][1]) >= KEYS


def test_a_histogram_leaves_out_what_is_not_finite():
    sent: list[dict[str, Any]] = []
    tracker = WandbTracker(SimpleNamespace(log=sent.append), limit=0)
    tracker.histogram("margins", [math.nan, 0.25, math.inf, -0.5], 3)
    tracker.histogram("margins", [math.nan], 4)
    (row,) = sent
    assert row["epoch"] == 3
    histogram = row["margins"]
    assert sum(histogram.histogram) == 2
    assert (min(histogram.bins), max(histogram.bins)) == (-0.5, 0.25)


def test_monitor_is_no_part_of_the_identity_and_is_checked(tmp_path):
    base = load(compose_plain())
    for override in ("monitor.n=7", "monitor.enabled=false", "monitor.effective_margin=true"):
        assert load(compose_plain(override)).train_id == base.train_id
    saved = base.container()
    del saved["monitor"]
    assert load(saved).train_id == base.train_id
    _, problems = check(compose_plain("monitor.n=0"))
    assert any("n=0: at least 1" in problem for problem in problems)
    assert load(compose_plain("scale=smoke")).monitor.n == 32


def test_a_signal_ends_a_measurement_between_two_batches():
    """The engine keeps the epoch's steps, and its validation starts anew."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    images = image_set(3 * BATCH)
    watch = Monitor(images, "val", "linf", {"train": images}, stop=stop)
    with pytest.raises(InterruptedRunError, match="stopped while margins were measured"):
        watch(small_net().float())
    assert len(asked) == 3
    curves = Curves({"val": images}, Pgd(1, 0.5), 0.1, "linf", 0, lambda: True)
    with pytest.raises(InterruptedRunError):
        Monitor(images, "val", "linf", {}, curves)(small_net().float())
