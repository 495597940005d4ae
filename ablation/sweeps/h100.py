"""How long a pass through a network would take on an H100: from its FLOPs, without the card.

Estimates, right to about a factor of three. A batch takes as long as its arithmetic at the rate in
``SUSTAINED`` or its kernel launches, whichever is longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ablation.config.experiment import Config
from ablation.data import Extent
from ablation.sweeps.cost import Estimate, Precision, build, estimate_elsewhere

SUSTAINED = {"fp32": 33e12, "tf32": 100e12, "bf16": 200e12}
"""FLOP/s assumed to be sustained: half of the data sheet's 67e12 (H100 SXM) in fp32, a fifth of its
495e12 and 989e12 on tensor cores, which small images do not fill."""
LAUNCH = 7e-6
"""Seconds of a kernel launch from Python."""
ASSUMED = (
    f"H100: FLOPs at {SUSTAINED['fp32'] / 1e12:.0f} TFLOP/s (fp32; half of the data sheet's 67), "
    f"and at least {LAUNCH * 1e6:.0f} µs a kernel: assumed, not measured"
)
"""What the estimates rest on, for people."""


@dataclass(frozen=True)
class Work:
    """A forward pass of one image.

    Attributes:
        flops: two for a multiplication with its addition.
        launches: operations that compute something.
    """

    flops: int
    launches: int


def estimate_on_h100(configs: list[Config]) -> list[Estimate]:
    """Estimate each job on one H100, from scratch."""
    return estimate_elsewhere(configs, pace, "cuda")


def pace(config: Config, extent: Extent, device: torch.device, precision: Precision) -> float:
    """Seconds of a forward pass per image on an H100, whatever this machine's ``device``."""
    done = work(config, extent)
    return max(done.flops / SUSTAINED[precision], done.launches * LAUNCH / config.batch_size)


def work(config: Config, extent: Extent) -> Work:
    """Count what a forward pass does, on a device without memory."""
    with torch.device("meta"):
        net = build(config, extent).eval()
        x = torch.rand(1, extent.channels, *extent.size)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _Launches() as launches:
        net(x)
    return Work(flops.get_total_flops(), launches.count)


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
