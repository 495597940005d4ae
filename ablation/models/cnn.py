"""Small convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ablation.models.blocks import (
    Body,
    GlobalAverage,
    Size,
    check_positive,
    check_size,
    conv3x3,
)


@dataclass(frozen=True)
class Cnn:
    """Four convolutions without normalisation layers: a stand-in for the CNN of EMR, section 3.

    Twice (conv 3x3, ReLU, conv 3x3, ReLU, max-pool 2), then Linear and ReLU. With the defaults,
    32x32 colour images and ten classes: 64-64-M-128-128-M-256-10, 2,360,138 parameters. The
    paper's table of layers is in a supplement that is not available, and the released code lacks
    the network; the paper says that it is feed-forward and has four convolutions. This is a
    proposal. PyTorch's initialisation.

    Args:
        width: channels of the first two convolutions; the others have twice as many.
        dense: units of the hidden linear layer.
    """

    width: int = 64
    dense: int = 256

    def __post_init__(self) -> None:
        check_positive(width=self.width, dense=self.dense)

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body for images of ``size`` (height, width).

        Raises:
            InputError: images below 4x4.
        """
        check_size("Cnn", size, 4)
        layers = {
            "stage1": _pair(channels, self.width),
            "stage2": _pair(self.width, 2 * self.width),
            "flatten": nn.Flatten(),
            "dense": nn.Linear(2 * self.width * (size[0] // 4) * (size[1] // 4), self.dense),
            "relu": nn.ReLU(inplace=True),
        }
        return Body(layers, self.dense)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


@dataclass(frozen=True)
class TinyCnn:
    """Three convolutions with BatchNorm, for the 8x8 digits, smoke runs and tests; no paper has it.

    conv-BN-ReLU with w, 2w and 4w channels, the last two at half the size, then the mean over
    the pixels. 24,058 parameters with the defaults, grey images and ten classes; it trains on the
    digits in seconds on a CPU, and has BatchNorm so that smoke runs exercise its modes.

    Args:
        width: w.
    """

    width: int = 16

    def __post_init__(self) -> None:
        check_positive(width=self.width)

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body for images of ``size`` (height, width).

        Raises:
            InputError: images below 4x4.
        """
        check_size("TinyCnn", size, 4)
        features = 4 * self.width
        layers = {
            "stage1": _normalized(channels, self.width),
            "stage2": _normalized(self.width, 2 * self.width),
            "pool": nn.MaxPool2d(2),
            "stage3": _normalized(2 * self.width, features),
            "average": GlobalAverage(),
        }
        return Body(layers, features)


def _normalized(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
