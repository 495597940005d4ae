"""The bar, the lines and the tables that a person reads."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Callable

import pytest

from ablation.runs.progress import AttackProgress, Progress, describe, drawable
from ablation.text import duration, summary_table


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


ROW = {"epoch": 0, "step": 4, "lr": 0.1, "loss": 1.23456, "loss_kl": 0.5, "train_robust": 31.25}


def lines(step_seconds: float, *, epochs: int = 2, steps: int = 4, done: int = 0) -> list[str]:
    return report([epochs], lambda step: step_seconds, steps=steps, done=done)


def report(
    phases: list[int], seconds: Callable[[int], float], *, steps: int = 4, done: int = 0
) -> list[str]:
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, io.StringIO(), terminal=False, clock=clock)
    progress.start(phases, steps, done)
    for step in range(done, sum(phases) * steps):
        clock.now += seconds(step)
        progress.step(50)
        if (step + 1) % steps == 0:
            progress.epoch_end({**ROW, "epoch": step // steps})
    progress.close()
    progress.close()
    return out.getvalue().splitlines()


def test_a_log_file_gets_one_line_per_short_epoch():
    assert lines(1.0) == [
        "epoch 1/2  lr 0.1  loss 1.235  loss_kl 0.5  train_robust 31.2%  50 images/s  eta 0:04",
        "epoch 2/2  lr 0.1  loss 1.235  loss_kl 0.5  train_robust 31.2%  50 images/s",
    ]


def test_a_long_epoch_reports_every_ten_seconds():
    found = lines(4.0, epochs=1, steps=8)
    assert found[:2] == [
        "epoch 1/1  step 3/8  12 images/s  eta 0:20",
        "epoch 1/1  step 6/8  12 images/s  eta 0:08",
    ]
    assert len(found) == 3


def test_a_resumed_run_counts_on_and_measures_only_itself():
    found = lines(2.0, epochs=3, steps=4, done=6)
    assert found[0].startswith("epoch 2/3 ")
    assert found[0].endswith("25 images/s  eta 0:08")
    assert found[1].startswith("epoch 3/3 ")


def etas(found: list[str]) -> list[str]:
    return [line.partition("  eta ")[2] for line in found]


def test_the_time_left_is_that_of_the_phase_at_its_own_pace():
    found = report([3, 3], lambda step: 1.0 if step < 12 else 5.0)
    assert etas(found) == [
        *("0:08 (phase 1/2)", "0:04 (phase 1/2)", ""),
        *("0:50", "0:40", "0:30", "0:20", "0:10", ""),
    ]
    assert [line.split("  ")[0] for line in found[2:5]] == ["epoch 3/6", "epoch 4/6", "epoch 4/6"]


def test_the_pace_is_that_of_the_last_epoch():
    found = report([6], lambda step: 1.0 if step < 8 else 2.0)
    assert etas(found) == ["0:20", "0:16", "0:18", "0:16", "0:08", ""]


def test_a_run_that_resumes_in_a_later_phase_knows_it():
    assert etas(report([1, 2], lambda step: 2.0, done=6)) == ["0:08", ""]


def test_the_engines_own_speed_wins_and_seconds_are_not_shown():
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, io.StringIO(), terminal=False, clock=clock)
    progress.start([1], 1, 0)
    clock.now += 1
    progress.step(10)
    progress.epoch_end({"epoch": 0, "seconds": 9.0, "images_per_second": 77.0, "loss": 2.0})
    assert out.getvalue() == "epoch 1/1  loss 2  77 images/s\n"


def test_a_terminal_gets_a_bar_with_speed_eta_and_the_last_epoch():
    clock, out, bar = Clock(), io.StringIO(), io.StringIO()
    progress = Progress(out, bar, terminal=True, clock=clock)
    progress.start([2], 4, 0)
    for _ in range(4):
        clock.now += 1
        progress.step(50)
    progress.epoch_end(ROW)
    clock.now += 1
    progress.step(50)
    drawn = bar.getvalue().split("\r")
    assert any("epoch 1/2" in text and "38%" in text and "50 images/s" in text for text in drawn)
    assert "epoch 2/2" in drawn[-1]
    assert "62%" in drawn[-1]
    assert "eta 0:03" in drawn[-1]
    assert "loss 1.235" in drawn[-1]
    progress.close()
    assert out.getvalue().count("\n") == 1


def test_a_step_does_not_redraw_within_half_a_second():
    clock, bar = Clock(), io.StringIO()
    progress = Progress(io.StringIO(), bar, terminal=True, clock=clock)
    progress.start([1], 1000, 0)
    before = bar.getvalue()
    for _ in range(400):
        clock.now += 0.001
        progress.step(10)
    assert bar.getvalue() == before
    progress.close()


def test_stdout_and_stderr_are_the_defaults(capsys):
    progress = Progress()
    progress.start([1], 1, 0)
    progress.step(5)
    progress.epoch_end({"epoch": 0, "loss": 1.0})
    progress.close()
    captured = capsys.readouterr()
    assert captured.out.startswith("epoch 1/1  loss 1 ")
    assert captured.err == ""


@pytest.mark.parametrize(("size", "expected"), [((40, 120), True), ((0, 0), False)])
def test_only_a_terminal_with_a_size_gets_a_bar(size, expected):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with open(theirs, "w") as stream:  # noqa: PTH123  it takes a descriptor
        assert drawable(stream) is expected
    os.close(ours)
    with io.StringIO() as stream:
        assert not drawable(stream)


def test_numbers_and_times():
    assert describe({"loss": float("nan"), "val_clean": 100.0}) == "loss nan  val_clean 100.0%"
    assert [duration(x) for x in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_of_a_distribution_the_line_shows_the_mean():
    names = ("mean", "min", "max", "q05", "q25", "q50", "q75", "q95")
    row = {f"{name}_{key}": 0.043 for name in ("radius", "radius_floor") for key in names}
    assert describe(row) == "radius_mean 0.043  radius_floor_mean 0.043"
    margins = {f"margin_q{q}": 0.5 for q in (0, 25, 50, 75, 100)}
    assert describe(margins) == "margin_q50 0.5"


def test_a_table_is_aligned_numbers_to_the_right():
    rows = [("best_robust", "pgd20", "51.20"), ("last", "clean", "7.1 ± 0.2"), ("last", "aa", "-")]
    assert summary_table("results", rows, ("checkpoint", "metric", "value")) == "\n".join(
        [
            "results",
            "checkpoint   metric      value",
            "-----------  ------  ---------",
            "best_robust  pgd20       51.20",
            "last         clean   7.1 ± 0.2",
            "last         aa              -",
        ]
    )


def test_a_table_may_be_empty_but_not_ragged():
    assert summary_table("", [], ("a", "b")) == "a  b\n-  -"
    with pytest.raises(ValueError, match="has 1 cells"):
        summary_table("t", [("1",)], ("a", "b"))


def attack_lines(seconds: float) -> list[str]:
    """Of two attacks on 40 and 20 images and two of the checks, in batches of 10."""
    clock, out = Clock(), io.StringIO()
    progress = AttackProgress(out, io.StringIO(), terminal=False, clock=clock)
    works = {"pgd20": 40, "aa/apgd-ce": 20, "checks/large_eps": 10, "checks/steps": 10}
    for title, total in works.items():
        for done in range(10, total + 1, 10):
            clock.now += seconds
            progress(title, done, total)
    progress.close()
    progress.close()
    return out.getvalue().splitlines()


def test_a_log_file_gets_a_line_per_attack_and_one_for_the_checks():
    assert attack_lines(2.0) == [
        "  pgd20: 40 images in 0:08",
        "  aa/apgd-ce: 20 images in 0:04",
        "  checks: 2 small attacks in 0:04",
    ]


def test_a_long_attack_says_when_it_ends():
    assert attack_lines(20.0)[:4] == [
        "  pgd20: 10/40 images  0.5 images/s  eta 1:00",
        "  pgd20: 20/40 images  0.5 images/s  eta 0:40",
        "  pgd20: 30/40 images  0.5 images/s  eta 0:20",
        "  pgd20: 40 images in 1:20",
    ]


def test_a_terminal_gets_a_bar_for_the_attack_that_runs():
    clock, bar = Clock(), io.StringIO()
    progress = AttackProgress(io.StringIO(), bar, terminal=True, clock=clock)
    clock.now += 1
    progress("pgd20", 10, 40)
    shown = bar.getvalue()
    assert "pgd20 |" in shown
    assert "25%, 10 images/s  eta 0:03" in shown
    progress.close()
