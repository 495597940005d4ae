"""Source of images in folders: one folder per class, one file per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ablation.data.decode import Format, Mode, decode, in_chunks, shape
from ablation.data.images import Extent, ImageSet, same_shape
from ablation.data.problems import require
from ablation.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageFolder:
    """Images as ``<root>/train/<class>/*.png`` and ``<root>/test/<class>/*.png``.

    Classes are the names of the training folders in sorted order, as in torchvision. Other files
    than images are left out.

    Attributes:
        train: folder of the training set, below ``data_dir``.
        test: folder of the test set; ``None`` means ``test``, or ``val`` if there is no ``test``.
        mode: ``RGB`` or ``L`` (grey); ``None`` means as the first training image.
        image_size: resize all images to this side length; ``None`` means they are of one size.
    """

    train: str = "train"
    test: str | None = None
    mode: Mode | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size={self.image_size}: at least 1, or null")

    def check(self, root: Path) -> list[str]:
        """Check that both sets exist and have the same classes, each with an image."""
        train, test = self._folders(root)
        problems = _layout_problems(train, "train") or _layout_problems(test, "test")
        if problems:
            return problems
        if train.samefile(test):
            return [f"{test}: training and test set are one folder; set data.source.test"]
        odd = sorted({path.name for path in _classes(train)} ^ {p.name for p in _classes(test)})
        if not odd:
            return []
        have, lack = (train, test) if (train / odd[0]).is_dir() else (test, train)
        return [f"{have / odd[0]}: {lack} has no class {odd[0]!r}; give both the same classes"]

    def extent(self, root: Path) -> Extent | None:
        """Count the files; the first one gives the shape. Classes are called like their folders."""
        if self.check(root):
            return None
        train, test = (_files(folder) for folder in self._folders(root))
        try:
            channels, size = shape(str(train[0]), train[0], Format(self.mode, self.image_size))
        except InputError:
            return None
        names = [path.name for path in _classes(self._folders(root)[0])]
        return Extent(len(train), len(test), channels, size, range(len(names)), names)

    def training_files(self, root: Path) -> list[Path]:
        """List the training images."""
        return _files(self._folders(root)[0])

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 1 or 3, H, W].

        Raises:
            InputError: the layout is wrong, or an image is damaged, not 8-bit or of another size.
        """
        require(self.check(root))
        folders = self._folders(root)
        train = _read(folders[0], Format(self.mode, self.image_size))
        # after colour, grey test images become RGB; after grey, colour ones are an error
        mode = "RGB" if self.mode is None and train.images.shape[1] == 3 else self.mode
        test = _read(folders[1], Format(mode, self.image_size))
        same_shape(train, test, str(folders[1]))
        return train, test

    def _folders(self, root: Path) -> tuple[Path, Path]:
        if self.test is not None:
            return root / self.train, root / self.test
        names = [name for name in ("test", "val") if (root / name).is_dir()]
        return root / self.train, root / (names or ["test"])[0]


def _classes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return [path for c in _classes(folder) for path in _images(c)]


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _is_image(p))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _layout_problems(folder: Path, key: str) -> list[str]:
    if not folder.is_dir():
        return [
            f"{folder} is missing: expected a folder of classes, {key}/<class>/*.png; "
            f"set data_dir, or data.source.{key} to its name"
        ]
    classes = _classes(folder)
    if not classes:
        return [f"{folder} holds no class folder: expected {key}/<class>/*.png; set data_dir"]
    empty = [path for path in classes if not any(_is_image(file) for file in path.iterdir())]
    if empty:
        return [f"{empty[0]} holds no image ({', '.join(sorted(SUFFIXES))}); fill or remove it"]
    return []


def _read(folder: Path, wanted: Format) -> ImageSet:
    files = [(p, number) for number, c in enumerate(_classes(folder)) for p in _images(c)]
    images = decode(in_chunks([path for path, _ in files]), len(files), wanted)
    return ImageSet(images, torch.tensor([number for _, number in files]))
