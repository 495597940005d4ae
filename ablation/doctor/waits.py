"""No training step waits for the GPU: torch refuses what would."""

from __future__ import annotations

import io
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path

import torch

import ablation
from ablation.doctor.clock import wait_for
from ablation.doctor.lines import Line, judged
from ablation.doctor.setting import Setting, Trainee, arithmetic
from ablation.numerics.graphs import Graphs
from ablation.training.searches import Searches

PACKAGE = Path(ablation.__file__).parent
KNOWN = {"crafters/boundary.py": "found boundary points are a batch of their own"}
"""Waits that are documented, one a step, by file."""
WORD = "synchroniz"
"""In what torch says of a wait."""
IMAGES = 16


def examine(setting: Setting) -> Iterator[Line]:
    """A line for every method, in bf16: operation by operation, and with captured searches."""

    def line(method: str) -> Line:
        config = setting.configs.small(f"method={method}")
        batch = setting.pupil.batch(IMAGES, setting.device)
        places = []
        for searches in (None, Searches(IMAGES, Graphs())):
            with arithmetic(config, "bf16"), redirect_stderr(io.StringIO()):
                trainee = Trainee(config, batch, "bf16", searches, weights=setting.pupil.weights)
                for _ in range(2):  # copies, buffers and programs are made once a run
                    trainee.step()
                wait_for(setting.device)
                places.append(waits(trainee.step))
        return judge(method, *places)

    yield from setting.lines(setting.configs.methods(), line)


def judge(method: str, *steps: list[str]) -> Line:
    """Judge the waits of some steps, by ``<file>:<line>`` of the package."""
    every = [place for places in steps for place in places]
    figures = {"waits": len(every)}
    if not every:
        return judged(method, True, "none (none allowed)", figures)
    where = ", ".join(dict.fromkeys(every))
    documented = {KNOWN.get(place.partition(":")[0]) for place in every}
    if None not in documented and max(map(len, steps)) == 1:
        return judged(method, True, f"one, as documented: {documented.pop()} ({where})", figures)
    return judged(method, False, f"at {where} (none allowed)", figures)


def waits(step: Callable[[], object]) -> list[str]:
    """Where a step waits for the GPU: the first place, or all, if that one is documented."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if WORD not in str(error):
            raise
        first = place(traceback.extract_tb(error.__traceback__))
        return warned(step) if first.partition(":")[0] in KNOWN else [first]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return []


def warned(step: Callable[[], object]) -> list[str]:
    """The places of all waits of a step, as torch's warnings tell them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [each for each in caught if WORD in str(each.message)]
    return [f"{within(each.filename)}:{each.lineno}" for each in told]


def place(frames: traceback.StackSummary) -> str:
    """The innermost line of the package in a traceback."""
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    frame = (ours or list(frames))[-1]
    return f"{within(frame.filename)}:{frame.lineno}"


def within(filename: str) -> str:
    """A file's name from the package on."""
    path = Path(filename)
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else filename
