"""Seconds per step: what is taken from a run's lines, and when the numbers do not compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablation.reports import text_tables as render
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.seconds import COLUMN, with_extra
from ablation.runs.directory import Run


def trained(
    path: Path, speeds, *, phases=("main",), batch_size=128, device="cpu", host="here", state="done"
) -> Path:
    """A run whose epochs processed so many images per second; one phase's name per epoch."""
    run = Run.at(path)
    with run.open(f"seed: 0\nbatch_size: {batch_size}\n"):
        run.set_status(state, device=device)
        for epoch, speed in enumerate(speeds):
            phase = phases[min(epoch, len(phases) - 1)]
            run.log({"epoch": epoch, "phase": phase, "seconds": 9.0, "images_per_second": speed})
    status = path / "status.json"
    found = json.loads(status.read_text()) | {"host": host, "state": state}
    status.write_text(json.dumps(found))
    return path


def row(key: str, *runs: Path, absent=None) -> Row:
    samples = tuple(Sample(f"seed={i}", 80.0, 100, run.name) for i, run in enumerate(runs))
    return Row(key, key.upper(), key, {"clean": Cell("clean", "percent", samples, absent or {})},
               runs=runs)  # fmt: skip


def extended(*rows: Row) -> Comparison:
    return with_extra(Comparison("t", "Title", ("clean",), rows), [COLUMN])


def values(comparison: Comparison, place=0):
    return [sample.value for sample in comparison.rows[place].cells[COLUMN].samples]


@pytest.fixture
def place(tmp_path):
    return lambda name: tmp_path / f"{name}-0123456789"


def test_a_step_takes_the_median_over_the_last_phases_epochs_without_validation(place):
    phases = ["first", "first", "first", "main", "main", "main"]
    run = trained(place("a"), [999, 999, 999, 64, 256, 128], phases=phases)
    assert values(extended(row("a", run))) == [1.0]
    even = trained(place("b"), [64, 256])
    assert values(extended(row("b", even))) == [1.25]


def test_a_cell_is_the_mean_over_seeds_with_its_unit_and_three_digits(place):
    runs = [trained(place(f"a{i}"), [speed]) for i, speed in enumerate((1000.0, 1100.0))]
    found = extended(row("a", *runs))
    cell = found.rows[0].cells[COLUMN]
    assert [sample.axis for sample in cell.samples] == ["seed=0", "seed=1"]
    assert [sample.n for sample in cell.samples] == [128, 128]
    text = render.terminal(found)
    assert "seconds_per_step (s)" in text
    assert "0.122 ±0.074 (2)" in text
    assert (
        "seconds_per_step: a step is 128 images; median over the epochs of the last phase, without "
        "validation; on cpu" in text
    )
    assert "warning" not in text
    assert f",{COLUMN},s," in render.csv(found)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"device": "cuda:0"}, "A on cpu of machine 1; B on cuda of machine 2"),
        ({"host": "there"}, "A on cpu of machine 1; B on cpu of machine 2"),
    ],
)
def test_other_devices_and_other_machines_are_a_warning(place, other, said):
    rows = row("a", trained(place("a"), [1.0])), row("b", trained(place("b"), [1.0], **other))
    *_, warning = extended(*rows).notes
    assert warning == f"warning: seconds_per_step: seconds compare only on one machine; {said}"
    assert "there" not in warning


def test_two_cards_of_one_machine_are_no_warning(place):
    runs = [trained(place(f"a{i}"), [1.0], device=f"cuda:{i}") for i in range(2)]
    (note,) = extended(row("a", runs[0]), row("b", runs[1])).notes
    assert note.endswith("on cuda")


def test_runs_without_the_numbers_say_why(place):
    runs = [
        trained(place("none"), []),
        trained(place("failed"), [5.0], state="failed"),
        place("never"),
        trained(place("zero"), [0.0]),
    ]
    cut = trained(place("cut"), [5.0])
    cut.joinpath("metrics.jsonl").write_text("{\n{}\n")
    found = extended(row("a", *runs, cut), row("pending", absent={"pending": 3}))
    assert found.rows[0].cells[COLUMN].absent == {"missing": 4, "failed": 1}
    assert found.rows[1].cells[COLUMN].absent == {"pending": 3}
    (note,) = found.notes
    assert note.startswith("left out: ")
    assert "metrics.jsonl: line 1 is damaged" in note


def test_nothing_is_added_unasked_or_twice(place):
    table = Comparison("t", "Title", ("clean",), (row("a", trained(place("a"), [1.0])),))
    assert with_extra(table, []) is table
    once = with_extra(table, [COLUMN])
    assert with_extra(once, [COLUMN]) is once
