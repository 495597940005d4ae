"""Small files in the true on-disk formats of the sets that tests cannot download."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324


class OldArray:
    """Pickles as the arrays in the official CIFAR files do: NumPy 1 under Python 2, align=0."""

    def __init__(self, values: Pixels) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = self.values.__reduce__()
        function, arguments, state = reduced
        return function, arguments, (*state[:2], OldByte(), *state[3:])


class OldByte:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1), np.dtype(np.uint8).__reduce__()[2]


def dump(path: Path, content: dict[str, Any]) -> tuple[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path.name, md5(path)


def cifar10(root: Path) -> dict[str, Any]:
    """Five batches of four and a test batch of six; the class attributes that know their sums."""
    folder = root / "cifar-10-batches-py"
    sums = []
    for number in range(1, 7):
        count, name = (6, "test_batch") if number == 6 else (4, f"data_batch_{number}")
        labels = [(number + i) % 10 for i in range(count)]
        rows = OldArray(pixels(count, 3072, seed=number))
        sums.append(dump(folder / name, {"data": rows, "labels": labels, "batch_label": name}))
    name, total = dump(folder / "batches.meta", {"label_names": ["a"] * 10})
    meta = {"filename": name, "key": "label_names", "md5": total}
    return {"train_list": sums[:5], "test_list": sums[5:], "meta": meta}


def cifar100(root: Path) -> dict[str, Any]:
    folder = root / "cifar-100-python"
    sums = []
    for number, (name, count) in enumerate((("train", 8), ("test", 4))):
        content = {
            "data": OldArray(pixels(count, 3072, seed=number)),
            "fine_labels": [99 - i for i in range(count)],
            "coarse_labels": [0] * count,
        }
        sums.append(dump(folder / name, content))
    name, total = dump(folder / "meta", {"fine_label_names": ["a"] * 100})
    meta = {"filename": name, "key": "fine_label_names", "md5": total}
    return {"train_list": sums[:1], "test_list": sums[1:], "meta": meta}


def svhn(root: Path) -> dict[str, Any]:
    """Images as [H, W, C, N], labels as [N, 1] in 1..10."""
    root.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, count in (("train", 12), ("test", 5)):
        path = root / f"{name}_32x32.mat"
        labels = (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]
        content = {"X": pixels(32, 32, 3, count), "y": labels}
        scipy.io.savemat(path, content, do_compression=True)
        found[name] = [f"file:///nowhere/{path.name}", path.name, md5(path)]
    return {"split_list": found}


def mnist(root: Path) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 12), ("t10k", 5)):
        images, labels = pixels(count, 28, 28), np.arange(count, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))


def idx(values: Pixels) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def mnist_archives(root: Path) -> list[tuple[str, str]]:
    """The four ``.gz`` a mirror offers, with their sums."""
    mnist(root)
    found = []
    for path in sorted((root / "MNIST" / "raw").iterdir()):
        packed = root / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        found.append((packed.name, md5(packed)))
    return found


def encode(values: NDArray[Any], form: str = "PNG") -> bytes:
    """An image file of [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form)
    return buffer.getvalue()


def deep_grey() -> bytes:
    """A 16-bit grey PNG."""
    return encode(np.full((6, 6), 40_000, np.uint16))


def deep_colour() -> bytes:
    """A 16-bit RGB PNG, which Pillow can read but not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        sums = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + sums

    header = struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34" * 18) * 6)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiny_imagenet(root: Path, classes: tuple[str, ...] = ("n03", "n01")) -> Path:
    """Four training and two validation images per class; one training image is grey."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    lines, number = [], 0
    for wnid in classes:
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(4):
            colour = pixels(64, 64, 3, seed=i) if i else pixels(64, 64)
            (images / f"{wnid}_{i}.JPEG").write_bytes(encode(colour, "JPEG"))
        for _ in range(2):
            name = f"val_{number}.JPEG"
            (folder / "val" / "images" / name).write_bytes(encode(pixels(64, 64, 3), "JPEG"))
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
            number += 1
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(classes) + "\n")
    return folder


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[int | None],
    plain: bool = False,
    names: tuple[str, str] = ("image", "label"),
) -> Path:
    """The hub's layout: a struct of bytes and path, or the bytes alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Any] = images if plain else [{"bytes": b, "path": None} for b in images]
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(rows, pa.binary() if plain else struct_type)
    pq.write_table(pa.table({names[0]: column, names[1]: pa.array(labels, pa.int64())}), path)
    return path


def image_folder(root: Path, test: str = "test", grey: bool = False) -> Path:
    """Classes cat and dog, three images of 6x5 each in both sets."""
    for part in ("train", test):
        for number, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                shape = (5, 6) if grey else (5, 6, 3)
                (folder / f"{i}.png").write_bytes(encode(pixels(*shape, seed=10 * number + i)))
    return root
