"""Eager, captured and compiled: three ways to make one step, which find the same.

Kernels of other ways round otherwise, and a sign turns a gradient of the size of rounding into a
whole step. So weights are compared closely after an attack without signs (L2), and by direction
elsewhere.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ablation.config.experiment import Config
from ablation.doctor.lines import Line, judged, skipped
from ablation.doctor.setting import (
    Kind,
    Setting,
    Trainee,
    arithmetic,
    cosine,
    relative,
    vector,
)
from ablation.numerics.graphs import Graphs
from ablation.training.searches import Capture, Searches
from ablation.types import Norm

CLOSE = 1e-4
"""Limit of relative errors of loss and gradient in fp32, after an attack without signs."""
LOSS, COSINE = 1e-3, 0.999
"""Limits with signs: relative error of the loss, cosine of the gradients."""
LOW = 0.99
"""Limit of the cosine in bf16, without signs: there TRADES, which starts where its divergence is
all rounding, finds other points each way."""
COMPILING = 45
"""Seconds that must be left for a compilation to begin: one may take so long."""
IMAGES = 32


@dataclass(frozen=True)
class Case:
    """One comparison of a way with the eager one."""

    method: str
    way: Literal["captured", "compiled"]
    norm: Norm = "linf"
    kind: Kind = "fp32"

    def __str__(self) -> str:
        norm = "" if self.norm == "linf" else f" {self.norm}"
        kind = "" if self.kind == "fp32" else f", {self.kind}"
        return f"{self.method}{norm}, {self.way}{kind}"

    def config(self, setting: Setting) -> Config:
        """Its method on the digits."""
        more = ["norm=l2", "eps=0.5"] if self.norm == "l2" else []
        return setting.configs.small(f"method={self.method}", *more)


class Counted:
    """Captures, and counts what it captured and replayed.

    Args:
        capture: that records.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.asked = self.made = self.replays = 0

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Record a function; see ``Capture``."""
        self.asked += 1
        replay = self._capture(run)
        self.made += 1

        def counted() -> Any:
            self.replays += 1
            return replay()

        return counted


def examine(setting: Setting) -> Iterator[Line]:
    """Captured searches of every method; compiled steps of some, for compiling takes long."""
    graphs = [
        Case("at", "captured", "l2"),
        *(Case(method, "captured") for method in setting.configs.methods()),
        Case("at", "captured", "l2", "bf16"),
    ]
    programs = [
        Case("at", "compiled", "l2"),
        *(Case(method, "compiled") for method in ("at", "trades")),
        Case("at", "compiled", "l2", "bf16"),
    ]
    if setting.cuda:
        known = {str(case): case for case in graphs}
        yield from setting.lines(known, lambda name: captured(setting, known[name]))
    else:
        yield skipped("captured", "CUDA graphs are of a GPU")
    missing = no_compiler(setting)
    if missing:
        yield skipped("compiled", missing)
    else:
        long = {str(case): case for case in programs}
        yield from setting.lines(long, lambda name: compiled(setting, long[name]), COMPILING)


def no_compiler(setting: Setting) -> str | None:
    """Why torch.compile cannot work here; ``None`` if it may."""
    if not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        return "there is no C++ compiler"
    if setting.cuda and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def captured(setting: Setting, case: Case) -> Line:
    """The second step, which replays what the first captured, beside that of an eager twin."""
    counted, said = Counted(Graphs()), io.StringIO()
    with redirect_stderr(said):
        line = beside_eager(setting, case, searches=Searches(IMAGES, counted))
    if not counted.asked:
        why = said.getvalue().strip().rpartition(": ")[2] or "it has no search to capture"
        return skipped(str(case), why)
    if counted.made < counted.asked or counted.replays < 2 * counted.made:
        why = " ".join(said.getvalue().split()) or "what was captured is not replayed"
        return judged(str(case), False, why)
    return line


def compiled(setting: Setting, case: Case) -> Line:
    """A compiled step beside an eager one."""
    with warnings.catch_warnings():  # the compiler's, of other libraries
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch._dynamo.reset()
            return beside_eager(setting, case, compiled=True)
        finally:
            logging.disable(logging.NOTSET)


def beside_eager(setting: Setting, case: Case, **way: Any) -> Line:
    """Make two steps in both ways, from the same weights; compare the second."""
    config, batch = case.config(setting), setting.pupil.batch(IMAGES, setting.device)
    found = []
    with arithmetic(config, case.kind):
        for options in ({}, way):
            trainee = Trainee(config, batch, case.kind, weights=setting.pupil.weights, **options)
            trainee.step()
            loss = trainee.step().loss
            found.append((vector([loss]), trainee.gradient()))
    (loss, gradient), (our_loss, our_gradient) = found
    error, away = relative(our_loss, loss), relative(our_gradient, gradient)
    direction = cosine(our_gradient, gradient)
    figures = {"loss": error, "gradient": away, "cosine": direction}
    if case.kind == "bf16":
        text = f"loss {error:.1e}; cosine {direction:.4f} (above {LOW})"
        return judged(str(case), direction > LOW, text, figures)
    if case.norm == "l2":
        text = f"loss {error:.1e}, gradient {away:.1e} (below {CLOSE:.0e})"
        return judged(str(case), error < CLOSE and away < CLOSE, text, figures)
    text = f"loss {error:.1e} (below {LOSS:.0e}), cosine {direction:.4f} (above {COSINE})"
    return judged(str(case), error < LOSS and direction > COSINE, text, figures)
