"""Time the penalties of EMR against one PGD step, in one run.

A PGD step is a forward and a backward pass to the input, parameters without gradient. A penalty is
what it adds to a training step: forward in evaluation mode, backward to the input, and the double
backward to the parameters. The exact one is timed as a loop over the classes, as it is
implemented, and as one vmapped backward pass; the approximation also with torch's own layers and by
forward-mode differentiation along its gradient, which needs no double backward. All alternate round
by round and are compared before they are timed; figures are medians of paired ratios.

    python -m benchmarks.emr [--models resnet18 --rounds 3 --json benchmarks/emr_cpu.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ablation.models import Cnn, Mlp, Net, ResNet, build_model
from ablation.numerics.double_backward import TwiceDifferentiable
from ablation.numerics.modes import BatchNorm, evaluating, frozen_parameters
from ablation.numerics.penalties import (
    effective_weights,
    probed_weights,
    random_signs,
    squared_gradient,
    weighted_logit,
)
from ablation.random import generator

CLASSES, TEMPERATURE = 10, 40.0
MODELS: dict[str, tuple[Any, int, int, int]] = {
    "mlp": (Mlp(hidden=4, width=1024), 1, 28, 100),
    "cnn": (Cnn(), 3, 32, 16),
    "resnet18": (ResNet(), 3, 32, 8),
}
"""Name -> architecture, channels, size, batch."""
Penalty = Callable[[Net, Tensor], Tensor]


def batched(z: Tensor, x: Tensor) -> Tensor:
    """``effective_weights`` by one vmapped backward pass."""
    basis = torch.eye(CLASSES, device=z.device)[:, None].expand(-1, len(z), -1)
    (rows,) = torch.autograd.grad(z, x, basis, is_grads_batched=True, create_graph=True)
    return rows.flatten(2).square().sum((0, 2))


def forward_mode(net: Net, x: Tensor) -> Tensor:
    """The approximation: ||g||^2 = <g, grad h> has twice the gradient of the slope along g."""
    moving = x.detach().requires_grad_()
    with frozen_parameters(net):
        z = net(moving)
        p = F.softmax(z / TEMPERATURE, 1).detach()
        (gradient,) = torch.autograd.grad((p * z).sum(), moving)
    with forward_ad.dual_level():
        dual = net(forward_ad.make_dual(x, gradient))  # type: ignore[no-untyped-call]
        tangent: Tensor = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]
    return 2 * (p * tangent).sum(1) - gradient.flatten(1).square().sum(1)


def of_logits(penalty: Callable[[Tensor, Tensor], Tensor], cheap: bool = True) -> Penalty:
    """A penalty of logits and points, with its forward pass."""

    def full(net: Net, x: Tensor) -> Tensor:
        points = x.detach().requires_grad_()
        with TwiceDifferentiable() if cheap else nullcontext():
            z = net(points)
        return penalty(z, points)

    return full


def approximate(z: Tensor, x: Tensor) -> Tensor:
    """The paper's approximation."""
    return squared_gradient(weighted_logit(z, TEMPERATURE), x)


def penalties() -> dict[str, Penalty]:
    """What is timed."""
    return {
        "exact (loop)": of_logits(effective_weights),
        "exact (vmapped)": of_logits(batched, cheap=False),
        "probe": of_logits(
            lambda z, x: probed_weights(z, x, random_signs(z, generator(0, "emr", device=z.device)))
        ),
        "approximate": of_logits(approximate),
        "approximate (torch's layers)": of_logits(approximate, cheap=False),
        "approximate (forward mode)": forward_mode,
    }


def build(name: str, device: torch.device) -> tuple[Net, Tensor, Tensor]:
    """A network whose BatchNorm has statistics, images and labels."""
    spec, channels, size, count = MODELS[name]
    net = build_model(spec, channels=channels, size=size, classes=CLASSES).to(device)
    net = net.to(memory_format=torch.channels_last)
    rng = generator(0, "benchmark")
    x = torch.rand(count, channels, size, size, generator=rng)
    for layer in net.modules():
        if isinstance(layer, BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        net.train()(x.to(device))
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    return net.eval(), x, torch.randint(CLASSES, (count,), generator=rng).to(device)


def pgd_step(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of one PGD step."""
    with evaluating(net):
        point = x.detach().requires_grad_()
        loss = F.cross_entropy(net(point), y, reduction="sum")
        return torch.autograd.grad(loss, point)[0]


def regularise(net: Net, x: Tensor, penalty: Penalty) -> None:
    """One penalty with its gradient in the parameters."""
    net.zero_grad(set_to_none=True)
    penalty(net, x).mean().backward()  # type: ignore[no-untyped-call]


def gradient(net: Net, x: Tensor, penalty: Penalty) -> Tensor:
    """The gradient of a penalty in one vector."""
    regularise(net, x, penalty)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def clock(step: Callable[[], object], device: torch.device) -> float:
    """Seconds, the device's work included; of processor time on a CPU, which others share."""
    if device.type == "cpu":
        begin = time.process_time()
        step()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def disagreement(net: Net, x: Tensor) -> float:
    """Largest relative difference between implementations of the same gradient."""
    every = penalties()
    pairs = {
        "exact (vmapped)": "exact (loop)",
        "approximate (torch's layers)": "approximate",
        "approximate (forward mode)": "approximate",
    }
    errors = []
    for name, reference in pairs.items():
        ours, theirs = (gradient(net, x, every[each]) for each in (name, reference))
        errors.append(float((ours - theirs).norm() / theirs.norm()))
    return max(errors)


def measure(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Interleaved rounds after a warm-up."""
    net, x, y = build(name, device)
    error = disagreement(net, x)
    steps: dict[str, Callable[[], object]] = {"PGD step": lambda: pgd_step(net, x, y)}
    for label, penalty in penalties().items():
        steps[label] = lambda penalty=penalty: regularise(net, x, penalty)  # type: ignore[misc]
    times: dict[str, list[float]] = {label: [] for label in steps}
    for number in range(rounds + 1):
        for label, step in steps.items():
            seconds = clock(step, device)
            if number:
                times[label].append(seconds)
    ratios = {
        label: statistics.median(
            a / b for a, b in zip(times[label], times["PGD step"], strict=True)
        )
        for label in steps
    }
    milliseconds = {label: 1e3 * statistics.median(values) for label, values in times.items()}
    return {
        "model": name,
        "batch": len(x),
        "pgd_steps": ratios,
        "milliseconds": milliseconds,
        "disagreement": error,
    }


def main() -> None:
    """Print one line per model and penalty; optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"torch {torch.__version__}, {where or device}, {torch.get_num_threads()} threads")
    rows = []
    for name in options.models:
        row = measure(name, device, options.rounds)
        rows.append(row)
        print(f"{name}, batch {row['batch']}; gradients agree to {row['disagreement']:.1e}")
        for label, ratio in row["pgd_steps"].items():
            print(f"  {label:28} {ratio:6.2f} PGD steps {row['milliseconds'][label]:8.1f} ms")
    if options.json:
        facts = {"torch": torch.__version__, "device": where, "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
