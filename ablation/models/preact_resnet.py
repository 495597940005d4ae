"""ResNet for small images, pre-activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ablation.models.blocks import (
    Body,
    GlobalAverage,
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
class PreActResNet:
    """Pre-activation blocks behind a 3x3 stride-1 stem, BatchNorm and ReLU behind the last.

    preactresnet.py of Rice et al. (2020), "Overfitting in adversarially robust deep learning",
    after He et al. (2016b). With the defaults (18 layers) and ten classes 11,172,170 parameters:
    1,024 more than forms that lack the last BatchNorm. The mean is over all pixels, in that
    code over fixed 4x4 ones: the same at 32x32. PyTorch's initialisation, as there.

    Args:
        blocks: blocks in each stage; all stages but the first halve the image.
        width: channels of stem and first stage; they double from stage to stage.
    """

    names: ClassVar[Names] = Names(
        rules=(
            (r"conv1\.", "stem."),
            (r"layer(\d+)\.", r"stage\1."),
            (r"bn\.", "bn."),
            (r"(?:linear|fc)\.", HEAD),
        ),
        inner=((r"shortcut\.0\.", "shortcut."),),
    )
    """preactresnet.py of Rice et al.; kuangliu's preact_resnet.py lacks the last BatchNorm."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64

    def __post_init__(self) -> None:
        check_positive(blocks=self.blocks, width=self.width)

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body for images of ``size`` (height, width).

        Raises:
            InputError: images smaller than the total stride (8x8 by default).
        """
        check_size("PreActResNet", size, 2 ** (len(self.blocks) - 1))
        widths = [self.width * 2**i for i in range(len(self.blocks))]
        stages = residual_stages(_block, self.width, widths, self.blocks)
        layers = {
            "stem": conv3x3(channels, self.width),
            **stages,
            "bn": nn.BatchNorm2d(widths[-1]),
            "relu": nn.ReLU(inplace=True),
            "average": GlobalAverage(),
        }
        return Body(layers, widths[-1])


def _block(inputs: int, outputs: int, stride: int) -> PreActBlock:
    return PreActBlock(inputs, outputs, stride, conv1x1, nn.ReLU(inplace=True))
