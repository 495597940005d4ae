"""Each precision against float64 on the CPU: fp32 is no TF32, bf16 points the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.doctor.lines import Line, below, judged, measured
from ablation.doctor.setting import (
    CPU,
    Kind,
    Setting,
    Trainee,
    arithmetic,
    cosine,
    relative,
    vector,
)
from ablation.numerics.precision import exact_arithmetic, precision_context
from ablation.random import generator
from ablation.types import Batch

FP32, EVALUATION = 1e-4, 1e-5
"""Limits of relative errors; TF32 errs by 3e-4 and more."""
COSINE = 0.99
"""That a gradient in bf16 keeps."""
IMAGES, MATRIX = 64, 256


@dataclass(frozen=True)
class Gradients:
    """Of the cross-entropy: to the parameters, and to the images."""

    weights: Tensor
    images: Tensor


def examine(setting: Setting) -> Iterator[Line]:
    """Gradients of a clean pass in fp32, tf32, bf16; EMR in tf32; products of an evaluation."""
    batch = setting.pupil.batch(IMAGES, CPU, torch.float64)
    exact = gradients(setting, batch, "fp32")

    def line(name: str) -> Line:
        if name == "evaluation":
            return evaluation(setting)
        if name == "EMR in tf32":
            ours = penalty(setting, on(batch, setting.device))
            return below(name, {"weights": relative(ours, penalty(setting, batch))}, FP32)
        kind: Kind = "fp32" if name == "fp32" else "tf32" if name == "tf32" else "bf16"
        found = gradients(setting, on(batch, setting.device), kind)
        errors = {
            "weights": relative(found.weights, exact.weights),
            "images": relative(found.images, exact.images),
        }
        if kind == "fp32":
            return below(name, errors, FP32)
        value = cosine(found.weights, exact.weights)
        text = ", ".join(f"{what} {error:.1e}" for what, error in errors.items())
        figures = {**errors, "cosine": value}
        if kind == "tf32":
            return measured(name, text, figures)
        return judged(name, value > COSINE, f"cosine {value:.4f} (above {COSINE}); {text}", figures)

    names = ["fp32", "tf32", "bf16", "EMR in tf32", "evaluation"]
    gpu_only = ("tf32", "EMR in tf32")
    kept = [name for name in names if setting.cuda or name not in gpu_only]
    yield from setting.lines(kept, line)


def on(batch: Batch, device: torch.device) -> Batch:
    """A batch in fp32 on a device."""
    x = batch.x.to(device, torch.float32)
    return Batch(x, batch.y.to(device), batch.index.to(device))


def gradients(setting: Setting, batch: Batch, kind: Kind) -> Gradients:
    """Of a clean pass in training mode."""
    config = setting.configs.small("method=standard")
    with arithmetic(config, kind):
        net = Trainee(config, batch, weights=setting.pupil.weights).net
        x = batch.x.clone().requires_grad_()
        with precision_context(kind, batch.x.device)():
            logits = net(x)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        F.cross_entropy(wide, batch.y).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None  # noqa: S101
        own = [p.grad for p in net.parameters() if p.grad is not None]
        return Gradients(vector(own), vector([x.grad]))


def penalty(setting: Setting, batch: Batch) -> Tensor:
    """Gradient of EMR's penalty alone, whose passes stay in fp32 in a run of TF32."""
    config = setting.configs.small("method=standard", "component/emr=approximate")
    with arithmetic(config, "tf32"):
        trainee = Trainee(config, batch, "tf32", weights=setting.pupil.weights)
        alone = {"emr": trainee.method.terms["emr"]}
        trainee.method = replace(trainee.method, terms=alone)
        trainee.step()
        return trainee.gradient()


def evaluation(setting: Setting) -> Line:
    """A product as evaluations compute it, while everything allows TF32."""
    rng = generator(0, "doctor/product")
    a, b = (torch.randn(MATRIX, MATRIX, generator=rng) for _ in range(2))
    there = a.to(setting.device), b.to(setting.device)
    with arithmetic(setting.configs.small(), "tf32"), exact_arithmetic(setting.device):
        error = relative(vector([there[0] @ there[1]]), vector([a.double() @ b.double()]))
    return below("evaluation", {"product": error}, EVALUATION)
