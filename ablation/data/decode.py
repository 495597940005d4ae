"""Decode encoded images (JPEG, PNG, ...) into one 8-bit tensor, with Pillow."""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ablation.data.problems import reason
from ablation.errors import InputError

Mode = Literal["RGB", "L"]
Encoded = tuple[str, bytes | Path]
"""A name for messages, and a file's content or its path."""

CHUNK = 2048
"""Images whose encoded bytes are held at once."""
_SLICE = 128
_CHANNELS: dict[Mode, int] = {"L": 1, "RGB": 3}
_GREY = ("1", "L", "LA", "La")
_UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error, EOFError)
"""What Pillow's decoders raise on damaged files."""


@dataclass(frozen=True)
class Format:
    """Mode and size that every image of a set is converted to.

    Attributes:
        mode: ``RGB`` or grey, ``L``; ``None`` means as the first image, and colour after a grey
            first one is an error. Transparency is dropped.
        size: side length to resize to; ``None`` means as the first image, and others are an error.
        remedy: what to do about an image of another size.
    """

    mode: Mode | None = None
    size: int | None = None
    remedy: str = "set data.source.image_size to resize all images to one size"


@dataclass(frozen=True)
class _Target:
    """A ``Format`` resolved with the first image; ``size`` is (width, height)."""

    mode: Mode
    size: tuple[int, int]
    wanted: Format


def decode(chunks: Iterable[Sequence[Encoded]], count: int, wanted: Format) -> Tensor:
    """Decode the images of a set into one tensor.

    Args:
        chunks: the images in order, in non-empty pieces; one piece is held at a time.
        count: number of images, at least 1.
        wanted: mode and size.

    Returns:
        Pixels, shape [N, C, H, W], uint8.

    Raises:
        InputError: an image is damaged, not 8-bit, or of another size or mode than the first.
    """
    stream = iter(chunks)
    head = next(stream)
    first = _open(*head[0])
    target = _target(first, wanted)
    width, height = target.size
    out = np.empty((count, _CHANNELS[target.mode], height, width), np.uint8)
    start = 0
    with ThreadPoolExecutor(_workers(first.size)) as pool:
        for chunk in itertools.chain([head], stream):
            slices = [slice(i, i + _SLICE) for i in range(0, len(chunk), _SLICE)]
            rows = out[start : start + len(chunk)]
            for _ in pool.map(lambda s, c=chunk, r=rows: _fill(c[s], r[s], target), slices):
                pass  # asking for the results raises the first error
            start += len(chunk)
    return torch.from_numpy(out)


def shape(name: str, content: bytes | Path, wanted: Format) -> tuple[int, tuple[int, int]]:
    """Read channels and (height, width) that a set has whose first image this is.

    Raises:
        InputError: it is damaged or not 8-bit.
    """
    target = _target(_open(name, content), wanted)
    width, height = target.size
    return _CHANNELS[target.mode], (height, width)


def in_chunks(paths: Sequence[Path]) -> Iterator[list[Encoded]]:
    """Split files into the pieces that ``decode`` takes; a file is read when its turn comes."""
    for start in range(0, len(paths), CHUNK):
        yield [(str(path), path) for path in paths[start : start + CHUNK]]


def _workers(size: tuple[int, int]) -> int:
    """Choose the number of threads: small images spend time in Python, where threads contend."""
    return max(1, min(os.cpu_count() or 1, 8, size[0] * size[1] // 64**2 + 1))


def _target(first: Image.Image, wanted: Format) -> _Target:
    size = first.size if wanted.size is None else (wanted.size, wanted.size)
    return _Target(wanted.mode or ("L" if first.mode in _GREY else "RGB"), size, wanted)


def _fill(images: Sequence[Encoded], out: NDArray[np.uint8], target: _Target) -> None:
    width, height = target.size
    for row, (name, content) in enumerate(images):
        image = _fit(name, _open(name, content), target)
        pixels = np.frombuffer(image.tobytes(), np.uint8)  # half the time of np.asarray(image)
        out[row] = pixels.reshape(height, width, -1).transpose(2, 0, 1)


def _open(name: str, content: bytes | Path) -> Image.Image:
    """Decode one image with 8 bits per channel."""
    try:
        data = content if isinstance(content, bytes) else content.read_bytes()
        image: Image.Image = Image.open(io.BytesIO(data))
        if _deep(image):
            raise InputError(
                f"{name}: not an 8-bit image (mode {image.mode}, more than 256 levels); "
                f"convert it to 8 bits per channel"
            )
        image.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not an image that Pillow can read; replace it") from error
    except _UNREADABLE as error:
        raise InputError(f"{name}: damaged image ({reason(error)}); replace it") from error
    return image


def _deep(image: Image.Image) -> bool:
    """Tell images of more than 8 bits: Pillow has 16-bit greys as I or F, but cuts colour to 8."""
    tiles: list[Any] = getattr(image, "tile", [])
    return image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in tiles)


def _fit(name: str, image: Image.Image, target: _Target) -> Image.Image:
    if image.mode != target.mode:
        if target.wanted.mode is None and target.mode == "L" and image.mode not in _GREY:
            raise InputError(
                f"{name}: a colour image (mode {image.mode}), but the first one is grey; "
                f"set data.source.mode=RGB, or L to make all grey"
            )
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way from a palette
        image = image.convert(target.mode)
    if image.size != target.size:
        if target.wanted.size is None:
            (w, h), (width, height) = image.size, target.size
            raise InputError(
                f"{name}: {w}x{h} pixels, but the first image has {width}x{height}; "
                f"{target.wanted.remedy}"
            )
        image = image.resize(target.size, Image.Resampling.BILINEAR)
    return image
