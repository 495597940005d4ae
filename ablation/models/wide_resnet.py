"""Wide residual networks, in the two variants of the published tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.models.blocks import (
    Body,
    GlobalAverage,
    Make,
    PreActBlock,
    Size,
    check_positive,
    check_size,
    conv1x1,
    conv3x3,
    residual_stages,
)
from ablation.models.foreign import HEAD, Names


@dataclass(frozen=True)
class WideResNet:
    """WRN-depth-width: three stages of 16w, 32w, 64w channels (Zagoruyko & Komodakis, 2016).

    Pre-activation blocks, BatchNorm and activation behind the last, no dropout. The mean is over
    all pixels, in the official code over fixed 8x8 ones: the same at 32x32.

    ``standard``: wideresnet.py of TRADES, MART and MAIL: ReLU, 1x1 convolution as shortcut where
    the channels change. WRN-34-10 has 46,160,474 parameters with ten classes. That class also
    holds an unused copy of its first stage, ``sub_block1`` (2,102,112 parameters), left out here.

    ``emr``: madry_model.py of the EMR code: LeakyReLU(0.1), and the shortcut is an average over
    stride x stride pixels with zero channels on both sides; 45,901,914 parameters.

    Args:
        depth: layers with weights, 6n + 4 for n blocks in each stage.
        width: w.
        variant: ``standard`` or ``emr``, as above.
    """

    names: ClassVar[Names] = Names(
        rules=(
            (r"conv1\.", "stem."),
            (r"block(\d+)\.layer\.", r"stage\1."),
            (r"bn1\.", "bn."),
            (r"(?:fc|linear)\.", HEAD),
        ),
        inner=((r"convShortcut\.", "shortcut."),),
        unused=("sub_block1.",),
    )
    """wideresnet.py of TRADES, MART and MAIL, and RobustBench's."""

    depth: int = 34
    width: int = 10
    variant: Literal["standard", "emr"] = "standard"

    def __post_init__(self) -> None:
        check_positive(width=self.width)
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth={self.depth} must be 6n + 4: for example 10, 16, 28 or 34")

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body for images of ``size`` (height, width).

        Raises:
            InputError: images below 4x4; with ``emr`` also a size that 4 does not divide, where
                average pooling and strided convolution disagree.
        """
        check_size("WideResNet", size, 4)
        emr = self.variant == "emr"
        if emr and (size[0] % 4 or size[1] % 4):
            raise InputError(
                f"WideResNet with variant=emr needs height and width that 4 divides, not "
                f"{size[1]}x{size[0]}: "
                "choose model.spec.variant=standard, or crop or pad the images"
            )
        shortcut: Make = PoolAndPad if emr else conv1x1
        activation = nn.LeakyReLU(0.1, inplace=True) if emr else nn.ReLU(inplace=True)

        def block(inputs: int, outputs: int, stride: int) -> PreActBlock:
            return PreActBlock(inputs, outputs, stride, shortcut, activation)

        widths = [16 * self.width, 32 * self.width, 64 * self.width]
        layers = {
            "stem": conv3x3(channels, 16),
            **residual_stages(block, 16, widths, [(self.depth - 4) // 6] * 3),
            "bn": nn.BatchNorm2d(widths[-1]),
            "activation": activation,
            "average": GlobalAverage(),
        }
        return Body(layers, widths[-1])

    def init(self, module: nn.Module) -> None:
        """Initialise one layer of body or head as the official code (both variants) does.

        Convolutions N(0, sqrt(2 / (k^2 * outputs))), linear biases 0; BatchNorm's scale 1 and
        shift 0 and the linear weights are PyTorch's.
        """
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class PoolAndPad(nn.Module):
    """Average over stride x stride pixels, then (outputs - inputs) / 2 zero channels on each side.

    Args:
        inputs: channels of the input.
        outputs: channels of the output; outputs - inputs is even.
        stride: of the pooling.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        pooled = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.pad(pooled, (0, 0, 0, 0, self.padding, self.padding))
