"""MNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision, which downloads and verifies them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablation.data.images import ImageSet, reason, require
from ablation.errors import InputError

_MNIST = tuple(
    f"MNIST/raw/{part}"
    for part in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
)
_CIFAR10 = tuple(
    f"cifar-10-batches-py/{part}"
    for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
)
_CIFAR100 = tuple(f"cifar-100-python/{part}" for part in ("train", "test", "meta"))
_SVHN = ("train_32x32.mat", "test_32x32.mat")


@dataclass(frozen=True)
class Mnist:
    """MNIST: 60,000 + 10,000 digits, 28x28 grey, 10 classes (LeCun et al., 1998).

    Attributes:
        download: fetch the files where they are missing.
    """

    download: bool = True

    def check(self, root: Path) -> list[str]:
        """Are the four files of ``<root>/MNIST/raw`` there, and as long as they say?"""
        return _missing(root, _MNIST, self.download) or [
            problem for name in _MNIST for problem in _idx_problems(root / name)
        ]

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Training and test set, uint8 [N, 1, 28, 28].

        Raises:
            InputError: files are missing or damaged, or the download failed.
        """
        require(self.check(root))
        with _reading("MNIST", root, lambda: (root / name for name in _MNIST)):
            from torchvision.datasets import MNIST

            train = MNIST(root, train=True, download=self.download)
            test = MNIST(root, train=False)
            return (
                ImageSet(train.data[:, None], train.targets.long()),
                ImageSet(test.data[:, None], test.targets.long()),
            )
