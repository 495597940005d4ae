"""Source of images in parquet files, in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ablation.data.decode import CHUNK, Encoded, Format, Mode, decode, shape
from ablation.data.images import Extent, ImageSet, same_shape
from ablation.data.problems import reason, require
from ablation.errors import InputError


@dataclass(frozen=True)
class Parquet:
    """Encoded images (JPEG, PNG) and integer labels in parquet files.

    The image column is a struct with ``bytes`` (and ``path``, which is not used), or plain bytes.

    Attributes:
        train: file of the training set below ``data_dir``; a pattern (``data/train-*.parquet``)
            means several files, read in the order of their names.
        test: file or pattern of the test set.
        image_column: name of the column of images.
        label_column: name of the column of classes, counted from 0 unless ``relabel``.
        mode: ``RGB`` or ``L`` (grey), to which all images are converted.
        image_size: resize all images to this side length; ``None`` means they are of one size.
        relabel: number the labels that occur anew from 0, in their order: for those that start at
            another number, or leave numbers out.
    """

    train: str = "train.parquet"
    test: str = "test.parquet"
    image_column: str = "image"
    label_column: str = "label"
    mode: Mode = "RGB"
    image_size: int | None = None
    relabel: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size={self.image_size}: at least 1, or null")

    def check(self, root: Path) -> list[str]:
        """Check that the files exist, whole, with both columns; reads only their footers."""
        train, test = _shards(root, self.train), _shards(root, self.test)
        problems = [
            f"data_dir={root}: no file matches {pattern}; set data_dir, or data.source.{key}"
            for key, pattern, shards in (("train", self.train, train), ("test", self.test, test))
            if not shards
        ]
        both = sorted(set(train) & set(test))
        if both:
            problems.append(
                f"{both[0]} is in both data.source.train={self.train} and "
                f"data.source.test={self.test}; let them name different files"
            )
        return problems or [problem for path in train + test for problem in self._problems(path)]

    def extent(self, root: Path) -> Extent | None:
        """Count rows and labels; the first image gives the shape."""
        if self.check(root):
            return None
        train, test = _shards(root, self.train), _shards(root, self.test)
        try:
            channels, size = shape(*self._first(train[0]), self._format)
            labels = self._labels(train + test).tolist()
        except InputError:
            return None
        names = [str(label) for label in labels] if self.relabel else []
        found = range(len(labels)) if self.relabel else labels
        return Extent(_rows(train), _rows(test), channels, size, found, names)

    def training_files(self, root: Path) -> list[Path]:
        """List the files of the training set."""
        return _shards(root, self.train)

    def load(self, root: Path) -> tuple[ImageSet, ImageSet]:
        """Load training and test set, uint8 [N, 1 or 3, H, W].

        Raises:
            InputError: a file is missing or damaged, a row has no image or no label, or an image
                is damaged, not 8-bit or of another size.
        """
        require(self.check(root))
        files = _shards(root, self.train), _shards(root, self.test)
        train, test = (self._read(shards) for shards in files)
        same_shape(train, test, str(root / self.test))
        if self.relabel:
            labels = torch.from_numpy(self._labels(files[0] + files[1]))
            train, test = (
                ImageSet(one.images, torch.searchsorted(labels, one.labels))
                for one in (train, test)
            )
        return train, test

    @property
    def _format(self) -> Format:
        return Format(self.mode, self.image_size)

    def _problems(self, path: Path) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            return [f"{path}: damaged or no parquet file ({reason(error)}); fetch it again"]
        columns = (("image", self.image_column), ("label", self.label_column))
        problems = [
            f"{path}: no column {column!r}; set data.source.{key}_column to one of "
            f"{', '.join(schema.names)}"
            for key, column in columns
            if column not in schema.names
        ]
        if problems:
            return problems
        image, label = (schema.field(column).type for _, column in columns)
        if not _holds_images(image):
            problems.append(
                f"{path}: column {self.image_column!r} holds {image}, not encoded images (bytes, "
                f"or a struct with bytes); set data.source.image_column"
            )
        if not pa.types.is_integer(label):
            problems.append(
                f"{path}: column {self.label_column!r} holds {label}, not integers; "
                f"set data.source.label_column"
            )
        return problems if rows else [*problems, f"{path}: no rows; fetch it again"]

    def _read(self, shards: list[Path]) -> ImageSet:
        count, columns = _rows(shards), (self.image_column, self.label_column)
        labels: list[NDArray[np.int64]] = []

        def chunks() -> Iterator[list[Encoded]]:
            for path in shards:
                for start, (images, classes) in self._batches(path, *columns):
                    labels.append(_labels(path, start, classes))
                    yield _encoded(path, start, images)

        images = decode(chunks(), count, self._format)
        return ImageSet(images, torch.from_numpy(np.concatenate(labels)))

    def _first(self, path: Path) -> Encoded:
        start, (images, _) = next(self._batches(path, self.image_column, self.label_column))
        return _encoded(path, start, images.slice(0, 1))[0]

    def _labels(self, shards: list[Path]) -> NDArray[np.int64]:
        """The labels that occur in files, in order; the images are not read."""
        found = {
            int(label)
            for path in shards
            for start, (column,) in self._batches(path, self.label_column)
            for label in np.unique(_labels(path, start, column))
        }
        return np.array(sorted(found), np.int64)

    def _batches(self, path: Path, *columns: str) -> Iterator[tuple[int, list[Any]]]:
        """Read a file in pieces: the first row and the columns of each."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        start = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK, columns=list(columns)):
                    yield start, [batch.column(name) for name in columns]
                    start += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: damaged ({reason(error)}); fetch it again") from error


def _shards(root: Path, pattern: str) -> list[Path]:
    """List the files that a name or pattern matches; an absolute one ignores ``root``."""
    path = root / pattern
    if path.is_file():
        return [path]
    anchor = Path(path.anchor)
    if not path.is_absolute():
        return sorted(file for file in root.glob(pattern) if file.is_file())
    return sorted(file for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file())


def _rows(shards: list[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in shards)


def _holds_images(column: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(column):
        index = column.get_field_index("bytes")
        return index >= 0 and _holds_images(column.field(index).type)
    return bool(pa.types.is_binary(column) or pa.types.is_large_binary(column))


def _labels(path: Path, start: int, column: Any) -> NDArray[np.int64]:
    if column.null_count:
        row = start + column.is_null().index(True).as_py()
        raise InputError(f"{path}, row {row}: no label; remove the row")
    labels: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    if labels.min() < 0:
        row = int(labels.argmin())
        raise InputError(
            f"{path}, row {start + row}: label {labels[row]} is negative, as for unlabelled "
            f"images; remove such rows or set data.source.label_column"
        )
    return labels


def _encoded(path: Path, start: int, column: Any) -> list[Encoded]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    if column.null_count:
        row = start + column.is_null().index(True).as_py()
        raise InputError(f"{path}, row {row}: no image bytes; embed the image or remove the row")
    return [(f"{path}, row {start + i}", content) for i, content in enumerate(column.to_pylist())]
