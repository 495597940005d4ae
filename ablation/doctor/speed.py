"""Training steps by themselves: images a second, share of the peak, epochs, memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ablation.config.experiment import Config
from ablation.doctor.clock import typical
from ablation.doctor.facts import PEAK
from ablation.doctor.flops import Flops
from ablation.doctor.lines import Figure, Line, measured
from ablation.doctor.setting import Setting, Trainee, arithmetic, noise_batch
from ablation.doctor.ways import COMPILING
from ablation.numerics.graphs import Graphs
from ablation.training.searches import Searches

NETS = ("resnet18", "vgg16_bn", "wrn34_10", "mlp")
METHODS = ("at", "trades")
"""On every network; the other methods on the first."""
BATCH, COUNTED = 128, 8
"""Images of a step, and of the step whose operations are counted."""


@dataclass(frozen=True)
class Case:
    """A step to time: as a run makes it by default, or with a setting of ``runtime``."""

    net: str
    method: str
    way: Literal["", "fast=off", "compile=true"] = ""

    def name(self, tiny: bool) -> str:
        """Of its line."""
        way = f", {self.way}" if self.way else ""
        return f"{'tiny ' if tiny else ''}{self.net}, {self.method}{way}"


def examine(setting: Setting) -> Iterator[Line]:
    """A line for each case, in bf16; what has to be compiled comes last."""
    known = {case.name(setting.tiny): case for case in cases(setting)}

    def line(name: str) -> Line:
        return measured(name, *step(setting, known[name]))

    long = [name for name, case in known.items() if case.way == "compile=true"]
    yield from setting.lines([name for name in known if name not in long], line)
    yield from setting.lines(long, line, COMPILING)


def cases(setting: Setting) -> list[Case]:
    """AT and TRADES on every network, then in other ways, and every other method."""
    found = [Case(net, method) for net in NETS for method in METHODS]
    if setting.cuda:
        found += [Case(NETS[0], method, "fast=off") for method in METHODS]
    if not setting.tiny:
        others = [each for each in setting.configs.methods() if each not in METHODS]
        found += [Case(NETS[0], method) for method in others]
    if setting.cuda:
        found += [Case(NETS[0], method, "compile=true") for method in METHODS]
    return found


def step(setting: Setting, case: Case) -> tuple[str, dict[str, Figure]]:
    """Time a step; what it says of a machine, for people and as figures."""
    config, n = setting.full(case.net, f"method={case.method}"), 16 if setting.tiny else BATCH
    compiled = case.way == "compile=true"
    logging.disable(logging.WARNING if compiled else logging.NOTSET)
    try:
        with arithmetic(config, "bf16"):
            flops = n / COUNTED * operations(setting, config)
            if setting.cuda:
                torch.cuda.reset_peak_memory_stats()
            graphs = setting.cuda and case.way != "fast=off"
            searches = Searches(n, Graphs()) if graphs else None
            batch = noise_batch(config, n, setting.device)
            trainee = Trainee(config, batch, "bf16", searches, compiled)
            for _ in range(3):
                trainee.step()
            seconds = typical(trainee.step, setting.device, 0.5 if setting.tiny else 1.5)
    finally:
        logging.disable(logging.NOTSET)
    return told(setting, config, n / seconds, flops / seconds / 1e12)


def operations(setting: Setting, config: Config) -> int:
    """Floating-point operations of a step of a small batch."""
    trainee = Trainee(config, noise_batch(config, COUNTED, setting.device), "bf16")
    with Flops() as counter:
        trainee.step()
    return int(counter.total)


def told(
    setting: Setting, config: Config, rate: float, tflops: float
) -> tuple[str, dict[str, Figure]]:
    """Text and figures of a step that takes ``rate`` images a second."""
    extent = config.data.source.extent(config.data_root)
    assert extent is not None  # noqa: S101
    epoch = extent.train / rate
    figures: dict[str, Figure] = {
        "images_per_second": rate,
        "tflops": tflops,
        "epoch_seconds": epoch,
    }
    text = f"{rate:.4g} images/s; {tflops:.3g} TFLOP/s"
    peak = setting.facts.get(PEAK.format("bf16"))
    if isinstance(peak, float):
        figures["share_of_peak"] = tflops / peak
        text += f", {100 * tflops / peak:.2g}% of peak"
    text += f"; epoch {epoch:.3g} s"
    if setting.cuda:
        figures["peak_gib"] = gib = torch.cuda.max_memory_allocated() / 2**30
        text += f"; {gib:.1f} GiB"
    return text, figures
