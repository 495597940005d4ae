"""The digits data set of scikit-learn: no download, trains in seconds."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ablation.data.images import Extent, ImageSet
from ablation.data.split import stratified_split

TEST_SIZE = 360
TEST_SEED = 1797
"""Seed of the test split: a constant, so that every run everywhere has the same test set."""


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits, 8x8 grey, 10 classes (``sklearn.datasets.load_digits``).

    Grey values v in 0..16 become round(255 v / 16). scikit-learn has no official test set, so 360
    images (20 %, stratified, drawn with ``TEST_SEED``) are the test set and 1,437 the training set.
    """

    def check(self, root: Path) -> list[str]:
        """Report no problems: the images are part of scikit-learn."""
        del root
        return []

    def extent(self, root: Path) -> Extent:
        """Give the size of the set: 1,437 + 360 images, 8x8 grey, 10 classes."""
        del root
        return Extent(1_797 - TEST_SIZE, TEST_SIZE, 1, (8, 8), range(10))

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 1, 8, 8]; ``root`` is not used."""
        del root
        table = digits_table()
        grey = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        labels = torch.from_numpy(table[:, 64].astype(np.int64))
        whole = ImageSet(torch.from_numpy(grey), labels)
        split = stratified_split(labels, TEST_SIZE, TEST_SEED)
        return whole.subset(split.train), whole.subset(split.val)


def digits_table() -> npt.NDArray[np.float64]:
    """Read the table [1797, 65]: 64 grey values in 0..16 and the label in each row.

    Read from scikit-learn's own file: importing scikit-learn for it takes seconds.
    """
    spec = importlib.util.find_spec("sklearn")
    for place in (spec and spec.submodule_search_locations) or ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits  # the file has moved

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
