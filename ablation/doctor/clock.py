"""A fair clock: the device's work is waited for, contestants take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def clock_step(step: Step, device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    wait_for(device)
    begin = time.perf_counter()
    step()
    wait_for(device)
    return time.perf_counter() - begin


def take_turns(
    steps: Mapping[str, Step], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each step, round by round: what disturbs the machine disturbs all."""
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            times[label].append(clock_step(step, device))
    return times


def typical(step: Step, device: torch.device, seconds: float = 0.5, most: int = 50) -> float:
    """Median seconds of a step that was made before; three at least, or more for so long."""
    end, times = time.perf_counter() + seconds, list[float]()
    while len(times) < 3 or (len(times) < most and time.perf_counter() < end):
        times.append(clock_step(step, device))
    return statistics.median(times)
