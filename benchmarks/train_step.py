"""Time one training step of AT, TRADES and MART against a plain reference step, in one run.

The reference (``ablation/doctor/reference.py``) is as the field's public scripts have it: eager,
fp32, channels first, parameters tracked during the attack, clean logits recomputed in TRADES' inner
loop. Both take the same batch, weights and noise, alternate round by round, and are compared before
they are timed: gradients in fp32 agree to rounding; in bf16 the cosine to the reference stands
beside the cosine of the reference under another noise seed. A third step, written by hand with the
same savings as ours, shows what composition costs.

    python benchmarks/train_step.py [--methods trades --precisions bf16 --rounds 5 --compile ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ablation.budgets import Fixed
from ablation.crafters import Ascended, AttackCrossEntropy, AttackKL, Pgd
from ablation.doctor.clock import Step, take_turns
from ablation.doctor.reference import (
    EPS,
    STEP,
    STEPS,
    mart_loss,
    project,
    reference_step,
    start,
)
from ablation.doctor.setting import cosine
from ablation.models import Net, ResNet, build_model
from ablation.models.folding import Folded
from ablation.numerics.compiled import compile_passes
from ablation.numerics.modes import BatchNormReplay
from ablation.numerics.precision import precision_context
from ablation.random import generator
from ablation.terms import KL, BoostedCrossEntropy, CrossEntropy
from ablation.training.method import Method, Slot, parse_passes
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from ablation.weights import OneMinusTrueProbability

PASSES = {"at": (23, 23), "trades": (27, 39), "mart": (26, 26)}
"""Cost in forwards of (our step, the reference): forward 1, input gradient 1, full backward 2."""


def method(name: str) -> Method:
    """The presets of conf/method, without Hydra."""
    loss = AttackKL() if name == "trades" else AttackCrossEntropy()
    crafters = {"adv": Pgd({"loss": Ascended(loss)}, STEPS, STEP / EPS)}
    passes, terms = {
        "at": (("adv",), {"ce": Slot(CrossEntropy("adv"))}),
        "trades": (
            ("nat", "adv", "bn:nat"),
            {"ce": Slot(CrossEntropy("nat")), "kl": Slot(KL(), 6.0)},
        ),
        "mart": (
            ("nat", "adv"),
            {
                "bce": Slot(BoostedCrossEntropy(constants="official")),
                "kl": Slot(
                    KL(constants="official"), 5.0, OneMinusTrueProbability(constants="official")
                ),
            },
        ),
    }[name]
    return Method(crafters, Fixed(EPS), parse_passes("craft:adv", *passes, "step"), terms)


def by_hand_step(
    name: str, net: Net, folded: Folded, optimizer: Any, batch: Batch, precision: Any
) -> None:
    """The same savings as ours, without the composition."""
    x, y = batch.x, batch.y
    x_adv, searched = start(batch, 0), folded.refresh()
    if name == "trades":
        with torch.no_grad(), precision():
            target = F.softmax(searched(x), 1)
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        with precision():
            z = searched(x_adv)
        if name == "trades":
            loss = F.kl_div(F.log_softmax(z, 1), target, reduction="sum")
        else:
            loss = F.cross_entropy(z, y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = project(x_adv.detach() + STEP * grad.sign(), x)
    optimizer.zero_grad()
    replay = BatchNormReplay(net) if name == "trades" else None
    with precision():
        z = net(x) if name != "at" else None
        if replay:
            replay.mark()
        z_adv = net(x_adv.detach())
    if replay:
        replay.replay()
    if z is None:
        loss = F.cross_entropy(z_adv, y)
    elif name == "trades":
        kl = F.kl_div(
            F.log_softmax(z_adv, 1), F.log_softmax(z, 1), reduction="sum", log_target=True
        )
        loss = F.cross_entropy(z, y) + 6.0 / len(y) * kl
    else:
        loss = mart_loss(z, z_adv, y)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    optimizer.step()


def gradient(net: nn.Module) -> Tensor:
    """All parameter gradients in one vector."""
    return torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])


def build(device: torch.device, channels_last: bool, lr: float, fused: bool) -> tuple[Net, Any]:
    """ResNet-18 with fixed weights and its optimiser."""
    net = build_model(ResNet(), channels=3, size=32, classes=10).to(device)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(), lr, momentum=0.9, weight_decay=5e-4, fused=fused or None
    )
    return net, optimizer


def make_steps(
    name: str, precision: str, batch: Batch, compiled: bool, lr: float
) -> dict[str, tuple[Net, Step]]:
    """The contestants, each with its own copy of the same weights."""
    device = batch.x.device
    context = precision_context(precision, device)  # type: ignore[arg-type]
    ref_net, ref_opt = build(device, channels_last=False, lr=lr, fused=False)
    net, opt = build(device, channels_last=True, lr=lr, fused=True)
    hand_net, hand_opt = build(device, channels_last=True, lr=lr, fused=True)
    fast = Batch(batch.x.contiguous(memory_format=torch.channels_last), batch.y, batch.index)
    rows = len(batch.y) if compiled else None
    if rows is not None:
        compile_passes(net.body, rows, training=True)
        compile_passes(hand_net.body, rows, training=True)
    composed, clock, folded = method(name), Clock(0, 0), Folded(net, rows)
    hand_folded = Folded(hand_net, rows)
    net.train()
    hand_net.train()
    return {
        "reference": (ref_net, lambda: reference_step(name, ref_net, ref_opt, batch)),
        "ours": (
            net,
            lambda: train_step(
                composed, net, opt, fast, clock, seed=0, precision=context, folded=folded
            ),
        ),
        "by hand": (
            hand_net,
            lambda: by_hand_step(name, hand_net, hand_folded, hand_opt, fast, context),
        ),
    }


def compare(name: str, batch: Batch, steps: dict[str, tuple[Net, Step]]) -> dict[str, float]:
    """Do both compute the same step? Gradients of each one's first step from the same weights."""
    other, optimizer = build(batch.x.device, channels_last=False, lr=0.01, fused=False)
    reference_step(name, other, optimizer, batch, seed=1)
    for _, step in steps.values():
        step()
    theirs, ours = gradient(steps["reference"][0]), gradient(steps["ours"][0])
    return {
        "gradient_error": float((ours - theirs).norm() / theirs.norm()),
        "cosine": cosine(ours, theirs),
        "cosine_other_seed": cosine(gradient(other), theirs),
    }


def same_kernels(name: str, batch: Batch) -> float:
    """Gradient error in fp32 with the reference's kernels: channels first, BatchNorm not folded.

    What is left is the order of roundings. The timed step also changes kernels, and a sign attack
    turns a rounded-away gradient entry into a full step, so its own error says little.
    """
    small = Batch(batch.x[:16], batch.y[:16], batch.index[:16])
    theirs, optimizer = build(batch.x.device, channels_last=False, lr=0.01, fused=False)
    reference_step(name, theirs, optimizer, small)
    ours, optimizer = build(batch.x.device, channels_last=False, lr=0.01, fused=False)
    ours.train()
    train_step(method(name), ours, optimizer, small, Clock(0, 0), seed=0)
    return float((gradient(ours) - gradient(theirs)).norm() / gradient(theirs).norm())


def forward_flops(batch: Batch) -> float:
    """Floating-point operations of one forward, 2 per multiply-add."""
    net, _ = build(torch.device("cpu"), channels_last=False, lr=0.0, fused=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *batch.x.shape[1:]))
    return float(counter.get_total_flops() * len(batch.y))


def measure(name: str, precision: str, batch: Batch, compiled: bool, rounds: int) -> dict[str, Any]:
    """Interleaved rounds after a warm-up; medians, and the median of the paired ratios."""
    steps = make_steps(name, precision, batch, compiled, lr=0.01)
    same = compare(name, batch, steps)  # the first step of each: also the warm-up
    forward = forward_flops(batch)
    contestants = {label: step for label, (_, step) in steps.items()}
    times = take_turns(contestants, batch.x.device, rounds)

    def ratio(above: str, below: str) -> list[float]:
        return [a / b for a, b in zip(times[above], times[below], strict=True)]

    seconds = {label: statistics.median(values) for label, values in times.items()}
    speedup = ratio("reference", "ours")
    return {
        "method": name,
        "precision": precision,
        "compiled": compiled,
        "speedup": statistics.median(speedup),
        "speedup_range": [min(speedup), max(speedup)],
        "composition_cost": statistics.median(ratio("ours", "by hand")) - 1,
        "images_per_second": len(batch.y) / seconds["ours"],
        "reference_images_per_second": len(batch.y) / seconds["reference"],
        "gflops_per_second": forward * PASSES[name][0] / seconds["ours"] / 1e9,
        "reference_gflops_per_second": forward * PASSES[name][1] / seconds["reference"] / 1e9,
        **same,
        "same_kernels_error": same_kernels(name, batch) if precision == "fp32" else None,
    }


def main() -> None:
    """Print one line per method and precision; optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=["at", "trades", "mart"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    device = torch.device(options.device)
    rng = generator(0, "benchmark")
    x = torch.rand(options.batch_size, 3, 32, 32, generator=rng)
    y = torch.randint(10, (options.batch_size,), generator=rng)
    batch = Batch(x.to(device), y.to(device), torch.arange(len(y), device=device))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"torch {torch.__version__}, {where or device}, {torch.get_num_threads()} threads")
    print("method  precision  speedup  (range)        images/s  GFLOP/s  composition  gradient")
    rows = []
    for name in options.methods:
        for precision in options.precisions:
            row = measure(name, precision, batch, options.compile, options.rounds)
            rows.append(row)
            low, high = row["speedup_range"]
            print(
                f"{name:7} {precision:9} {row['speedup']:7.2f}x  ({low:.2f}-{high:.2f})"
                f"  {row['images_per_second']:10.1f} {row['gflops_per_second']:8.0f}"
                f"  {100 * row['composition_cost']:+9.1f} %"
                f"  error {row['gradient_error']:.1e}, cosine {row['cosine']:.4f}"
                f" (other seed {row['cosine_other_seed']:.4f})"
                + (
                    f", same kernels {row['same_kernels_error']:.1e}" if precision == "fp32" else ""
                ),
                flush=True,
            )
    if options.json:
        facts = {"torch": torch.__version__, "device": where, "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
