"""Keep the finished attacks of an unfinished evaluation: an interruption loses one part.

AutoAttack takes hours; its four parts, and every other attack, are kept as they end. What is kept
belongs to one network, one set of images and one request, and is ignored for any other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ablation.runs.files import atomic_write_bytes


@dataclass(frozen=True)
class Part:
    """Verdict after one attack: robust [all], what broke each image and what it became [all]."""

    robust: Tensor
    broken_by: Tensor
    became: Tensor
    flags: list[str]


class Memo(Protocol):
    """Store of finished attacks."""

    def get(self, title: str) -> Part | None:
        """Return the verdict after an attack, if it was finished."""

    def put(self, title: str, part: Part) -> None:
        """Keep the verdict of a finished attack."""


class Forgetful:
    """Keep no finished attacks."""

    def get(self, title: str) -> Part | None:
        """Return no verdict."""

    def put(self, title: str, part: Part) -> None:
        """Drop the verdict."""


class Partial:
    """Keep finished attacks in one file, rewritten atomically.

    Args:
        path: the file; a damaged one is ignored.
        key: identifies network, images and request; see ``identify``.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._parts = self._read()

    def get(self, title: str) -> Part | None:
        """Return the verdict after an attack, if it was finished."""
        return self._parts.get(title)

    def put(self, title: str, part: Part) -> None:
        """Write the verdict of a finished attack durably.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        tensors = (part.robust.clone(), part.broken_by.clone(), part.became.clone())
        self._parts[title] = Part(*tensors, list(part.flags))
        notes = {name: kept.flags for name, kept in self._parts.items()}
        arrays = {"notes": np.array(json.dumps({"key": self._key, "flags": notes}))}
        for i, kept in enumerate(self._parts.values()):
            arrays |= {f"robust{i}": kept.robust.numpy(), f"broken_by{i}": kept.broken_by.numpy()}
            arrays[f"became{i}"] = kept.became.numpy()
        buffer = BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        atomic_write_bytes(self._path, buffer.getvalue())

    def _read(self) -> dict[str, Part]:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                notes = json.loads(str(arrays["notes"]))
                if notes["key"] != self._key:
                    return {}
                return {
                    title: Part(
                        torch.from_numpy(arrays[f"robust{i}"]),
                        torch.from_numpy(arrays[f"broken_by{i}"]),
                        torch.from_numpy(arrays[f"became{i}"]),
                        flags,
                    )
                    for i, (title, flags) in enumerate(notes["flags"].items())
                }
        except Exception:  # zip, json and numpy each have their own way to say damaged
            return {}


def identify(*nets: nn.Module, images: Tensor, labels: Tensor, request: object) -> str:
    """Hash everything that an attack's outcome depends on: ``nets`` are judge and source."""
    digest = hashlib.sha256(repr(request).encode())
    states = (value for net in nets for value in net.state_dict().values())
    for tensor in (*states, images, labels):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
