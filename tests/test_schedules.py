"""Schedules against the specification's values and against torch."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from ablation.schedules import REFUSED, Constant, Cosine, OneCycle, Piecewise, Torch


def test_cosine_with_floor_has_the_dose_values():
    schedule = Cosine(floor=0.001)
    found = [schedule.lr(0.1, epoch, 200) for epoch in (0, 1, 50, 100, 150, 199)]
    assert found == pytest.approx(
        [0.1, 0.0999939, 0.0855018, 0.0505, 0.0154982, 0.0010061], abs=1e-7
    )


def test_cosine_ends_at_zero_unless_told_otherwise():
    assert Cosine(per="step").lr(0.1, 10, 10) == 0


def test_cosine_moves_once_per_epoch_unless_told_otherwise():
    assert Cosine().lr(1, 3.9, 10) == Cosine().lr(1, 3, 10)
    assert Cosine(per="step").lr(1, 3.9, 10) < Cosine(per="step").lr(1, 3, 10)


def test_one_cycle_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, pct_start=0.025, total_steps=200
    )
    schedule = OneCycle()
    for epoch in range(200):
        group = optimizer.param_groups[0]
        assert schedule.lr(0.1, epoch, 200) == pytest.approx(group["lr"], rel=1e-12)
        assert schedule.momentum(0.9, epoch, 200) == pytest.approx(group["momentum"], rel=1e-12)
        optimizer.step()
        if epoch < 199:
            reference.step()


def test_piecewise_counts_from_zero():
    schedule = Piecewise([74, 89])
    assert [schedule.lr(1, e, 120) for e in (73.99, 74, 88, 89)] == pytest.approx(
        [1, 0.1, 0.1, 0.01]
    )


def test_piecewise_refuses_milestones_out_of_order():
    with pytest.raises(ValueError, match="must increase"):
        Piecewise([90, 75])


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), OneCycle(), Piecewise([2]), Torch()])
def test_one_epoch_of_any_schedule_is_positive(schedule):
    assert schedule.lr(0.1, 0, 1) > 0
    assert 0 <= schedule.momentum(0.9, 0, 1) < 1


def test_one_cycle_by_the_step_rises_and_falls_between_its_three_rates():
    schedule = OneCycle(per="step")
    assert schedule.lr(0.5, 0, 80) == pytest.approx(0.5 / 25)
    assert schedule.lr(0.5, 1, 80) == pytest.approx((0.5 / 25 + 0.5) / 2)  # half of the rise
    assert schedule.lr(0.5, 2, 80) == pytest.approx(0.5)
    assert schedule.lr(0.5, 41, 80) == pytest.approx((0.5 + 0.5 / 25 / 1e4) / 2)
    assert schedule.lr(0.5, 80, 80) == pytest.approx(0.5 / 25 / 1e4)
    momenta = [schedule.momentum(0.9, epoch, 80) for epoch in (0, 2, 80)]
    assert momenta == pytest.approx([0.95, 0.85, 0.95])
    assert OneCycle(cycle_momentum=False).momentum(0.9, 0, 80) == 0.9


def test_one_cycle_whose_rise_is_one_epoch_begins_at_the_peak():
    schedule = OneCycle()
    assert schedule.lr(0.5, 0, 40) == 0.5
    assert schedule.lr(0.5, 19.5, 40) < schedule.lr(0.5, 18.5, 40)
    assert schedule.lr(0.5, 39, 40) == pytest.approx(0.5 / 25 / 1e4)


TORCHS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 7], "gamma": 0.3},
    "ConstantLR": {"factor": 0.25, "total_iters": 4},
    "LinearLR": {"start_factor": 0.1},
    "ExponentialLR": {"gamma": 0.8},
    "PolynomialLR": {"total_iters": 10, "power": 2.0},
    "CosineAnnealingLR": {"eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "step_size_up": 3, "mode": "triangular2"},
    "OneCycleLR": {"pct_start": 0.25, "final_div_factor": 10.0},
}
GIVEN: dict[str, dict[str, Any]] = {
    "CosineAnnealingLR": {"T_max": 12},
    "CyclicLR": {"max_lr": 0.2},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 12},
}
"""What the run gives of 12 epochs at a peak of 0.2."""


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", TORCHS)
def test_torchs_schedulers_are_torchs_in_any_order_of_asking(name, kind):
    optimizer = getattr(torch.optim, kind)([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    group = optimizer.param_groups[0]
    key = "momentum" if kind == "SGD" else "betas"
    if kind == "SGD":
        group["momentum"] = 0.9
    cls = getattr(torch.optim.lr_scheduler, name)
    reference, wanted = cls(optimizer, **TORCHS[name], **GIVEN.get(name, {})), []
    for _ in range(12):
        first = group[key] if kind == "SGD" else group[key][0]
        wanted.append((group["lr"], first))
        optimizer.step()
        reference.step() if len(wanted) < 12 else None
    schedule = Torch(name, TORCHS[name])
    for epoch in (11, *range(12)):
        found = schedule.lr(0.2, epoch + 0.6, 12), schedule.momentum(0.9, epoch, 12)
        assert found == wanted[epoch]


def test_every_scheduler_of_torch_is_run_or_refused_with_a_reason():
    names = set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"}
    assert names == {*TORCHS, *REFUSED}
    for name, reason in REFUSED.items():
        with pytest.raises(ValueError, match=f"name={name}: {reason}"):
            Torch(name)


def test_a_length_that_is_given_stays():
    assert Torch("CosineAnnealingLR", {"T_max": 4}).lr(0.2, 4, 12) == pytest.approx(0)
    assert Torch("CosineAnnealingLR").lr(0.2, 4, 12) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("StepLRR", {}, "name=StepLRR: did you mean StepLR?"),
        ("StepLR", {}, "kwargs.step_size is missing: StepLR needs it"),
        ("StepLR", {"stepsize": 3}, "kwargs.stepsize=3: did you mean step_size?"),
        ("StepLR", {"step_size": 3, "last_epoch": 2}, "a run knows its epoch"),
        ("StepLR", {"step_size": 3, "max_lr": 1}, "kwargs.max_lr=1: choose from step_size, gamma"),
        ("StepLR", {"step_size": "a"}, "kwargs={'step_size': 'a'}: torch's StepLR: unsupported"),
        ("StepLR", {"step_size": 0}, "torch's StepLR: integer modulo by zero"),
        ("OneCycleLR", {"max_lr": 1.0}, "kwargs.max_lr=1.0: it is lr; remove it"),
        ("OneCycleLR", {"pct_start": 2}, "Expected float between 0 and 1 pct_start"),
        ("CyclicLR", {"base_lr": 0.1, "scale_fn": "x"}, "it is a function, which YAML cannot"),
        ("MultiStepLR", {"milestones": ["a"]}, "milestones=['a']: expected whole numbers"),
    ],
)
def test_what_torch_would_not_take_is_refused_at_once(name, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Torch(name, kwargs)
