"""Count what a training step would launch on a GPU, on a pretended one: no GPU is needed.

    python -m benchmarks.launches

Operations of the shipped configs that are no views, for a batch of 8; neither the network's width
nor the batch's size changes them. Writes ``launches.json``, which ``tests/test_launches.py`` holds
the program to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ablation.config.experiment import Config
from ablation.models import Cnn, Mlp, ResNet, build_model
from ablation.models.build import ModelSpec
from ablation.models.net import Net
from ablation.random import generator
from ablation.types import Batch
from tests.support.device_steps import composing, stepped

FIGURES = Path(__file__).with_suffix(".json")
NETS: dict[str, ModelSpec] = {
    "resnet18": ResNet(width=4),
    "cnn": Cnn(width=4, dense=8),
    "mlp": Mlp(width=8),
}
"""Networks with all their layers, but narrow."""
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ()) for name in ("standard", "at", "trades", "mart", "dyart", "elsayed")},
    **{f"at, {name}": ("at", (f"component/{name}=enabled",)) for name in ("awp", "mail")},
    "at, emr exact": ("at", ("component/emr=exact",)),
    "at, emr approximate": ("at", ("component/emr=approximate",)),
}
"""Name -> method and overrides."""


def net_of(config: Config, name: str) -> Net:
    """A narrow network with the method's head, for 16x16 images of ten classes."""
    head = config.phases[-1].method.head or "linear"
    return build_model(NETS[name], channels=3, size=(16, 16), classes=10, head=head)


def launches(config: Config, name: str, precision: str, captured: bool) -> int:
    """Count the launches of a step, of which a CUDA graph is one."""
    x = torch.rand(8, 3, 16, 16, generator=generator(0, "launches"))
    batch = Batch(x, torch.arange(8), torch.arange(8))
    return stepped(config, net_of(config, name), batch, precision, 10, captured).launches


def counted(
    rows: dict[str, tuple[str, tuple[str, ...]]], nets: Sequence[str] = tuple(NETS)
) -> dict[str, dict[str, int]]:
    """Launches by row, then by network, precision and whether searches are captured."""
    with composing() as configs:
        built = {row: configs(method, more) for row, (method, more) in rows.items()}
    return {
        row: {
            f"{net} {precision}{kind}": launches(config, net, precision, bool(kind))
            for net in nets
            for precision in ("fp32", "bf16")
            for kind in ("", " captured")
        }
        for row, config in built.items()
    }


def main() -> None:
    """Count, print the table and write the figures."""
    figures = counted(ROWS)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    columns = list(next(iter(figures.values())))
    print("| step | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for row, counts in figures.items():
        print(f"| {row} | " + " | ".join(str(counts[each]) for each in columns) + " |")


if __name__ == "__main__":
    main()
