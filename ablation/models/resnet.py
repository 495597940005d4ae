"""ResNet for small images, post-activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ablation.models.blocks import (
    Body,
    GlobalAverage,
    Size,
    check_positive,
    check_size,
    conv1x1,
    conv3x3,
    residual_stages,
)
from ablation.models.foreign import HEAD, Names


@dataclass(frozen=True)
class ResNet:
    """Basic blocks behind a 3x3 stride-1 stem without max-pool (He et al., 2016a; CIFAR form).

    resnet.py of TRADES and MART. With the defaults (ResNet-18) and ten classes 11,173,962
    parameters. That code pools over fixed 4x4 pixels; the mean over all pixels is the same at
    32x32 and gives 512 features, not 2048, at 64x64. PyTorch's initialisation, as there.

    Args:
        blocks: blocks in each stage; all stages but the first halve the image.
        width: channels of stem and first stage; they double from stage to stage.
    """

    names: ClassVar[Names] = Names(
        rules=(
            (r"conv1\.", "stem.0."),
            (r"bn1\.", "stem.1."),
            (r"layer(\d+)\.", r"stage\1."),
            (r"(?:linear|fc)\.", HEAD),
        ),
        inner=((r"downsample\.", "shortcut."),),
    )
    """resnet.py of kuangliu, TRADES and MART; torchvision's ``downsample`` and ``fc``."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64

    def __post_init__(self) -> None:
        check_positive(blocks=self.blocks, width=self.width)

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body for images of ``size`` (height, width).

        Raises:
            InputError: images smaller than the total stride (8x8 by default).
        """
        check_size("ResNet", size, 2 ** (len(self.blocks) - 1))
        widths = [self.width * 2**i for i in range(len(self.blocks))]
        stem = nn.Sequential(
            conv3x3(channels, self.width), nn.BatchNorm2d(self.width), nn.ReLU(inplace=True)
        )
        stages = residual_stages(BasicBlock, self.width, widths, self.blocks)
        return Body({"stem": stem, **stages, "average": GlobalAverage()}, widths[-1])


class BasicBlock(nn.Module):
    """relu(shortcut + bn2(conv2(relu(bn1(conv1(x)))))).

    The shortcut is x, or a 1x1 convolution with BatchNorm where the shape changes. No layer keeps
    what the activations overwrite, so they may work in place, also under double backward.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            None
            if same
            else nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride], rounded up."""
        change: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(change + (x if self.shortcut is None else self.shortcut(x)), inplace=True)
