"""The same step: a CPU and the device, in float64, with the CPU's random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ablation.config.experiment import Config
from ablation.doctor.lines import Line, below
from ablation.doctor.setting import CPU, Setting, Trainee, arithmetic, relative, vector
from ablation.random import Draw, noting, repeating

LIMIT = 1e-8
"""Of relative errors: rounding is 1e-15, another formula, draw or order 1e-4 and more."""
STEPS, IMAGES = 3, 16


@dataclass(frozen=True)
class Walk:
    """Three steps: their losses, the gradient of the first, and the weights in the end."""

    losses: Tensor
    gradient: Tensor
    weights: Tensor


def examine(setting: Setting) -> Iterator[Line]:
    """A line for every method."""

    def line(method: str) -> Line:
        config = setting.configs.small(f"method={method}")
        with noting() as draws:
            host = walk(config, setting, CPU)
        there = on_device(config, setting, draws)
        errors = {
            "losses": relative(there.losses, host.losses),
            "gradient": relative(there.gradient, host.gradient),
            "weights": relative(there.weights, host.weights),
        }
        return below(method, errors, LIMIT)

    yield from setting.lines(setting.configs.methods(), line)


def on_device(config: Config, setting: Setting, draws: Sequence[Draw]) -> Walk:
    """The same steps on the device that is examined."""
    with repeating(draws):
        return walk(config, setting, setting.device)


def walk(config: Config, setting: Setting, device: torch.device) -> Walk:
    """Make the steps on a device."""
    batch = setting.pupil.batch(IMAGES, device, torch.float64)
    with arithmetic(config, "fp32"):
        trainee = Trainee(config, batch, weights=setting.pupil.weights)
        losses = [trainee.step().loss]
        gradient = trainee.gradient()
        losses += [trainee.step().loss for _ in range(STEPS - 1)]
    return Walk(vector(losses), gradient, trainee.weights())
