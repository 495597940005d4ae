"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

Everything is written to ``<name>.tmp-<pid>`` in the same folder, flushed to the disk, and renamed;
a reader sees the old file or the new one, never half of one. Nothing here unpickles objects:
weights are safetensors, the rest of a training state is read with ``weights_only=True``.

Layout of the folder::

    step_0000123/          resumable: weights, average, optimiser and clock, with their sha256
    best_robust.safetensors, best_robust-average.safetensors, best_clean..., last...
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import platform
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ablation.errors import InputError

FORMAT = 1
"""Version of the layout; a reader refuses newer ones."""
PACKAGES = (
    *("ablation", "torch", "torchvision", "numpy", "safetensors", "hydra-core", "omegaconf"),
    *("pyautoattack", "wandb"),
)
WEIGHTS, AVERAGE, TRAIN, MANIFEST = (
    "weights.safetensors",
    "average.safetensors",
    "train.pt",
    "manifest.json",
)
DIGEST = "ablation_sha256"
"""Metadata key of our own checksum of a file of weights."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which published checkpoints keep their state dict."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""

_TEMPORARY = re.compile(r"\.tmp-(\d+)$")
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


class DamagedError(Exception):
    """A file is not what was written: truncated, altered or missing."""


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
        files = {WEIGHTS: _encode(snapshot.weights, {})}
        if snapshot.average is not None:
            files[AVERAGE] = _encode(snapshot.average, {})
        buffer = io.BytesIO()
        torch.save(_plain(snapshot.train, "train"), buffer)
        files[TRAIN] = buffer.getvalue()
        files[MANIFEST] = _seal(
            {
                "format": FORMAT,
                "train_id": self.train_id,
                "step": snapshot.step,
                "epoch": snapshot.epoch,
                "files": {name: _sha256(content) for name, content in files.items()},
                "versions": versions(),
            }
        )
        target = self._free_name(snapshot.step)
        temporary = _temporary(target)
        try:
            make_folder(self.folder)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, content in files.items():
                _write(temporary / name, content)
            _sync_folder(temporary)
            temporary.rename(target)
            _sync_folder(self.folder)
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
        *,
        meta: Mapping[str, str],
    ) -> None:
        """Write ``<name>.safetensors`` and, with an average, ``<name>-average.safetensors``.

        Args:
            name: ``best_robust``, ``best_clean`` or ``last``.
            weights: a state dict.
            average: the averaged network's.
            meta: goes into the files' metadata: epoch, step, model (JSON).

        Raises:
            InputError: the disk is full or cannot be written; the old files are untouched.
        """
        meta = {**meta, "train_id": self.train_id, "format": str(FORMAT)}
        # The average first: whoever sees new raw weights also finds their average.
        if average is not None:
            atomic_write_bytes(self._flat(name, True), _encode(average, meta))
        atomic_write_bytes(self._flat(name, False), _encode(weights, meta))

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
        weights, meta = load_weights_file(path)
        if meta.get("train_id", self.train_id) != self.train_id:
            raise self._foreign(path, meta["train_id"])
        return weights

    def has(self, name: str, average: bool = False) -> bool:
        """Are these weights on disk?"""
        return self._flat(name, average).is_file()

    def names(self) -> list[str]:
        """The names of the weights on disk, averages not listed separately."""
        stems = sorted(path.stem for path in self.folder.glob("*.safetensors"))
        return [stem for stem in stems if not stem.endswith("-average")]

    def sweep(self) -> None:
        """Remove what killed processes left half written; call under the run's lock."""
        sweep_temporaries(self.folder)

    def _flat(self, name: str, average: bool) -> Path:
        return self.folder / f"{name}{'-average' if average else ''}.safetensors"

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
            temporary = _temporary(path)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                path.rename(temporary)
            except OSError:
                continue  # an old checkpoint too many harms nobody
            self._damaged.discard(path.name)
            shutil.rmtree(temporary, ignore_errors=True)

    def _read(self, folder: Path) -> Snapshot:
        manifest = _unseal(_read(folder / MANIFEST))
        if manifest["format"] > FORMAT:
            raise InputError(
                f"{folder} was written by a newer version (format {manifest['format']}, this one "
                f"reads {FORMAT}): update ablation"
            )
        if manifest["train_id"] != self.train_id:
            raise self._foreign(folder, manifest["train_id"])
        files = {}
        for name, digest in manifest["files"].items():
            files[name] = _read(folder / name)
            if _sha256(files[name]) != digest:
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
            raise DamagedError(_first_line(error)) from error

    def _foreign(self, path: Path, train_id: str) -> InputError:
        return InputError(
            f"{path} belongs to run {train_id}, not to {self.train_id}: it was copied or moved "
            f"here; move it away, or start from another run's weights with init_from=<run>"
        )


def load_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of weights: safetensors, or a ``.pt`` or ``.pth`` that holds only tensors.

    A state dict may be wrapped under ``state_dict``, ``model_state_dict``, ``model`` or ``net``,
    and its keys may all begin with ``module.``.

    Returns:
        The state dict on the CPU, and the file's metadata (empty for ``.pt``).

    Raises:
        InputError: missing, damaged, something else altogether, or it holds pickled objects.
    """
    try:
        content = _read(path)
    except DamagedError as error:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the file of weights in it") from error
        raise InputError(f"weights {path} cannot be read: {error}; check the path") from error
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{path} is a web page, not weights: download the file itself again")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not weights: run git lfs pull")
    try:
        if content.startswith((b"PK", b"\x80")):
            return _unwrap(_unpickle(path, content), path), {}
        return _decode(content)
    except DamagedError as error:
        raise InputError(
            f"{path} is damaged or not a file of weights ({error}): download or save it again"
        ) from error


def load_into(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put a state dict into a network; memory format and device of the network stay.

    Args:
        net: the network.
        weights: every key of its state dict, no other.
        source: where they come from, for the message.

    Raises:
        InputError: they belong to another model; the network is untouched.
    """
    own = net.state_dict()
    wrong = [
        f"{key} is {list(weights[key].shape)} there and {list(own[key].shape)} in the model"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [
        ("missing", [key for key in own if key not in weights]),
        ("unexpected", [key for key in weights if key not in own]),
        ("of another shape", wrong),
    ]
    found = [f"{kind}: {_some(keys)}" for kind, keys in problems if keys]
    if found:
        raise InputError(
            f"{source} does not fit this model ({'; '.join(found)}); set model=... and "
            f"model.head=... to what the weights were trained with"
        )
    net.load_state_dict(dict(weights))


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it holds its old or its new content whatever happens, durably.

    Raises:
        InputError: the disk is full or cannot be written; the old content is untouched.
    """
    temporary = _temporary(path)
    try:
        make_folder(path.parent)
        _write(temporary, content)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        _discard(temporary)
        if isinstance(error, OSError):
            raise storage_error(error, path.parent, f"saving {path.name}") from error
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """``atomic_write_bytes`` in UTF-8."""
    atomic_write_bytes(path, text.encode())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably; no error if it is there."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.parent)


def sweep_temporaries(folder: Path) -> None:
    """Remove ``*.tmp-<pid>`` of dead processes; call while this process writes nothing there.

    This process's own number counts as dead: a restarted container often gets the same one.
    """
    for path in folder.glob("*.tmp-*"):
        match = _TEMPORARY.search(path.name)
        if match and (int(match[1]) == os.getpid() or not process_alive(int(match[1]))):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                _discard(path)


def process_alive(pid: int) -> bool:
    """Does a process of this number exist on this machine?"""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def storage_error(error: OSError, folder: Path, doing: str) -> InputError:
    """What the user can do about a failed write.

    Args:
        error: the system's.
        folder: where it happened.
        doing: what was being written, for example ``saving last``.
    """
    again = "then run the same command again: nothing was lost"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f"no space left on {folder} while {doing}; free space or set runs_dir=..."
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        problem = f"{folder} cannot be written ({error.strerror}) while {doing}; "
        problem += "make it writable or set runs_dir=..."
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        place = next((p for p in (folder, *folder.parents) if p.is_file()), folder)
        problem = f"{place} is a file where a folder is needed while {doing}; "
        problem += "move it away or set runs_dir=..."
    else:
        problem = f"{folder}: {error.strerror or error} while {doing}; set runs_dir=..."
    return InputError(f"{problem}, {again}")


@cache
def versions() -> Mapping[str, str]:
    """Versions of everything that can change a result, by name."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def _discard(path: Path) -> None:
    """Remove a file of ours; on the way out of an error, that error counts and not this one."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _write(path: Path, content: bytes) -> None:
    """Write and flush to the disk. Not mkstemp, whose files only the owner may read."""
    target = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666
    )
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(target, rest) :]
        os.fsync(target)
    finally:
        os.close(target)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its owner") from error
    except OSError as error:
        raise DamagedError(f"{path.name}: {error.strerror}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _seal(manifest: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself: a flipped bit in it is noticed too."""
    text = json.dumps(manifest, sort_keys=True)
    return json.dumps({**manifest, "seal": _sha256(text.encode())}, indent=1).encode()


def _unseal(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        seal = manifest.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{MANIFEST} is not readable") from error
    if seal != _sha256(json.dumps(manifest, sort_keys=True).encode()):
        raise DamagedError(f"{MANIFEST} does not match its seal")
    assert isinstance(manifest, dict)  # noqa: S101
    return manifest


def _encode(weights: Mapping[str, Tensor], meta: Mapping[str, str]) -> bytes:
    """Safetensors on the CPU; contiguous copies, for it takes no shared or strided memory."""
    tensors = {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in weights.items()
    }
    content = safetensors.torch.save(tensors)
    # The library writes metadata in an order that changes from call to call; equal weights shall
    # be equal files, so the header is completed here.
    header, data = _split(content)
    head = {
        "__metadata__": {**dict(sorted(meta.items())), DIGEST: _digest(tensors, meta)},
        **header,
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, data])


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and data of a safetensors file: its first 8 bytes say where one ends."""
    end = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:end])
    return header, memoryview(content)[end:]


def _decode(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = safetensors.torch.load(content)
        header, _ = _split(content)
    except Exception as error:
        raise DamagedError(_first_line(error)) from error
    meta = {str(key): str(value) for key, value in header.get("__metadata__", {}).items()}
    expected = meta.pop(DIGEST, None)
    if expected is not None and expected != _digest(tensors, meta):
        raise DamagedError("it does not match its sha256")
    return tensors, meta


def _digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """Of names, types, shapes, bytes and metadata."""
    found = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        found.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _unpickle(path: Path, content: bytes) -> object:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global:?)\s+`?([\w.]+)", str(error))
        if refused is None:
            raise DamagedError(_first_line(error)) from error
        raise InputError(
            f"{path} holds pickled objects ({refused[1]}), which could run code, so it is refused; "
            f"if you trust it, re-save its state dict alone with torch.save"
        ) from error
    except Exception as error:
        raise DamagedError(_first_line(error)) from error


def _unwrap(found: object, path: Path) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        for key in WRAPPERS:
            if isinstance(found.get(key), Mapping):
                found = found[key]
                break
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path} holds no state dict: expected a mapping of names to tensors")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds no state dict: {key!r} is {type(value).__name__}, not a tensor; "
                f"save model.state_dict() alone"
            )
    for prefix in PREFIXES:
        if all(str(key).startswith(prefix) for key in found):
            found = {str(key).removeprefix(prefix): value for key, value in found.items()}
    return {str(key): value for key, value in found.items()}


def _plain(value: Any, place: str) -> Any:
    """A copy of nested data that ``weights_only=True`` is sure to accept, tensors on the CPU.

    Subclasses (an np.float64 is a float) become the plain type; views become tensors of their own,
    for torch.save would write the whole storage behind them.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (int, str)):
                raise TypeError(f"{place}: key {key!r} must be text or a whole number")
        return {key: _plain(entry, f"{place}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry, f"{place}[{i}]") for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    raise TypeError(f"{place} is {type(value).__name__}: only tensors and plain types are saved")


def _order(path: Path) -> tuple[int, int]:
    match = _STEP.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def _some(keys: Iterable[str], shown: int = 3) -> str:
    keys = list(keys)
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
