"""Attacks that are long: AutoAttack's parts, boundary search, and EMR's part in a training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ablation.doctor.clock import clock_step, typical
from ablation.doctor.lines import Line, measured, skipped
from ablation.doctor.setting import Setting, Trainee, arithmetic, noise_batch
from ablation.evaluation import (
    ApgdCe,
    ApgdT,
    Attack,
    FabT,
    FastApgdCe,
    FastApgdT,
    FastFabT,
    FastSquare,
    Request,
    Square,
    evaluate,
)
from ablation.models.folding import Folded
from ablation.training.step import craft
from ablation.training.views import StepViews
from ablation.types import Clock

PARTS: Mapping[str, tuple[Attack, float]] = {
    "apgd_ce": (ApgdCe(10), 10),
    "apgd_t": (ApgdT(10, 1), 90),
    "fab_t": (FabT(10, 1), 90),
    "square": (Square(100), 50),
    "fast_apgd_ce": (FastApgdCe(10), 10),
    "fast_apgd_t": (FastApgdT(10, 1), 90),
    "fast_fab_t": (FastFabT(10, 1), 90),
    "fast_square": (FastSquare(100), 50),
}
"""Parts of the standard version, shortened, and how much longer they are in full."""
UNBREAKABLE = 1e-6
"""A radius within which no image breaks: the dear case."""
WHOLE = {"autoattack": "", "fast_autoattack": "fast_"}
"""Names of the sums, and the beginning of their parts' names."""
EMR = ("exact", "approximate", "probe")


def examine(setting: Setting) -> Iterator[Line]:
    """Seconds of each for 1000 images, on ResNet-18."""
    parts = []
    for line in setting.lines(PARTS, lambda name: part(setting, name)):
        parts.append(line)
        yield line
    for whole, prefix in WHOLE.items():
        yield summed(whole, [line for line in parts if line.name in members(prefix)])
    yield from setting.lines(["boundary search"], lambda name: boundary(setting, name))
    steps = {f"AT with EMR, {variant}": variant for variant in EMR}
    yield from setting.lines(steps, lambda name: penalty(setting, name, steps[name]))


def members(prefix: str) -> list[str]:
    """Names of the four parts of an implementation."""
    return [name for name in PARTS if name.startswith("fast_") == bool(prefix)]


def summed(name: str, parts: Sequence[Line]) -> Line:
    """All four parts, where all were timed."""
    seconds = [line.figures.get("seconds_per_1000") for line in parts]
    known = [each for each in seconds if isinstance(each, float)]
    if len(known) < len(seconds):
        return skipped(name, "a part of it was not timed")
    total = sum(known)
    text = f"{total:.4g} s for 1000 unbroken images: the sum"
    return measured(name, text, {"seconds_per_1000": total})


def part(setting: Setting, name: str) -> Line:
    """One part of AutoAttack on images that stay robust."""
    attack, longer = PARTS[name]
    config = setting.full("resnet18", "method=standard")
    batch = noise_batch(config, 16 if setting.tiny else 500, setting.device)
    net = Trainee(config, batch).net.eval()
    images = (batch.x * 255).round().to(torch.uint8).contiguous()
    with torch.no_grad():
        labels = net(images.float() / 255).argmax(1)
    request = Request({name: attack}, UNBREAKABLE, diagnose=False)

    def run() -> None:
        evaluate(net, images.cpu(), labels.cpu(), request)

    run()
    seconds = longer * clock_step(run, setting.device) * 1000 / len(labels)
    text = f"{seconds:.4g} s for 1000 unbroken images, from 1/{longer:g} of its length"
    return measured(name, text, {"seconds_per_1000": seconds})


def boundary(setting: Setting, name: str) -> Line:
    """DyART's search (FAB-20) to the soft boundary."""
    config = setting.full("resnet18", "method=dyart")
    batch = noise_batch(config, 16 if setting.tiny else 128, setting.device)
    trainee = Trainee(config, batch)
    method, net = trainee.method, trainee.net
    folded, crafter = Folded(net), next(iter(method.crafters))

    def search() -> None:
        views = StepViews(net, batch, Clock(0, 0), torch.no_grad, None, method.observed(), 0)
        eps = method.budget(views)
        craft(method, views, crafter, eps, 0, folded)

    with arithmetic(config, "fp32"):
        search()
        seconds = typical(search, setting.device) * 1000 / len(batch.y)
    return measured(
        name, f"{seconds:.4g} s for 1000 images, in fp32", {"seconds_per_1000": seconds}
    )


def penalty(setting: Setting, name: str, variant: str) -> Line:
    """A step of AT with EMR beside a step of AT, in bf16."""
    seconds = []
    for more in ((), (f"component/emr={variant}",)):
        config = setting.full("resnet18", "method=at", *more)
        batch = noise_batch(config, 16 if setting.tiny else 128, setting.device)
        with arithmetic(config, "bf16"):
            trainee = Trainee(config, batch, "bf16")
            trainee.step()
            seconds.append(typical(trainee.step, setting.device))
    ratio, per_1000 = seconds[1] / seconds[0], 1000 * seconds[1] / len(batch.y)
    text = f"{per_1000:.4g} s for 1000 images, {ratio:.2f} x a step of AT"
    return measured(name, text, {"seconds_per_1000": per_1000, "of_at": ratio})
