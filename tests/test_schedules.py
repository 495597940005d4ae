"""Schedules against the specification's values and against torch."""

from __future__ import annotations

import pytest
import torch

from ablation.schedules import Constant, Cosine, OneCycle, Piecewise


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


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), OneCycle(), Piecewise([2])])
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
