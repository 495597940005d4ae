"""Tiny ImageNet in the layout of its official archive."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ablation.data.decode import Format, decode, in_chunks
from ablation.data.images import Extent, ImageSet, same_shape
from ablation.data.problems import download_lock, no_folder, reason, require
from ablation.errors import InputError

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_FORMAT = Format("RGB", None, "restore the file from the official archive")


@dataclass(frozen=True)
class TinyImageNet:
    """Tiny ImageNet: 200 classes of 500 training images, 64x64 RGB (Le and Yang, 2015).

    The official test set has no labels, so the 10,000 validation images are the test set, as in
    the papers. ``wnids.txt`` names the classes that are read, so a subset will do; they
    are numbered in sorted order, as in code that uses torchvision's ``ImageFolder``. Grey images
    become RGB.

    Attributes:
        download: fetch the archive (237 MB) where the folder is missing.
    """

    download: bool = True

    def check(self, root: Path) -> list[str]:
        """Check that ``tiny-imagenet-200`` (``root`` or a folder in it) has the official layout."""
        folder = _folder(root)
        if folder is not None:
            return _layout_problems(folder)
        problems = no_folder(root)
        if problems or self.download:
            return problems
        return [
            f"data_dir={root}: no {FOLDER} there (with wnids.txt, train/ and val/); set "
            f"data.source.download=true, or data_dir to the folder that holds {FOLDER}"
        ]

    def extent(self, root: Path) -> Extent:
        """Count 500 + 50 images of each class in ``wnids.txt``, else of all 200; 64x64."""
        folder = _folder(root)
        classes = 200 if folder is None or _layout_problems(folder) else len(_wnids(folder))
        return Extent(500 * classes, 50 * classes, 3, (64, 64), range(classes))

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 3, 64, 64].

        Raises:
            InputError: files are missing or damaged, or the download failed.
        """
        require(self.check(root))
        folder = _folder(root) or _download(root)
        require(_layout_problems(folder))
        numbers = {wnid: number for number, wnid in enumerate(_wnids(folder))}
        train, test = _read(_train_files(folder, numbers)), _read(_val_files(folder, numbers))
        same_shape(train, test, str(folder / "val"))
        return train, test


def _folder(root: Path) -> Path | None:
    """Locate ``tiny-imagenet-200``: ``root`` itself or a folder in it."""
    if (root / "wnids.txt").is_file():
        return root
    return root / FOLDER if (root / FOLDER).is_dir() else None


def _wnids(folder: Path) -> list[str]:
    return sorted((folder / "wnids.txt").read_text().split())


def _layout_problems(folder: Path) -> list[str]:
    remedy = f"restore it from {URL}, or delete {folder} to download all again"
    for name in ("wnids.txt", "val/val_annotations.txt"):
        if not (folder / name).is_file():
            return [f"{folder / name} is missing; {remedy}"]
    wnids = _wnids(folder)
    if not wnids:
        return [f"{folder / 'wnids.txt'} names no class; {remedy}"]
    folders = [folder / "train" / wnid / "images" for wnid in wnids]
    for images in (folder / "val" / "images", *folders):
        if not images.is_dir():
            return [f"{images} is missing; {remedy}"]
        if next(images.glob("*.JPEG"), None) is None:
            return [f"{images} holds no .JPEG file; {remedy}"]
    return []


def _train_files(folder: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    return [
        (path, number)
        for wnid, number in numbers.items()
        for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
    ]


def _val_files(folder: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    """Read val_annotations.txt: file, wnid and a box on each line, separated by tabs."""
    annotations = folder / "val" / "val_annotations.txt"
    files: list[tuple[Path, int]] = []
    for line_number, line in enumerate(annotations.read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise InputError(
                f"{annotations}, line {line_number}: expected file, class and box between tabs; "
                f"restore the file from the official archive"
            )
        if fields[1] in numbers:
            files.append((folder / "val" / "images" / fields[0], numbers[fields[1]]))
    empty = set(numbers.values()) - {number for _, number in files}
    if empty:
        wnid = sorted(numbers)[min(empty)]
        raise InputError(
            f"{annotations} names no image of class {wnid}; restore the file from the official "
            f"archive, or take {wnid} out of wnids.txt"
        )
    return files


def _read(files: list[tuple[Path, int]]) -> ImageSet:
    images = decode(in_chunks([path for path, _ in files]), len(files), _FORMAT)
    return ImageSet(images, torch.tensor([number for _, number in files]))


def _download(root: Path) -> Path:
    """Fetch, verify and unpack the archive; the folder appears when it is complete."""
    from torchvision.datasets.utils import download_url, extract_archive

    folder = root / FOLDER
    try:
        with download_lock(root, FOLDER, needed=True):
            if folder.is_dir():
                return folder  # another job was faster
            download_url(URL, str(root), f"{FOLDER}.zip", MD5)
            with tempfile.TemporaryDirectory(dir=root) as partial:
                extract_archive(str(root / f"{FOLDER}.zip"), partial)
                (Path(partial) / FOLDER).replace(folder)
    except Exception as error:  # urllib, http and zipfile each raise their own kinds
        raise InputError(
            f"data_dir={root}: {URL} could not be downloaded ({reason(error)}); check the network, "
            f"or unpack the archive there by hand"
        ) from error
    return folder
