"""A set of images in memory, and what a source of them must be able to do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ablation.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes, as 8-bit integers: a quarter of the memory of floats.

    Attributes:
        images: pixels, shape [N, C, H, W], uint8 in 0..255.
        labels: classes, shape [N], int64, counted from 0.

    Raises:
        InputError: a shape, a dtype or a label is not of this kind, or there is no image.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images are {images.dtype} of shape {list(images.shape)}; "
                f"give uint8 of shape [N, C, H, W]"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise InputError(
                f"labels are {labels.dtype} of shape {list(labels.shape)}; "
                f"give int64 of shape [{len(images)}], one per image"
            )
        if images.numel() == 0:
            raise InputError(f"there is no pixel in images of shape {list(images.shape)}; add some")
        if int(labels.min()) < 0:
            raise InputError(
                f"label {int(labels.min())} of image {int(labels.argmin())} is negative; "
                f"classes count from 0: remove unlabelled images or number the classes anew"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor) -> ImageSet:
        """The images at ``index`` [M], int64, in that order; on the same device."""
        index = index.to(self.images.device)
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over shape, labels and pixels, in order."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.labels, self.images):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Extent:
    """How much a source holds.

    Attributes:
        train: images of the training set, validation images included.
        test: images of the test set.
        size: height of an image in pixels.
    """

    train: int
    test: int
    size: int


class Source(Protocol):
    """Where images come from: a frozen dataclass whose fields are the keys of ``data.source``."""

    def check(self, root: Path) -> list[str]:
        """A quick look that reads no pixels: one line per problem, with what to do about it."""

    def extent(self, root: Path) -> Extent | None:
        """How much ``load`` will give, from what is known or quickly read.

        ``None`` if that takes files that are not there, or not sound.
        """

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Read the training and the test set below ``root``, the user's ``data_dir``.

        Raises:
            InputError: something is missing or cannot be used; the message names the file.
        """


def to_float(
    images: Tensor, dtype: torch.dtype = torch.float32, *, channels_last: bool = False
) -> Tensor:
    """Pixels as floats: x / 255.

    Args:
        images: uint8 of any shape.
        dtype: of the result.
        channels_last: memory format of the result; needs shape [N, C, H, W].

    Returns:
        The same shape, in [0, 1].
    """
    layout = torch.channels_last if channels_last else torch.preserve_format
    # A divisor on the device: CUDA multiplies by the rounded reciprocal of a Python number, which
    # is off by one bit for half of the 256 values; pixels would differ from those on the CPU.
    full = torch.full((), 255.0, dtype=dtype, device=images.device)
    return images.to(dtype=dtype, memory_format=layout, copy=True).div_(full)


def check_labels(data: ImageSet, classes: int, key: str) -> None:
    """Compare the labels of a set with the number of classes in the config.

    Args:
        data: any set.
        classes: the configured number.
        key: the name of that setting, for the message.

    Raises:
        InputError: a label is too large.
    """
    found = int(data.labels.max()) + 1
    if found > classes:
        raise InputError(f"labels out of range: found {found}, {key}={classes}; set {key}={found}")


def same_shape(train: ImageSet, test: ImageSet, where: str) -> None:
    """Compare the images of two sets; ``where`` names the test set in the message.

    Raises:
        InputError: channels, height or width differ.
    """
    (c, h, w), (channels, height, width) = test.images.shape[1:], train.images.shape[1:]
    if (c, h, w) != (channels, height, width):
        raise InputError(
            f"{where}: test images have {c} channels and {w}x{h} pixels, training images "
            f"{channels} channels and {width}x{height}; give both one form"
        )
