"""Keep the judged batches of an unfinished evaluation, and share them between processes.

AutoAttack takes hours. Each batch is kept as it is judged, so an interruption loses one, and
several processes with one folder take the batches between them: whatever their number, all end with
the verdicts of a single one. What is kept belongs to one network, set of images and request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.runs.files import atomic_write_bytes, discard, make_folder, storage_error


@dataclass(frozen=True)
class Judged:
    """Verdict on a batch: which images were broken [n], and what all became [n]; on the CPU.

    Attributes:
        broken: the point found is classified wrongly.
        became: predicted class of the point.
        messages: what the attack warned about.
    """

    broken: Tensor
    became: Tensor
    messages: Sequence[str] = ()


class Memo(Protocol):
    """Store of judged batches, by the attack's title and the batch's number."""

    def get(self, title: str, batch: int) -> Judged | None:
        """Return the verdict on a batch, if there is one."""

    def put(self, title: str, batch: int, judged: Judged) -> None:
        """Keep the verdict on a batch."""

    @contextmanager
    def claimed(self, title: str, batch: int) -> Iterator[bool]:
        """Tell whether the batch is this process' to judge, as long as the context lasts."""
        yield True


class Forgetful(Memo):
    """Keep nothing."""

    def get(self, title: str, batch: int) -> Judged | None:
        """Return no verdict."""

    def put(self, title: str, batch: int, judged: Judged) -> None:
        """Drop the verdict."""


class Kept(Memo):
    """Keep a file per batch in a folder; damaged files, and those of other requests, are ignored.

    Args:
        folder: of this evaluation's files; made when the first is written.
        key: identifies network, images and request; see ``identify``.
        shared: other processes may judge batches of the same evaluation at the same time.
    """

    def __init__(self, folder: Path, key: str, *, shared: bool = False) -> None:
        self._folder, self._shared = folder / key[:16], shared
        if folder.is_dir() and not shared:
            for other in folder.iterdir():
                if other != self._folder:
                    discard(other)
        elif folder.is_file():  # of an earlier version
            discard(folder)

    def _path(self, title: str, batch: int) -> Path:
        name = hashlib.sha256(title.encode()).hexdigest()[:16]
        return self._folder / f"{name}-{batch}.npz"

    def get(self, title: str, batch: int) -> Judged | None:
        """Return the verdict on a batch, if there is a sound one."""
        try:
            with np.load(self._path(title, batch), allow_pickle=False) as arrays:
                messages = json.loads(str(arrays["messages"]))
                broken, became = (torch.from_numpy(arrays[k]) for k in ("broken", "became"))
                return Judged(broken, became, messages)
        except Exception:  # zip, json and numpy each have their own way to say damaged
            return None

    def put(self, title: str, batch: int, judged: Judged) -> None:
        """Write the verdict on a batch durably.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        buffer = BytesIO()
        np.savez(
            buffer,
            broken=judged.broken.numpy(),
            became=judged.became.numpy(),
            messages=np.array(json.dumps(list(judged.messages))),
        )
        atomic_write_bytes(self._path(title, batch), buffer.getvalue())

    @contextmanager
    def claimed(self, title: str, batch: int) -> Iterator[bool]:
        """Tell whether the batch is this process' to judge; a dead process' claim ends with it.

        Raises:
            InputError: the disk cannot be written, or has no locks.
        """
        lock = self._locked(title, batch) if self._shared else None
        if self._shared and lock is None:
            yield False
            return
        try:
            yield True
        finally:
            if lock is not None:
                lock.release()

    def _locked(self, title: str, batch: int) -> BaseFileLock | None:
        try:
            make_folder(self._folder)
            lock = FileLock(self._path(title, batch).with_suffix(".lock"), thread_local=False)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except NotImplementedError as error:
            raise InputError(
                f"worker: {self._folder} lies on a file system without locks, so processes cannot "
                f"share an evaluation there; leave worker= out"
            ) from error
        except OSError as error:
            raise storage_error(error, self._folder, "sharing an evaluation") from error
        return lock


def identify(*nets: nn.Module, images: Tensor, labels: Tensor, request: object) -> str:
    """Hash everything that an attack's outcome depends on: ``nets`` are judge and source."""
    digest = hashlib.sha256(repr(request).encode())
    states = (value for net in nets for value in net.state_dict().values())
    for tensor in (*states, images, labels):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
