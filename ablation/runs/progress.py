"""Progress display of training and of attacks: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NoReturn, TextIO

from tqdm import tqdm

from ablation import output
from ablation.text import duration

BAR_SECONDS = 0.5
"""Least time between two redraws of the bar."""
LINE_SECONDS = 10.0
"""Least time between two lines within an epoch, where there is no terminal."""
CHECKS = "checks/"
"""Prefix of the attacks that only the checks ask for."""
HIDDEN = (
    *("epoch", "step", "seconds", "images_per_second"),
    *("margin_q0", "margin_q100", "logit_gap_mean", "logit_gap_p99"),
    *("radius_q50", "radius_floor_q50"),
    *("zero_gradient", "margin_train_std", "margin_test_std"),
)
"""Columns of an epoch's row that the line shows in another way, or not at all."""

SPREAD = ("_min", "_max", "_q05", "_q25", "_q75", "_q95")
"""Endings of more such columns."""

PERCENT = ("train_", "val_", "test_")
"""Prefixes of accuracies in percent."""


class Display:
    """A bar on a terminal, and lines that stay.

    Args:
        out: where lines go; ``None`` means stdout.
        bar: where the bar goes; ``None`` means stderr.
        terminal: draw a bar? ``None`` means if ``bar`` is a terminal.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        bar: TextIO | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = output.out() if out is None else out
        self._bar_file = output.err() if bar is None else bar
        self._terminal = drawable(self._bar_file) if terminal is None else terminal
        self._clock = clock
        self._began = self._last = self._before = clock()
        self._bar: tqdm[NoReturn] | None = None

    def _open_bar(self, total: int, initial: int = 0, desc: str = "") -> None:
        self._shut()
        if self._terminal:
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=desc,
                file=self._bar_file,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} |{bar:20}| {percentage:3.0f}%{postfix}",
            )

    def _shut(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._out.write(f"{text}\n")
        self._out.flush()


class Progress(Display):
    """Progress of a training run; a step costs a clock reading and waits for no device.

    On a terminal a bar on stderr, with a lasting line per epoch; otherwise lines on stdout: one per
    epoch, and one every 10 seconds within long epochs. Epochs are counted from 1 here, for people:
    ``epoch 3/15`` is the third.

    Takes the arguments of ``Display``.
    """

    _epochs = _steps = _done = _images = 0
    _ends: tuple[int, ...] = ()  # of the phases, in steps
    _marks: tuple[tuple[float, int], ...] = ()  # time and steps: of the last epoch, of this one
    _row = ""

    def start(self, phases: Sequence[int], steps_per_epoch: int, done_steps: int) -> None:
        """Before the first step.

        Args:
            phases: epochs of each.
            steps_per_epoch: at least 1.
            done_steps: by an earlier process; they count as done but not in the speed.
        """
        self.close()
        self._epochs, self._steps = sum(phases), max(1, steps_per_epoch)
        self._ends = tuple(epochs * self._steps for epochs in accumulate(phases))
        self._done = done_steps
        self._images, self._row = 0, ""
        self._last = self._clock()
        self._marks = ((self._last, done_steps),)
        self._open_bar(self._epochs * self._steps, done_steps)
        self._draw()

    def step(self, n_images: int) -> None:
        """After each step.

        Args:
            n_images: in its batch.
        """
        self._done += 1
        self._images += n_images
        now = self._clock()
        if now - self._last >= (BAR_SECONDS if self._terminal else LINE_SECONDS):
            self._last = now
            if self._terminal:
                self._draw()
            elif self._done % self._steps:  # else the epoch's own line comes now
                at = self._done % self._steps
                self._line(f"{self._title()}  step {at}/{self._steps}  {self._speed()}")

    def epoch_end(self, row: Mapping[str, float]) -> None:
        """After each epoch, with its losses, accuracies in percent and the learning rate."""
        now = self._clock()
        self._row = describe(row)
        speed = self._speed(row.get("images_per_second"))
        number = int(row["epoch"]) + 1 if "epoch" in row else -(-self._done // self._steps)
        self._line(f"epoch {number}/{self._epochs}  {self._row}  {speed}")
        self._images, self._last = 0, now
        before = () if self._done in self._ends else self._marks[-1:]
        self._marks = (*before, (now, self._done))
        self._draw()

    def close(self) -> None:
        """At the end, or on the way out; may be called twice."""
        self._shut()

    def _title(self) -> str:
        at = min(self._epochs, self._done // self._steps + 1)
        return f"epoch {at}/{self._epochs}"

    def _speed(self, rate: float | None = None) -> str:
        """Images per second in this epoch, and the time to the end at the pace of the last epoch.

        The pace counts everything, validation and saving too. It says nothing of another phase,
        which trains in another way: until the last one, the time is to the end of the phase.
        """
        now = self._clock()
        if rate is None:
            rate = self._images / max(1e-9, now - self._marks[-1][0])
        text = f"{rate:.0f} images/s"
        since, first = self._marks[0]
        number, end = next(each for each in enumerate(self._ends, 1) if first < each[1])
        if first < self._done < end:
            text += f"  eta {duration((now - since) / (self._done - first) * (end - self._done))}"
            text += f" (phase {number}/{len(self._ends)})" if number < len(self._ends) else ""
        return text

    def _draw(self) -> None:
        if self._bar is None:
            return
        self._bar.set_description_str(self._title(), refresh=False)
        speed = self._speed() if self._images else ""
        self._bar.set_postfix_str("  ".join(x for x in (speed, self._row) if x), refresh=False)
        self._bar.n = self._done
        self._bar.refresh()


class AttackProgress(Display):
    """Progress of an evaluation: a line per attack, and one for all small attacks of the checks.

    On a terminal a bar on stderr while an attack runs; otherwise an attack that takes long says
    every 10 seconds how far it is, and when it will have seen all images.

    Takes the arguments of ``Display``.
    """

    _title = ""
    _checks, _spent = 0, 0.0

    def __call__(self, title: str, done: int, total: int) -> None:
        """After each batch of an attack.

        Args:
            title: the metric, ``metric/part``, or ``checks/name`` of a check's own attack.
            done: images that it has seen.
            total: images that it is to see.
        """
        now = self._clock()
        if title != self._title:
            self._title, self._began, self._last = title, self._before, self._before
            self._open_bar(total, desc=f"  {title}")
        self._before = now
        if done >= total:
            self._shut()
            if title.startswith(CHECKS):
                self._checks, self._spent = self._checks + 1, self._spent + now - self._began
            else:
                self._say(f"{total} images in {duration(now - self._began)}")
        elif now - self._last >= (BAR_SECONDS if self._terminal else LINE_SECONDS):
            self._last = now
            rate = done / max(1e-9, now - self._began)
            speed = f"{rate:.3g} images/s  eta {duration((total - done) / rate)}"
            if self._bar is None:
                self._say(f"{done}/{total} images  {speed}")
            else:
                self._bar.set_postfix_str(speed, refresh=False)
                self._bar.n = done
                self._bar.refresh()

    def close(self) -> None:
        """At the end, or on the way out."""
        self._shut()
        if self._checks:
            self._title = "checks"
            self._say(f"{self._checks} small attacks in {duration(self._spent)}")
            self._checks, self._spent = 0, 0.0

    def _say(self, text: str) -> None:
        self._line(f"  {self._title}: {text}")


def drawable(stream: TextIO) -> bool:
    """Say whether this is a terminal with a size; pseudo-terminals of containers may have none."""
    try:
        return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0
    except (OSError, ValueError):
        return False


def describe(row: Mapping[str, float]) -> str:
    """Numbers of an epoch in the order given: accuracies with one decimal, others with four digits.

    >>> describe({"loss": 1.23456, "val_robust": 31.25})
    'loss 1.235  val_robust 31.2%'
    """
    found = []
    for name, value in row.items():
        if name not in HIDDEN and not name.endswith(SPREAD):
            found.append(
                f"{name} {value:.1f}%" if name.startswith(PERCENT) else f"{name} {value:.4g}"
            )
    return "  ".join(found)
