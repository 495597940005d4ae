"""Image sets in memory and the protocol of their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ablation.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Images as 8-bit integers, a quarter of the memory of floats, and their classes.

    Attributes:
        images: pixels, shape [N, C, H, W], uint8 in 0..255.
        labels: classes, shape [N], int64, counted from 0.

    Raises:
        InputError: a shape, a dtype or a label is not as above, or there is no image.
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
        """Select the images at ``index`` [M], int64, in that order; on the same device."""
        index = index.to(self.images.device)
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> ImageSet:
        """Move images and labels to a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def fingerprint(self) -> str:
        """Hash shape, labels and pixels, in order: 16 hex digits of a SHA-256."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.labels, self.images):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Extent:
    """What a source holds, known before its images are decoded.

    Attributes:
        train: images of the training set, validation images included.
        test: images of the test set.
        channels: of every image.
        size: (height, width) of every image in pixels.
        labels: those that occur, in order.
        names: what each class stands for; empty where the labels say it.
    """

    train: int
    test: int
    channels: int
    size: tuple[int, int]
    labels: Sequence[int]
    names: Sequence[str] = ()


class Source(Protocol):
    """Source of images: a frozen dataclass whose fields are the keys of ``data.source``."""

    def check(self, root: Path) -> list[str]:
        """Check the files without reading pixels: one line per problem, with its remedy."""

    def extent(self, root: Path) -> Extent | None:
        """Give number, shape and labels of what ``load`` returns, without decoding the images.

        ``None`` if the files needed for that are missing or damaged.
        """

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Read the training and the test set below ``root``, the user's ``data_dir``.

        Raises:
            InputError: something is missing or cannot be used; the message names the file.
        """


@runtime_checkable
class OwnImages(Source, Protocol):
    """A source of a user's images: what is known of them comes from the files."""

    def training_files(self, root: Path) -> list[Path]:
        """List the files that hold the training set, to notice that they changed."""


def to_float(
    images: Tensor, dtype: torch.dtype = torch.float32, *, channels_last: bool = False
) -> Tensor:
    """Convert pixels to floats, x / 255.

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


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; from pinned memory, so that nothing waits."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def check_labels(data: ImageSet, classes: int) -> None:
    """Check that no label of a set, which need not hold all classes, is ``classes`` or more.

    Raises:
        InputError: one is.
    """
    labels = sorted(set(data.labels.tolist()))
    if labels[-1] >= classes:
        raise InputError(label_problems(labels, classes)[0])


def label_problems(labels: Sequence[int], classes: int) -> list[str]:
    """Check that a source's labels are 0 to ``classes - 1``: one line, or none.

    Args:
        labels: those that occur, in order.
        classes: ``data.classes``.
    """
    count, last = len(labels), labels[-1]
    absent = sorted({*range(labels[0], last)} - {*labels})
    if labels[0] == 0 and not absent:
        if count == classes:
            return []
        return [
            f"data.classes={classes}: the images are of {count} classes; set data.classes={count}"
        ]
    what = f"labels {labels[0]} to {last}"
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        what += f" without {', '.join(map(str, absent[:3]))}{more}"
    return [
        f"{what}: {count} classes are numbered 0 to {count - 1}; set data.source.relabel=true to "
        f"number them anew"
    ]


def same_shape(train: ImageSet, test: ImageSet, where: str) -> None:
    """Check that the images of two sets have one shape; ``where`` names the test set.

    Raises:
        InputError: channels, height or width differ.
    """
    (c, h, w), (channels, height, width) = test.images.shape[1:], train.images.shape[1:]
    if (c, h, w) != (channels, height, width):
        raise InputError(
            f"{where}: test images have {c} channels and {w}x{h} pixels, training images "
            f"{channels} channels and {width}x{height}; give both one form"
        )
