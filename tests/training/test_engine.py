"""The loop by itself: what is kept of which epoch, what a row counts, averages and schedules."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.averages import Ema, Swa
from ablation.budgets import Fixed
from ablation.crafters import Ascended, AttackCrossEntropy, Pgd
from ablation.data.images import ImageSet
from ablation.data.loader import DeviceLoader
from ablation.errors import InterruptedRunError, NonFiniteError
from ablation.models.heads import LinearHead
from ablation.models.net import Net
from ablation.runs.checkpoint import Snapshot
from ablation.schedules import Constant
from ablation.terms import CrossEntropy
from ablation.training.engine import Engine, Recipe
from ablation.training.method import Method, Phase, Slot, parse_passes
from ablation.training.optim import Sgd
from ablation.types import AverageSpec, Crafted, Views
from tests.support.parts import Told

STEPS = 3
"""Steps of an epoch."""


class Flat(nn.Module):
    """Pixels as features."""

    features = 4

    def forward(self, x):
        return x.flatten(1)


@dataclass
class Shelf:
    """A store in memory."""

    kept: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, epoch and step of weights that were kept."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    recorded: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    rewound: list[int] = field(default_factory=list)
    """Epochs from which on metrics were dropped."""

    def save(self, snapshot: Snapshot) -> None:
        self.snapshot = copy.deepcopy(snapshot)

    def load(self) -> Snapshot | None:
        return self.snapshot

    def keep_weights(self, name, net, average, epoch, step, recorded) -> None:
        self.kept.append((name, epoch, step))
        self.recorded[name] = dict(recorded)
        source = net if average is None else average
        self.weights[name] = {k: v.clone() for k, v in source.state_dict().items()}

    def settle(self) -> None: ...

    def rewind_metrics(self, epoch: int) -> None:
        self.rewound.append(epoch)

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))


class Silent:
    def start(self, phases: Sequence[int], steps_per_epoch: int, done_steps: int) -> None: ...
    def step(self, n_images: int) -> None: ...
    def epoch_end(self, row: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def loader(batch_size: int = 4) -> DeviceLoader:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 2, 2), generator=g, dtype=torch.uint8)
    labels = (images[:, 0, 0, 0] > images[:, 0, 1, 1]).long()
    data = ImageSet(images, labels)
    return DeviceLoader(data, torch.arange(12), batch_size, seed=0, device="cpu")


def at(eps: float = 0.3) -> Method:
    pgd = Pgd({"ce": Ascended(AttackCrossEntropy())}, steps=1, step_size=1.0, start="clean")
    return Method(
        {"adv": pgd},
        Fixed(eps),
        parse_passes("craft:adv", "nat", "adv", "step"),
        {"ce": Slot(CrossEntropy("adv"))},
    )


class Reporting(Pgd):
    """PGD with something to report."""

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        return replace(super().__call__(views, eps, rng), facts={"half": torch.tensor(0.5)})


def trained(
    scores: Callable[[int], Mapping[str, float]] = lambda epoch: {},
    epochs: int = 4,
    lr: float = 0.1,
    average: AverageSpec | None = None,
    every: int = 1,
    batch_size: int = 4,
    watch: Callable[[Net], None] = lambda net: None,
    phases: Sequence[Phase] = (),
    shelf: Shelf | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Shelf, Net]:
    """Train a linear network; ``scores`` are the validation accuracies after an epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Net(Flat(), LinearHead(4, 2), mean=None, std=None)
    shelf, looks = shelf or Shelf(), itertools.count(every - 1, every)
    recipe = Recipe(
        phases or (Phase("main", epochs, at()),),
        *(Sgd(momentum=0.0, weight_decay=0.0), Constant(), lr, average, 0),
        *(nullcontext, 2, every),
    )

    def validate(evaluated: nn.Module) -> Mapping[str, float]:
        return scores(next(looks))

    def on_epoch(row: Mapping[str, Any], evaluated: nn.Module) -> None:
        watch(net)

    batches = loader(batch_size)
    Engine(net, batches, recipe, validate, shelf, Silent(), stop, on_epoch).fit()
    return shelf, net


def test_last_is_kept_once_with_the_last_epoch_and_step():
    shelf, net = trained()
    assert shelf.kept == [("last", 3, 4 * STEPS)]
    assert all(torch.equal(shelf.weights["last"][k], v) for k, v in net.state_dict().items())


def test_the_best_epochs_are_kept_with_their_own_number():
    robust, clean = [10.0, 30.0, 20.0, 30.0], [50.0, 60.0, 70.0, 65.0]
    shelf, _ = trained(lambda e: {"val_clean": clean[e], "val_robust": robust[e]})
    assert shelf.kept == [
        ("best_robust", 0, STEPS),
        ("best_clean", 0, STEPS),
        ("best_robust", 1, 2 * STEPS),
        ("best_clean", 1, 2 * STEPS),
        ("best_clean", 2, 3 * STEPS),
        ("best_robust", 3, 4 * STEPS),  # as robust as epoch 1, and cleaner
        ("last", 3, 4 * STEPS),
    ]


@pytest.mark.parametrize(("tied", "other"), [("clean", "robust"), ("robust", "clean")])
def test_of_epochs_that_are_as_good_the_better_otherwise_is_kept(tied, other):
    others = [0.0, 0.5, 0.25]
    shelf, _ = trained(lambda e: {f"val_{tied}": 60.0, f"val_{other}": others[e]}, epochs=3)
    best = [epoch for name, epoch, _ in shelf.kept if name == f"best_{tied}"]
    assert best == [0, 1]


def test_an_epoch_without_a_right_answer_is_better_than_none():
    shelf, _ = trained(lambda e: {"val_clean": 0.0, "val_robust": 0.0}, epochs=1)
    assert [name for name, _, _ in shelf.kept] == ["best_robust", "best_clean", "last"]


def test_an_equal_epoch_does_not_replace_an_earlier_one():
    shelf, _ = trained(lambda e: {"val_clean": 60.0, "val_robust": 30.0})
    assert shelf.kept == [
        ("best_robust", 0, STEPS),
        ("best_clean", 0, STEPS),
        ("last", 3, 4 * STEPS),
    ]


def test_epochs_between_validations_are_not_candidates():
    shelf, _ = trained(lambda e: {"val_clean": float(e), "val_robust": float(e)}, every=2)
    assert [(name, epoch) for name, epoch, _ in shelf.kept] == [
        ("best_robust", 1),
        ("best_clean", 1),
        ("best_robust", 3),
        ("best_clean", 3),
        ("last", 3),
    ]


def test_accuracies_of_an_epoch_are_percentages_of_its_images():
    """A network that does not move: its accuracies can be counted afterwards."""
    shelf, net = trained(epochs=1, lr=1e-12)
    right = robust = 0
    for batch in loader().epoch(0):
        right += int((net(batch.x).argmax(1) == batch.y).sum())
        x = batch.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), batch.y), x)
        adversarial = (batch.x + 0.3 * grad.sign()).clamp(0, 1)
        robust += int((net(adversarial).argmax(1) == batch.y).sum())
    (row,) = shelf.rows
    assert row["train_clean"] == pytest.approx(100 * right / 12)
    assert row["train_robust"] == pytest.approx(100 * robust / 12)
    assert 0 < robust < right < 12


def test_losses_of_an_epoch_are_means_over_its_steps():
    """A network that does not move, clipped: every step counts alike, in every column."""
    pgd = Reporting({"ce": Ascended(AttackCrossEntropy())}, steps=1, step_size=1.0, start="clean")
    clipped = Phase("main", 1, replace(at(), crafters={"adv": pgd}), clip=0.8)
    shelf, net = trained(lr=1e-12, phases=(clipped,))
    losses, norms = [], []
    for batch in loader().epoch(0):
        x = batch.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), batch.y), x)
        adversarial = (batch.x + 0.3 * grad.sign()).clamp(0, 1)
        loss = nn.functional.cross_entropy(net(adversarial), batch.y)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        losses.append(loss.item())
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
    (row,) = shelf.rows
    assert row["loss"] == pytest.approx(sum(losses) / STEPS)
    assert row["loss_ce"] == pytest.approx(sum(losses) / STEPS)
    assert row["grad_norm"] == pytest.approx(sum(norms) / STEPS)
    assert row["clipped"] == pytest.approx(sum(norm > 0.8 for norm in norms) / STEPS)
    assert 0 < row["clipped"] < 0.5
    assert row["adv_half"] == 0.5


def test_swa_in_a_run_is_the_mean_of_the_weights_from_its_start_epoch_on():
    seen: list[torch.Tensor] = []
    shelf, _ = trained(
        average=Swa(start=1),
        batch_size=12,  # an epoch is a step, so that every step is seen
        watch=lambda net: seen.append(net.state_dict()["head.linear.weight"].clone()),
    )
    mean = shelf.weights["last"]["head.linear.weight"]
    assert torch.allclose(mean, torch.stack(seen[1:]).mean(0), atol=1e-7)
    assert not torch.allclose(mean, torch.stack(seen).mean(0), atol=1e-5)


@pytest.mark.parametrize(("selectable", "validated"), [(True, [2, 3, 4]), (False, [3, 4])])
def test_the_last_epoch_of_a_phase_that_is_selected_from_is_validated(selectable, validated):
    first = Phase("first", 3, at(), selectable=selectable)
    shelf, _ = trained(
        lambda e: {"val_other": 1.0}, phases=(first, Phase("main", 2, at())), every=4
    )
    assert [row["epoch"] for row in shelf.rows if "val_other" in row] == validated


def test_parts_see_the_rate_as_a_share_of_its_peak():
    seen: list[float] = []

    def budget(views: Views) -> Tensor:
        seen.append(views.clock.decay)
        return Fixed(0.3)(views)

    trained(phases=(Phase("main", 1, replace(at(), budget=budget)),))
    assert seen == [1.0] * STEPS


def test_the_rate_of_an_epoch_counts_what_was_trained_since_it_was_resumed(monkeypatch):
    """A clock that ticks at every look: at the start, after training, and at the end."""
    ticks = itertools.count(100, 1.23456)
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    shelf, looks = Shelf(), iter([True])
    with pytest.raises(InterruptedRunError):
        trained(epochs=1, shelf=shelf, stop=lambda: next(looks))
    trained(epochs=2, shelf=shelf)
    resumed, whole = shelf.rows
    assert (resumed["seconds"], whole["seconds"]) == (2.469, 2.469)
    assert resumed["images_per_second"] == 6.5  # 8 / 1.23456
    assert whole["images_per_second"] == 9.7  # 12 / 1.23456


@pytest.mark.parametrize("average", [None, Ema(), Swa()])
def test_a_resumed_run_is_the_whole_one_with_its_average(average):
    whole, _ = trained(epochs=3, average=average)
    shelf, looks = Shelf(), iter([*[False] * (STEPS + 2), True])  # in the second epoch
    with pytest.raises(InterruptedRunError):
        trained(epochs=3, average=average, shelf=shelf, stop=lambda: next(looks))
    trained(epochs=3, average=average, shelf=shelf)
    assert shelf.rewound == [0, 1]
    for name, value in whole.weights["last"].items():
        assert torch.equal(shelf.weights["last"][name], value)


@pytest.mark.parametrize(("epochs", "ends"), [(1, True), (2, False)])
def test_a_signal_during_validation_stops_a_run_that_has_epochs_left(epochs, ends):
    looks = itertools.chain([False] * STEPS, [True] * 99)
    shelf = Shelf()
    with nullcontext() if ends else pytest.raises(InterruptedRunError):
        trained(epochs=epochs, shelf=shelf, stop=lambda: next(looks))
    assert [row["epoch"] for row in shelf.rows] == [0]
    assert [name for name, _, _ in shelf.kept] == ["last"] * ends


def test_on_a_cpu_a_run_stops_at_the_first_step_that_is_not_finite():
    steps: list[int] = []

    def budget(views: Views) -> Tensor:
        steps.append(views.clock.step)
        return Fixed(float("nan") if views.clock.step == 1 else 0.3)(views)

    with pytest.raises(NonFiniteError, match="first at step 1"):
        trained(phases=(Phase("main", 1, replace(at(), budget=budget)),))
    assert steps == [0, 1]


def test_the_second_part_of_a_split_phase_goes_on_counting_epochs():
    """For all that begins at an epoch: ascents, gates, averages."""
    seen: list[int] = []

    def budget(views: Views) -> Tensor:
        seen.append(views.clock.epoch)
        return Fixed(0.3)(views)

    method = replace(at(), budget=budget)
    trained(
        phases=(Phase("early", 2, method), Phase("main", 2, method, counts_from=2)), batch_size=12
    )
    assert seen == [0, 1, 2, 3]


def told(eps: float = 0.3) -> Method:
    return replace(at(), budget=Told(eps))


SCORES = {"val_clean": [50.0, 40.0, 30.0], "val_robust": [10.0, 30.0, 20.0]}


def scores_of(epoch: int) -> Mapping[str, float]:
    return {name: numbers[epoch] for name, numbers in SCORES.items()}


def test_radii_are_kept_with_the_weights_of_their_epoch_and_summarised_in_its_row():
    shelf, _ = trained(scores_of, phases=(Phase("main", 3, told()),))
    epochs = {"best_clean": 0, "best_robust": 1, "last": 2}
    assert {name: epoch for name, epoch, _ in shelf.kept} == epochs
    for name, epoch in epochs.items():
        columns, row = shelf.recorded[name], shelf.rows[epoch]
        assert sorted(columns["index"].tolist()) == list(range(12))
        assert columns["radius"].shape == (12,)
        assert row["radius_mean"] == pytest.approx(columns["radius"].double().mean().item())
        assert row["radius_min"] == columns["radius"].min().item()
        assert 0.3 < row["radius_min"] < row["radius_q50"] < row["radius_max"] < 0.6
    assert len({row["radius_mean"] for row in shelf.rows}) == 3


def test_a_method_that_records_nothing_has_the_rows_and_weights_that_it_had():
    shelf, _ = trained(scores_of, epochs=3)
    assert not any("radius" in name for row in shelf.rows for name in row)
    assert shelf.recorded == {"best_clean": {}, "best_robust": {}, "last": {}}
    other, same = trained(
        scores_of, phases=(Phase("main", 3, replace(at(), budget=Told(0.3, individual=False))),)
    )
    recorded, alike = trained(scores_of, phases=(Phase("main", 3, told()),))
    extra = recorded.rows[0].keys() - other.rows[0].keys()
    assert {name.partition("_")[0] for name in extra} == {"radius"}
    for name, value in same.state_dict().items():
        assert torch.equal(value, alike.state_dict()[name])


def rows_without_clock(shelf: Shelf) -> list[dict[str, Any]]:
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in shelf.rows]


@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_a_run_that_was_interrupted_records_the_same_radii(step):
    """Within the first epoch, at its end, within the second, and at the very end."""
    phases = (Phase("main", 3, told()),)
    whole, _ = trained(scores_of, phases=phases)
    shelf, steps = Shelf(), itertools.count(1)
    with pytest.raises(InterruptedRunError):
        trained(scores_of, phases=phases, shelf=shelf, stop=lambda: next(steps) >= step)
    done = len(shelf.rows)
    trained(lambda e: scores_of(e + done), phases=phases, shelf=shelf)
    assert rows_without_clock(shelf) == rows_without_clock(whole)
    for name, columns in whole.recorded.items():
        assert columns.keys() == shelf.recorded[name].keys()
        assert all(torch.equal(shelf.recorded[name][k], v) for k, v in columns.items())


def test_a_checkpoint_older_than_the_record_goes_on():
    whole, _ = trained(epochs=2)
    shelf, steps = Shelf(), itertools.count(1)
    with pytest.raises(InterruptedRunError):
        trained(epochs=2, shelf=shelf, stop=lambda: next(steps) >= 2)
    assert shelf.snapshot is not None
    del shelf.snapshot.train["recorded"]
    trained(epochs=2, shelf=shelf)
    assert rows_without_clock(shelf) == rows_without_clock(whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_radius_that_is_not_finite_is_named(bad):
    class Bad(Told):
        def __call__(self, views: Views) -> Tensor:
            radii = super().__call__(views)
            return radii.index_fill(0, torch.tensor([2]), bad) if views.clock.step == 1 else radii

    method = replace(at(), budget=Bad(0.3))
    with pytest.raises(NonFiniteError, match=r"recorded_radius is not finite \(first at step 1\)"):
        trained(phases=(Phase("main", 1, method),))


def test_a_phase_without_radii_leaves_none_of_an_earlier_one():
    phases = (Phase("first", 1, told()), Phase("main", 1, at()))
    scores = {0: {"val_clean": 1.0, "val_robust": 1.0}, 1: {"val_clean": 2.0, "val_robust": 2.0}}
    shelf, _ = trained(lambda e: scores[e], phases=phases)
    assert ["radius_mean" in row for row in shelf.rows] == [True, False]
    assert shelf.recorded == {"best_clean": {}, "best_robust": {}, "last": {}}
