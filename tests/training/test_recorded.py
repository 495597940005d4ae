"""What parts record of each sample, over an epoch."""

from __future__ import annotations

import pytest
import torch

from ablation.numerics.summaries import SPREAD
from ablation.training.recorded import EpochRecord

CPU = torch.device("cpu")


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


def test_an_epoch_is_all_of_its_steps():
    record = EpochRecord()
    record.add(torch.tensor([5, 2]), {"radius": values(1, 3)})
    record.add(torch.tensor([7]), {"radius": values(5)})
    columns = record.columns()
    assert columns["index"].tolist() == [5, 2, 7]
    assert columns["radius"].tolist() == [1, 3, 5]
    row = record.row()
    assert list(row) == [f"radius_{key}" for key in ("mean", *SPREAD)]
    assert (row["radius_mean"], row["radius_min"], row["radius_max"]) == (3, 1, 5)
    assert row["radius_q25"] == 2


def test_nothing_recorded_is_nothing_written():
    record = EpochRecord()
    record.add(torch.tensor([5, 2]), {})
    assert record.columns() == record.row() == {}
    assert EpochRecord.restored({}, CPU).columns() == {}


def test_a_restored_record_goes_on():
    record = EpochRecord()
    record.add(torch.tensor([5]), {"radius": values(1), "radius_floor": values(2)})
    again = EpochRecord.restored(record.columns(), CPU)
    again.add(torch.tensor([1]), {"radius": values(3), "radius_floor": values(4)})
    assert {name: column.tolist() for name, column in again.columns().items()} == {
        "index": [5, 1],
        "radius": [1, 3],
        "radius_floor": [2, 4],
    }


@pytest.mark.parametrize("later", [{}, {"other": values(1)}])
def test_names_that_change_within_an_epoch_are_refused(later):
    record = EpochRecord()
    record.add(torch.tensor([0]), {"radius": values(1)})
    with pytest.raises(ValueError, match=r"recorded: .* in this step, \['radius'\] before"):
        record.add(torch.tensor([1]), later)


def test_adding_a_step_waits_for_no_device():
    """On the meta device any look at a value fails."""
    record = EpochRecord()
    radius = torch.empty(2, device="meta")
    record.add(torch.empty(2, dtype=torch.int64, device="meta"), {"radius": radius})
    with pytest.raises((NotImplementedError, RuntimeError)):
        record.row()
