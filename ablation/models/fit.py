"""What a model can take, asked on the meta device: nothing is allocated or computed."""

from __future__ import annotations

import torch

from ablation.errors import InputError
from ablation.models.blocks import Size
from ablation.models.build import ModelSpec

_KNOWN: dict[tuple[str, int, Size, int], str | None] = {}
"""What was asked before: planning a table asks once per job."""


def refusal(spec: ModelSpec, channels: int, size: Size, batch: int) -> str | None:
    """Say why a model cannot train on batches of such images, or ``None``.

    Args:
        spec: the architecture.
        channels: of the images.
        size: (height, width) in pixels.
        batch: images of the smallest batch; where the last feature map is one pixel, BatchNorm
            has nothing to normalise a single image by.
    """
    key = repr(spec), channels, size, min(batch, 2)
    if key not in _KNOWN:
        _KNOWN[key] = _refusal(spec, channels, size, batch)
    return _KNOWN[key]


def _refusal(spec: ModelSpec, channels: int, size: Size, batch: int) -> str | None:
    try:
        with torch.device("meta"):
            body = spec.build(channels=channels, size=size, classes=2)
            if batch == 1:
                body(torch.zeros(1, channels, *size))
    except InputError as error:
        return str(error)
    except ValueError:
        return "BatchNorm cannot normalise a batch of a single image"
    except NotImplementedError:  # somebody's layer that needs memory
        return None
    return None
