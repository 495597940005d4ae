"""Building blocks of the architectures: body, residual stages, pre-activation block, checks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ablation.errors import InputError

Make = Callable[[int, int, int], nn.Module]
"""Builds a layer from its input channels, output channels and stride."""
Size = tuple[int, int]
"""(height, width) of images in pixels."""


class Body(nn.Module):
    """The layers below the head: images [N, C, H, W] to features [N, D].

    Args:
        layers: name -> layer, applied in this order.
        features: D, the number of features.
    """

    def __init__(self, layers: Mapping[str, nn.Module], features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(OrderedDict(layers))
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features [N, D] of ``x`` [N, C, H, W]."""
        features: Tensor = self.layers(x)
        return features


class GlobalAverage(nn.Module):
    """Mean over the pixels, [N, C, H, W] to [N, C]: any image size, deterministic on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Average ``x`` over H and W."""
        return x.mean((2, 3))


class PreActBlock(nn.Module):
    """shortcut + conv2(act(bn2(conv1(act(bn1(x)))))): full pre-activation (He et al., 2016b).

    Where the shape changes, the shortcut starts from act(bn1(x)), as in all the official code
    here; elsewhere it is x itself. BatchNorm does not keep its output for the backward pass, so
    the activations may work in place, also under double backward.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
        shortcut: builds the path beside the convolutions where the shape changes.
        activation: has no parameters; works in place.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, shortcut: Make, activation: nn.Module
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else shortcut(inputs, outputs, stride)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride], rounded up."""
        active = self.activation(self.bn1(x))
        change: Tensor = self.conv2(self.activation(self.bn2(self.conv1(active))))
        return change + (x if self.shortcut is None else self.shortcut(active))


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Make a 3x3 convolution that keeps the size at stride 1; no bias, since BatchNorm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Make the 1x1 convolution of a residual shortcut; no bias, as in ``conv3x3``."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def residual_stages(
    make: Make, inputs: int, widths: Sequence[int], blocks: Sequence[int]
) -> dict[str, nn.Module]:
    """Build stages of residual blocks; every stage but the first halves the image.

    Args:
        make: builds one block.
        inputs: channels of the input.
        widths: channels of each stage.
        blocks: number of blocks in each stage.
    """
    stages: dict[str, nn.Module] = {}
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        first = make(inputs, width, 1 if number == 1 else 2)
        rest = [make(width, width, 1) for _ in range(count - 1)]
        stages[f"stage{number}"] = nn.Sequential(first, *rest)
        inputs = width
    return stages


def check_positive(**settings: int | Sequence[int]) -> None:
    """Check that settings are whole numbers from 1, or non-empty lists of them.

    Raises:
        ValueError: one is not.
    """
    for name, value in settings.items():
        entries = [value] if isinstance(value, int) else list(value)
        if not entries or min(entries) < 1:
            shown = value if isinstance(value, int) else entries
            raise ValueError(f"{name}={shown} must be 1 or more")


def check_size(model: str, size: Size, least: int) -> None:
    """Check that an image survives a model's down-sampling.

    Raises:
        InputError: it is too small.
    """
    if min(size) < least:
        height, width = size
        raise InputError(
            f"{model} needs images of {least}x{least} pixels or more, these have {width}x{height}: "
            "choose a model for small images, for example model=tiny_cnn or model=mlp"
        )
