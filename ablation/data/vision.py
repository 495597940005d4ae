"""MNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision, which downloads and verifies them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablation.data.images import Extent, ImageSet
from ablation.data.problems import absent, download_lock, missing_files, reason, require
from ablation.errors import InputError

MNIST_FILES = tuple(
    f"MNIST/raw/{name}-ubyte"
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)
CIFAR10_FILES = tuple(
    f"cifar-10-batches-py/{name}"
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
)
CIFAR100_FILES = tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


@dataclass(frozen=True)
class Mnist:
    """MNIST: 60,000 + 10,000 digits, 28x28 grey, 10 classes (LeCun et al., 1998).

    Attributes:
        download: fetch the files where they are missing.
    """

    download: bool = True

    def check(self, root: Path) -> list[str]:
        """Check that the files of ``<root>/MNIST/raw`` exist, as long as their headers say."""
        problems = missing_files(root, MNIST_FILES, self.download)
        present = [root / name for name in MNIST_FILES if (root / name).is_file()]
        return problems or [problem for path in present for problem in _idx_problems(path)]

    def extent(self, root: Path) -> Extent:
        """Give the size of the set: 60,000 + 10,000 images, 28x28."""
        del root
        return Extent(60_000, 10_000, 1, (28, 28), range(10))

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 1, 28, 28].

        Raises:
            InputError: files are missing or damaged, or the download failed.
        """
        require(self.check(root))
        with _torchvision("MNIST", root, MNIST_FILES, self.download):
            from torchvision.datasets import MNIST

            sets = MNIST(root, train=True, download=self.download), MNIST(root, train=False)
        train, test = (ImageSet(s.data[:, None], s.targets.long()) for s in sets)
        return train, test


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: 50,000 + 10,000 photographs, 32x32 RGB, 10 classes (Krizhevsky, 2009).

    Attributes:
        download: fetch the files where they are missing.
    """

    download: bool = True

    def check(self, root: Path) -> list[str]:
        """Check that ``<root>/cifar-10-batches-py``, the official Python version, exists."""
        return missing_files(root, CIFAR10_FILES, self.download)

    def extent(self, root: Path) -> Extent:
        """Give the size of the set: 50,000 + 10,000 images, 32x32."""
        del root
        return Extent(50_000, 10_000, 3, (32, 32), range(10))

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 3, 32, 32].

        Raises:
            InputError: files are missing or damaged, or the download failed.
        """
        require(self.check(root))
        with _torchvision("CIFAR10", root, CIFAR10_FILES, self.download):
            from torchvision.datasets import CIFAR10

            sets = CIFAR10(root, train=True, download=self.download), CIFAR10(root, train=False)
        return _cifar(sets[0]), _cifar(sets[1])


@dataclass(frozen=True)
class Cifar100:
    """CIFAR-100: 50,000 + 10,000 photographs, 32x32 RGB, 100 classes (Krizhevsky, 2009).

    Attributes:
        download: fetch the files where they are missing.
    """

    download: bool = True

    def check(self, root: Path) -> list[str]:
        """Check that ``<root>/cifar-100-python``, the official Python version, exists."""
        return missing_files(root, CIFAR100_FILES, self.download)

    def extent(self, root: Path) -> Extent:
        """Give the size of the set: 50,000 + 10,000 images, 32x32."""
        del root
        return Extent(50_000, 10_000, 3, (32, 32), range(100))

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set with the fine labels, uint8 [N, 3, 32, 32].

        Raises:
            InputError: files are missing or damaged, or the download failed.
        """
        require(self.check(root))
        with _torchvision("CIFAR100", root, CIFAR100_FILES, self.download):
            from torchvision.datasets import CIFAR100

            sets = CIFAR100(root, train=True, download=self.download), CIFAR100(root, train=False)
        return _cifar(sets[0]), _cifar(sets[1])


@dataclass(frozen=True)
class Svhn:
    """SVHN: 73,257 + 26,032 house numbers, 32x32 RGB, 10 classes, no extra set (Netzer, 2011).

    Attributes:
        download: fetch the files where they are missing.
    """

    download: bool = True

    def check(self, root: Path) -> list[str]:
        """Check that ``train_32x32.mat`` and ``test_32x32.mat`` exist in ``root``."""
        return missing_files(root, SVHN_FILES, self.download)

    def extent(self, root: Path) -> Extent:
        """Give the size of the set: 73,257 + 26,032 images, 32x32."""
        del root
        return Extent(73_257, 26_032, 3, (32, 32), range(10))

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 3, 32, 32]; the files' class 10 is the digit 0.

        Raises:
            InputError: files are missing or damaged, or the download failed.
        """
        require(self.check(root))
        with _torchvision("SVHN", root, SVHN_FILES, self.download):
            from torchvision.datasets import SVHN

            sets = [SVHN(root, split=name, download=self.download) for name in ("train", "test")]
        train, test = (
            ImageSet(torch.from_numpy(np.ascontiguousarray(s.data)), torch.from_numpy(s.labels))
            for s in sets
        )
        return train, test


def _cifar(dataset: Any) -> ImageSet:
    # torchvision turns the files' [N, C, H, W] into [N, H, W, C]: turning back copies nothing
    pixels = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return ImageSet(torch.from_numpy(pixels), torch.tensor(dataset.targets))


def _idx_problems(path: Path) -> list[str]:
    """Check the length of an IDX file: it starts with 0, 0, type, rank and big-endian sizes."""
    with path.open("rb") as file:
        head = file.read(16)
    rank = head[3] if head[:3] == b"\0\0\x08" and len(head) > 3 else 0
    if rank not in (1, 3) or len(head) < 4 + 4 * rank:
        return [f"{path}: not an IDX file of bytes; delete it to download it again"]
    sizes = [int.from_bytes(head[i : i + 4], "big") for i in range(4, 4 * rank + 4, 4)]
    expected, length = 4 + 4 * rank + math.prod(sizes), path.stat().st_size
    if length == expected:
        return []
    return [f"{path}: {length} bytes instead of {expected}; delete it to download it again"]


@contextmanager
def _torchvision(name: str, root: Path, files: Sequence[str], download: bool) -> Iterator[None]:
    """Lock the download, and turn every failure into a line that names file and remedy."""
    needed = download and bool(absent(root, files))
    try:
        with download_lock(root, name, needed), warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of align=0, which the official CIFAR pickles say
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")
            yield
    except Exception as error:  # torchvision, urllib, tarfile, pickle and scipy each have their own
        gone = absent(root, files)
        if gone:
            wanted = gone[0].relative_to(root)
            raise InputError(
                f"data_dir={root}: no {name} there, and it could not be downloaded "
                f"({reason(error)}); set data_dir to the folder that holds {wanted}, or check the "
                f"network"
            ) from error
        damaged = _damaged(name, root)
        raise InputError(
            f"{damaged or root}: {name} could not be read ({reason(error)}); delete "
            f"{damaged or 'the damaged file'} and run again with data.source.download=true"
        ) from error


def _damaged(name: str, root: Path) -> Path | None:
    """Find the first file whose checksum is not the one that torchvision knows."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    if name == "MNIST":
        return None  # torchvision knows the sums of the archives only
    dataset = getattr(datasets, name)
    if name == "SVHN":
        sums = [dataset.split_list[split][1:] for split in ("train", "test")]
        folder = root
    else:
        meta = dataset.meta["filename"], dataset.meta["md5"]
        sums = [*dataset.train_list, *dataset.test_list, meta]
        folder = root / dataset.base_folder
    return next(
        (folder / file for file, md5 in sums if not check_integrity(folder / file, md5)), None
    )
