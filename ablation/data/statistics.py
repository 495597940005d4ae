"""Mean and deviation of a user's training images: computed once, kept beside other caches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ablation.data.images import OwnImages
from ablation.output import warn


@dataclass(frozen=True)
class Statistics:
    """Pixel mean and deviation per channel, in [0, 1] units, to four digits."""

    mean: list[float]
    std: list[float]


def statistics(source: OwnImages, root: Path) -> Statistics:
    """Give the statistics of the training images, from a cache while the files are the same.

    Raises:
        InputError: they cannot be read.
    """
    path = _cache() / f"statistics-{_fingerprint(source, root)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text("utf-8"))
        return Statistics(list(map(float, known["mean"])), list(map(float, known["std"])))
    warn(f"reading {root} once for data.mean and data.std")
    train, _ = source.load(root)
    found = Statistics(*pixel_statistics(train.images))
    with suppress(OSError):  # a cache saves time, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(asdict(found)), "utf-8")
        partial.replace(path)
    return found


def pixel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of x / 255 per channel, from whole numbers: exact anywhere.

    Args:
        images: pixels, shape [N, C, H, W], uint8.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = list[float](), list[float]()
    for channel in range(images.shape[1]):
        counts = sum(
            (
                torch.bincount(part[:, channel].flatten(), minlength=256)
                for part in torch.split(images, 512)
            ),
            torch.zeros(256, dtype=torch.int64),
        )
        share = counts.double() / counts.sum()
        mean = (share * levels).sum()
        means.append(round(float(mean), 4))
        deviations.append(round(float((share * (levels - mean).square()).sum().sqrt()), 4))
    return means, deviations


def _fingerprint(source: OwnImages, root: Path) -> str:
    """Hash names, sizes and times of the training files, and how they are read."""
    lines = [repr(source), str(root.resolve()), *_stamps(source.training_files(root))]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamps(files: Sequence[Path]) -> list[str]:
    facts = [(path, path.stat()) for path in files]
    return [f"{path} {fact.st_size} {fact.st_mtime_ns}" for path, fact in facts]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ablation"
