"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

Everything is written to ``<name>.tmp-<pid>`` in the same folder, flushed to the disk, and renamed;
a reader sees the old file or the new one, never half of one. Nothing here unpickles objects:
weights are safetensors, the rest of a training state is read with ``weights_only=True``.

Layout of the folder::

    step_0000123/          resumable: weights, average, optimiser and clock, with their sha256
    best_robust.safetensors, best_robust-average.safetensors, best_clean..., last...
    best_robust-recorded.safetensors, ...  what training recorded of each image in their epoch
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ablation.errors import InputError
from ablation.runs.files import (
    DamagedError,
    atomic_write_bytes,
    discard,
    make_folder,
    read_bytes,
    sha256,
    storage_error,
    sweep_temporaries,
    sync_folder,
    temporary_path,
    write_durably,
)
from ablation.runs.provenance import versions
from ablation.runs.state_dicts import encode, load_weights_file, on_host, plain_copy
from ablation.text import first_line

FORMAT = 1
"""Version of the layout; a reader refuses newer ones."""
WEIGHTS, AVERAGE, TRAIN, MANIFEST = (
    "weights.safetensors",
    "average.safetensors",
    "train.pt",
    "manifest.json",
)
_STEP = re.compile(r"step_(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Snapshot:
    """A training state, complete enough to go on from.

    Attributes:
        step: optimiser steps done.
        epoch: of the whole run, 0-based.
        weights: the network's state dict.
        average: the averaged network's, if the run averages.
        train: optimiser, memories, accumulators, clock: tensors and plain types, nested.
    """

    step: int
    epoch: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    train: dict[str, Any]

    def copied(self) -> Snapshot:
        """The same in memory of its own, on the CPU: training may go on."""
        parts = (self.weights, self.average, self.train)
        return Snapshot(self.step, self.epoch, *on_host(parts, copy=True))


class Checkpoints:
    """The checkpoints of one run. Reading needs no lock; only the run's trainer may write.

    Args:
        folder: made when first written to.
        train_id: the run's; checkpoints of another are refused.
        keep: resumable checkpoints to keep.
    """

    def __init__(self, folder: Path, train_id: str, keep: int = 2) -> None:
        self.folder, self.train_id, self.keep = folder, train_id, keep
        self._damaged: set[str] = set()

    def save(self, snapshot: Snapshot) -> Path:
        """Make a resumable checkpoint durable, then remove the ones it outdates.

        Returns:
            Its folder.

        Raises:
            InputError: the disk is full or cannot be written; older checkpoints are untouched.
            TypeError: ``snapshot.train`` holds something that is not a tensor or a plain type.
        """
        weights, average, train = on_host((snapshot.weights, snapshot.average, snapshot.train))
        files = {WEIGHTS: encode(weights, {})}
        if average is not None:
            files[AVERAGE] = encode(average, {})
        buffer = io.BytesIO()
        torch.save(plain_copy(train, "train"), buffer)
        files[TRAIN] = buffer.getvalue()
        files[MANIFEST] = seal(
            {
                "format": FORMAT,
                "train_id": self.train_id,
                "step": snapshot.step,
                "epoch": snapshot.epoch,
                "files": {name: sha256(content) for name, content in files.items()},
                "versions": versions(),
            }
        )
        target = self._free_name(snapshot.step)
        temporary = temporary_path(target)
        try:
            make_folder(self.folder)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, content in files.items():
                write_durably(temporary / name, content)
            sync_folder(temporary)
            temporary.rename(target)
            sync_folder(self.folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise storage_error(error, self.folder, f"saving {target.name}") from error
            raise
        self._prune(target)
        return target

    def load_latest(self) -> tuple[Snapshot, list[str]] | None:
        """The newest intact resumable checkpoint, on the CPU.

        Returns:
            It, and a warning per damaged one that was passed over; ``None`` if there is none yet.

        Raises:
            InputError: none is intact, or one belongs to another run or a newer program.
        """
        warnings: list[str] = []
        folders = self._steps()
        for folder in reversed(folders):
            try:
                return self._read(folder), warnings
            except DamagedError as damage:
                self._damaged.add(folder.name)
                warnings.append(f"{folder} is damaged ({damage}); going back to the one before")
        if not folders:
            return None
        names = ", ".join(folder.name for folder in folders)
        raise InputError(
            f"no checkpoint in {self.folder} is intact ({names}): restore one from a backup, or "
            f"remove these folders to train from the start"
        )

    def save_weights(
        self,
        name: str,
        weights: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None = None,
        recorded: Mapping[str, Tensor] | None = None,
        *,
        meta: Mapping[str, str],
    ) -> None:
        """Write ``<name>.safetensors``, and ``<name>-average`` and ``<name>-recorded`` beside it.

        Args:
            name: ``best_robust``, ``best_clean`` or ``last``.
            weights: a state dict.
            average: the averaged network's.
            recorded: columns of what training recorded of each image in the weights' epoch.
            meta: goes into the files' metadata: epoch, step, run.

        Raises:
            InputError: the disk is full or cannot be written; the old files are untouched.
        """
        weights, average, recorded = on_host((weights, average, recorded))
        meta = {**meta, "train_id": self.train_id, "format": str(FORMAT)}
        # The average first: whoever sees new raw weights also finds their average.
        if average is not None:
            atomic_write_bytes(self._flat(name, True), encode(average, meta))
        if recorded:
            atomic_write_bytes(self._recorded(name), encode(recorded, meta))
        else:
            discard(self._recorded(name))  # of an earlier epoch
        atomic_write_bytes(self._flat(name, False), encode(weights, meta))

    def load_weights(self, name: str, average: bool) -> dict[str, Tensor]:
        """Read what ``save_weights`` wrote, on the CPU.

        Raises:
            InputError: missing, damaged or of another run.
        """
        path = self._flat(name, average)
        if not path.is_file():
            there = ", ".join(self.names()) or "none yet"
            kind = "averaged weights" if average else "weights"
            raise InputError(f"{self.folder} has no {kind} {name!r}; it has: {there}")
        try:
            weights, meta = load_weights_file(path)
        except InputError as error:
            raise InputError(
                f"{path} is damaged: restore it from a backup, or move the run's directory away "
                f"to train it anew"
            ) from error
        if meta.get("train_id", self.train_id) != self.train_id:
            raise self._foreign(path, meta["train_id"])
        return weights

    def load_recorded(self, name: str) -> tuple[dict[str, Tensor], int] | None:
        """Read what training recorded in the epoch of these weights, and the number of that epoch.

        Returns:
            Columns on the CPU and the epoch, from 0; ``None`` if nothing was recorded.

        Raises:
            InputError: the file is damaged, or of another step than the weights.
        """
        path = self._recorded(name)
        if not path.is_file():
            return None
        recorded, meta = load_weights_file(path)
        _, weights = load_weights_file(self._flat(name, False))
        if meta.get("step") != weights.get("step"):  # a kill came between the two files
            raise InputError(
                f"{path} is of step {meta.get('step')}, the weights are of step "
                f"{weights.get('step')}: remove it to do without its numbers"
            )
        return recorded, int(meta["epoch"])

    def copy_weights(self, source: Checkpoints, name: str, *, averaged: bool) -> None:
        """Copy what another run's ``save_weights`` wrote; epoch and step stay.

        Args:
            source: that run's checkpoints.
            name: of the weights.
            averaged: copy their average too.

        Raises:
            InputError: a file is missing or damaged, or the disk is full.
        """
        weights = source.load_weights(name, False)
        average = source.load_weights(name, True) if averaged else None
        _, meta = load_weights_file(source._flat(name, False))
        recorded, _ = source.load_recorded(name) or (None, 0)
        self.save_weights(name, weights, average, recorded, meta=meta)

    def has(self, name: str, average: bool = False) -> bool:
        """Say whether these weights are on disk."""
        return self._flat(name, average).is_file()

    def resumable(self) -> bool:
        """Say whether there is a checkpoint to go on from."""
        return bool(self._steps())

    def names(self) -> list[str]:
        """The names of the weights on disk, averages not listed separately."""
        stems = sorted(path.stem for path in self.folder.glob("*.safetensors"))
        return [stem for stem in stems if not stem.endswith(("-average", "-recorded"))]

    def sweep(self) -> None:
        """Remove what killed processes left half written; call under the run's lock."""
        sweep_temporaries(self.folder)

    def _flat(self, name: str, average: bool) -> Path:
        return self.folder / f"{name}{'-average' if average else ''}.safetensors"

    def _recorded(self, name: str) -> Path:
        return self.folder / f"{name}-recorded.safetensors"

    def _steps(self) -> list[Path]:
        """Resumable checkpoints, oldest first."""
        found = [path for path in self.folder.glob("step_*") if _STEP.fullmatch(path.name)]
        return sorted(found, key=_order)

    def _free_name(self, step: int) -> Path:
        """A new name for this step.

        A step may be saved twice, before and after the epoch's bookkeeping: the second one gets a
        suffix, so that at no moment neither exists.
        """
        name = f"step_{step:07d}"
        same = [_order(path)[1] for path in self._steps() if _order(path)[0] == step]
        return self.folder / (f"{name}-{max(same) + 1}" if same else name)

    def _prune(self, newest: Path) -> None:
        """Remove what is older than the newest ``keep``, and what was found damaged."""
        older = [path for path in self._steps() if _order(path) < _order(newest)]
        sound = [path for path in older if path.name not in self._damaged]
        damaged = [path for path in self._steps() if path.name in self._damaged]
        for path in (*sound[: max(0, len(sound) + 1 - self.keep)], *damaged):
            # Renamed first: a kill while removing must not leave half a checkpoint behind.
            temporary = temporary_path(path)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                path.rename(temporary)
            except OSError:
                continue  # an old checkpoint too many harms nobody
            self._damaged.discard(path.name)
            shutil.rmtree(temporary, ignore_errors=True)

    def _read(self, folder: Path) -> Snapshot:
        manifest = unseal(read_bytes(folder / MANIFEST))
        if manifest["format"] > FORMAT:
            raise InputError(
                f"{folder} was written by a newer version (format {manifest['format']}, this one "
                f"reads {FORMAT}): update ablation"
            )
        if manifest["train_id"] != self.train_id:
            raise self._foreign(folder, manifest["train_id"])
        files = {}
        for name, digest in manifest["files"].items():
            files[name] = read_bytes(folder / name)
            if sha256(files[name]) != digest:
                raise DamagedError(f"{name} does not match its sha256")
        try:
            train = torch.load(io.BytesIO(files[TRAIN]), map_location="cpu", weights_only=True)
            average = files.get(AVERAGE)
            return Snapshot(
                step=manifest["step"],
                epoch=manifest["epoch"],
                weights=safetensors.torch.load(files[WEIGHTS]),
                average=None if average is None else safetensors.torch.load(average),
                train=train,
            )
        except Exception as error:
            raise DamagedError(first_line(error)) from error

    def _foreign(self, path: Path, train_id: str) -> InputError:
        return InputError(
            f"{path} belongs to run {train_id}, not to {self.train_id}: it was copied or moved "
            f"here; move it away, or start from another run's weights with init_from=<run>"
        )


def seal(manifest: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself: a flipped bit in it is noticed too."""
    text = json.dumps(manifest, sort_keys=True)
    return json.dumps({**manifest, "seal": sha256(text.encode())}, indent=1).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """The manifest that ``seal`` wrote.

    Raises:
        DamagedError: a bit of it changed.
    """
    try:
        manifest = json.loads(content)
        recorded = manifest.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{MANIFEST} is not readable") from error
    if recorded != sha256(json.dumps(manifest, sort_keys=True).encode()):
        raise DamagedError(f"{MANIFEST} does not match its seal")
    assert isinstance(manifest, dict)  # noqa: S101
    return manifest


def _order(path: Path) -> tuple[int, int]:
    match = _STEP.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)
