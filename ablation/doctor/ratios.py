"""TRADES, AT and MART beside a plain reference step, in one run: the same step, how much faster?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ablation.config.experiment import Config
from ablation.doctor.clock import take_turns
from ablation.doctor.lines import Line, below, measured
from ablation.doctor.reference import reference_step
from ablation.doctor.setting import (
    LR,
    Kind,
    Setting,
    Trainee,
    arithmetic,
    extent_of,
    noise_batch,
    relative,
    vector,
)
from ablation.jobs.setup import build_net_of
from ablation.models import Net
from ablation.numerics.graphs import Graphs
from ablation.training.searches import Searches
from ablation.types import Batch

OFFICIAL = {
    "trades": (),
    "at": (),
    "mart": (
        "method.terms.bce.term.constants=official",
        "method.terms.kl.term.constants=official",
        "method.terms.kl.weight.constants=official",
    ),
}
"""Methods with a reference, and what makes them the scripts' to the last constant."""
SAME = 1e-3
"""Limit of the gradient's relative error in fp32: the same formula rounds in another order."""
COMPARED = 16
"""Images of the comparison."""


def examine(setting: Setting) -> Iterator[Line]:
    """Whether both make the same step; then the ratio of their times, in bf16 and fp32."""
    alike = {f"{method}: the same step": method for method in OFFICIAL}
    kinds: list[Kind] = ["bf16", "fp32"]
    raced = {f"{method}, {kind}": (method, kind) for kind in kinds for method in OFFICIAL}
    yield from setting.lines(alike, lambda name: same(setting, name, alike[name]))
    yield from setting.lines(raced, lambda name: race(setting, name, *raced[name]))


def config_of(setting: Setting, method: str) -> Config:
    """ResNet-18 by a method's official script."""
    return setting.full("resnet18", f"method={method}", *OFFICIAL[method])


def same(setting: Setting, name: str, method: str) -> Line:
    """Compare first gradients, computed by the same kernels: channels first, nothing folded."""
    config = config_of(setting, method)
    config = replace(config, runtime=replace(config.runtime, channels_last=False))
    batch = contiguous(noise_batch(config, COMPARED, setting.device))
    with arithmetic(config, "fp32"):
        net, optimizer = public_form(config, setting.device)
        reference_step(method, net, optimizer, batch)
        ours = Trainee(config, batch, folded=False)
        ours.step()
        theirs = vector([p.grad for p in net.parameters() if p.grad is not None])
        return below(name, {"gradient": relative(ours.gradient(), theirs)}, SAME)


def race(setting: Setting, name: str, method: str, kind: Kind) -> Line:
    """Take turns; the median of the ratios, with their range."""
    config, n = config_of(setting, method), 16 if setting.tiny else 128
    batch = noise_batch(config, n, setting.device)
    net, optimizer = public_form(config, setting.device)
    theirs = contiguous(batch)
    searches = Searches(n, Graphs()) if setting.cuda else None
    trainee = Trainee(config, batch, kind, searches=searches)

    def reference() -> None:
        with public_switches():
            reference_step(method, net, optimizer, theirs)

    def ours() -> None:
        with arithmetic(config, kind):
            trainee.step()

    contestants = {"reference": reference, "ours": ours}
    take_turns(contestants, setting.device, 2)  # kernels are chosen, searches captured
    times = take_turns(contestants, setting.device, 3 if setting.tiny else 7)
    ratios = [a / b for a, b in zip(times["reference"], times["ours"], strict=True)]
    ratio, least, most = statistics.median(ratios), min(ratios), max(ratios)
    rate = n / statistics.median(times["ours"])
    figures = {"ratio": ratio, "least": least, "most": most, "images_per_second": rate}
    text = f"{ratio:.2f} x the reference ({least:.2f} to {most:.2f}), {rate:.4g} images/s"
    return measured(name, text, figures)


@contextmanager
def public_switches() -> Iterator[None]:
    """Torch's own defaults, which the scripts leave alone: cuDNN may use TF32."""
    saved = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = saved


def public_form(config: Config, device: torch.device) -> tuple[Net, torch.optim.Optimizer]:
    """The network and optimiser as the scripts make them."""
    channels, size = extent_of(config)
    first = replace(config, runtime=replace(config.runtime, channels_last=False))
    net = build_net_of(first, channels, size, config.phases[-1].method, device)
    return net, torch.optim.SGD(net.parameters(), LR, momentum=0.9, weight_decay=5e-4)


def contiguous(batch: Batch) -> Batch:
    """A batch with channels first."""
    return replace(batch, x=batch.x.contiguous())
