"""Training and validation splits, stratified by class and reproducible from a seed."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ablation.errors import InputError
from ablation.random import generator


@dataclass(frozen=True)
class Split:
    """Positions in the full training set: int64, sorted, disjoint.

    Attributes:
        train: training images, shape [N_train].
        val: validation images, which select the checkpoint, shape [N_val]; may be empty.
    """

    train: Tensor
    val: Tensor


def stratified_split(
    labels: Tensor, val_size: int, seed: int, train_size: int | None = None
) -> Split:
    """Hold out validation images, each class in proportion to its size.

    A class's share is rounded so that the sizes are exact (largest remainder; ties go to the lower
    class), hence off by less than 1. The validation set does not depend on ``train_size``.

    Args:
        labels: classes, shape [N], int64, counted from 0.
        val_size: images held out, 0 for none.
        seed: of the draw, ``data.split_seed``.
        train_size: stratified subset of what remains; ``None`` means all of it.

    Raises:
        InputError: a size does not fit the set, or is less than one image per class.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels)
    check_sizes(len(labels), int((counts > 0).sum()), val_size, train_size)
    val_share = largest_remainder(counts, val_size)
    left = counts - val_share
    rest = len(labels) - val_size
    train_share = largest_remainder(left, rest if train_size is None else train_size)

    shuffled = torch.randperm(len(labels), generator=generator(seed, "split"))
    order = shuffled[torch.argsort(labels[shuffled], stable=True)]
    class_of = labels[order]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[class_of]
    val = rank < val_share[class_of]
    train = ~val & (rank < (val_share + train_share)[class_of])
    return Split(order[train].sort().values, order[val].sort().values)


def check_sizes(total: int, classes: int, val_size: int, train_size: int | None) -> None:
    """Check that a training set has enough images for the sizes of its split.

    Args:
        total: images of the training set.
        classes: number of classes among them.
        val_size: as in ``stratified_split``.
        train_size: as in ``stratified_split``.

    Raises:
        InputError: a size does not fit the set, or is less than one image per class.
    """
    _check_size("data.val_size", val_size, total - 1, classes, "0 for no validation")
    if train_size is not None:
        rest = total - val_size
        _check_size("data.train_size", train_size, rest, classes, "null for all", zero=False)


def _check_size(key: str, size: int, most: int, least: int, none: str, zero: bool = True) -> None:
    if (size == 0 and zero) or least <= size <= most:
        return
    raise InputError(
        f"{key}={size}: this training set allows {least} (one per class) to {most}; "
        f"choose a number in between, or {none}"
    )


def largest_remainder(counts: Tensor, size: int) -> Tensor:
    """Divide ``size`` among classes in proportion to ``counts`` [K]; the shares sum to ``size``."""
    total = int(counts.sum())
    shares = counts * size // total
    remainders = counts * size % total
    missing = size - int(shares.sum())
    shares[torch.argsort(remainders, descending=True, stable=True)[:missing]] += 1
    return shares


def encode_split(split: Split) -> bytes:
    """Content of an ``.npz`` file with ``train`` and ``val``."""
    buffer = BytesIO()
    np.savez(buffer, train=split.train.cpu().numpy(), val=split.val.cpu().numpy())
    return buffer.getvalue()


def load_split(path: Path) -> Split:
    """Read what ``encode_split`` made.

    Raises:
        InputError: the file is missing, damaged or no split.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            train, val = (torch.from_numpy(file[name]) for name in ("train", "val"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise InputError(
            f"{path}: not a readable split ({type(error).__name__}); "
            f"delete the file to draw it again from data.split_seed"
        ) from error
    return Split(train, val)
