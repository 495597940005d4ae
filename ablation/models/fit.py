"""What a model can take, asked on the meta device: nothing is allocated or computed."""

from __future__ import annotations

import torch
from torch import nn

from ablation.errors import InputError
from ablation.models.blocks import Size
from ablation.models.build import ModelSpec

_BODIES: dict[tuple[str, int, Size], nn.Module | str | None] = {}
"""What was built before, or why not: planning a table asks once per job."""


def refusal(spec: ModelSpec, channels: int, size: Size, batch: int) -> str | None:
    """Say why a model cannot train on batches of such images, or ``None``.

    Args:
        spec: the architecture.
        channels: of the images.
        size: (height, width) in pixels.
        batch: images of the smallest batch; where the last feature map is one pixel, BatchNorm
            has nothing to normalise a single image by.
    """
    body = _body(spec, channels, size)
    if isinstance(body, str):
        return body
    if batch > 1 or body is None:
        return None
    try:
        with torch.device("meta"):
            body(torch.zeros(1, channels, *size))
    except ValueError:
        return "BatchNorm cannot normalise a batch of a single image"
    except NotImplementedError:  # somebody's layer that needs memory
        return None
    return None


def overrun(spec: ModelSpec, channels: int, size: Size) -> str | None:
    """Name a layer whose gradient PyTorch computes outside its memory on some CPUs, or ``None``.

    Found with torch 2.15 and AVX2, in fp32 and channels_last: the weight gradient of a strided 1x1
    convolution of two to seven channels. Mostly the process ends, and nothing says why.

    Args:
        spec: the architecture.
        channels: of the images.
        size: (height, width) in pixels.
    """
    body = _body(spec, channels, size)
    if not isinstance(body, nn.Module):
        return None
    layers: list[tuple[str, nn.Module]] = list(body.named_modules())
    for name, layer in layers:
        if (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and max(layer.stride) > 1
            and 2 <= layer.in_channels <= 7
        ):
            return name
    return None


def _body(spec: ModelSpec, channels: int, size: Size) -> nn.Module | str | None:
    key = repr(spec), channels, size
    if key not in _BODIES:
        _BODIES[key] = _built(spec, channels, size)
    return _BODIES[key]


def _built(spec: ModelSpec, channels: int, size: Size) -> nn.Module | str | None:
    try:
        with torch.device("meta"):
            return spec.build(channels=channels, size=size, classes=2)
    except (InputError, ValueError) as error:
        return str(error)
    except NotImplementedError:  # somebody's layer that needs memory
        return None
