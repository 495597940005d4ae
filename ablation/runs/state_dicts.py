"""Encode and decode weights: our safetensors, and state dicts that others publish."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.output import warn
from ablation.runs.files import DamagedError, read_bytes
from ablation.text import first_line

RECORD = "ablation"
"""Metadata key of all that a file of weights says of itself, as JSON."""
DIGEST = "ablation_sha256"
"""Key of the checksum in it."""
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "weights"),
    *("ema", "ema_state_dict", "model_ema", "state_dict_ema"),
)
"""Keys under which published checkpoints keep their state dict, the preferred first."""
NESTED = 3
"""How deep: a file could hold itself."""
AVERAGED = "n_averaged"
"""What torch's ``AveragedModel`` counts beside the weights."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every key."""


def load_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of weights: safetensors, or a ``.pt`` or ``.pth`` that holds only tensors.

    A state dict may be wrapped under one of ``WRAPPERS``, also twice, and its keys may all begin
    with ``module.``. Of several in a file the first of ``WRAPPERS`` is taken, and it is said.

    Returns:
        The state dict on the CPU, and the file's metadata (empty for ``.pt``).

    Raises:
        InputError: missing, damaged, something else altogether, or it holds pickled objects.
    """
    try:
        content = read_bytes(path)
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
        if content.startswith((b"PK", b"\x80")) and not _is_safetensors(content):
            return _unwrap(unpickle(path, content), path), {}
        return decode(content)
    except DamagedError as error:
        raise InputError(
            f"{path} is damaged or not a file of weights ({error}): download or save it again"
        ) from error


def _is_safetensors(content: bytes) -> bool:
    """Tell by the header, whose length comes first and may begin like a pickle or a ZIP file."""
    return content[4:9] == b"\0\0\0\0{"


REMEDY = "set model=... and model.head=... to what the weights were trained with"
"""Where weights do not fit one of our models."""


def load_into(
    net: nn.Module, weights: Mapping[str, Tensor], source: str, remedy: str = REMEDY
) -> None:
    """Load a state dict into a network; memory format and device of the network stay.

    Args:
        net: the network.
        weights: every key of its state dict, no other.
        source: where they come from, for the message.
        remedy: what to do where they do not fit.

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
        ("missing", [_with_shape(key, own) for key in own if key not in weights]),
        ("unexpected", [_with_shape(key, weights) for key in weights if key not in own]),
        ("of another shape", wrong),
    ]
    said = [f"{kind}: {_some(keys)}" for kind, keys in problems if keys]
    if said:
        raise InputError(f"{source} does not fit this model ({'; '.join(said)}); {remedy}")
    net.load_state_dict(dict(weights))


def encode(weights: Mapping[str, Tensor], meta: Mapping[str, str]) -> bytes:
    """Write a state dict as safetensors; equal weights and metadata give equal bytes.

    All metadata, with a checksum of the whole, are one JSON under ``RECORD``: the library writes
    several keys in an order that changes from call to call.
    """
    tensors = {  # copies: the format takes no shared or strided memory
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in weights.items()
    }
    record = json.dumps({**meta, DIGEST: weights_digest(tensors, meta)}, sort_keys=True)
    content: bytes = safetensors.torch.save(tensors, {RECORD: record})
    return content


def decode(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file, of this or an earlier version or others.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        meta = header.get("__metadata__", {})
        meta = json.loads(meta[RECORD]) if RECORD in meta else meta  # earlier: a key per entry
        expected = meta.pop(DIGEST, None)
    except Exception as error:
        raise DamagedError(first_line(error)) from error
    if expected is not None and expected != weights_digest(tensors, meta):
        raise DamagedError("it does not match its sha256")
    return tensors, meta


def weights_digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes, bytes and metadata."""
    found = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        found.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def unpickle(path: Path, content: bytes) -> object:
    """Read a ``.pt`` file that holds only tensors and plain types: no code runs.

    Raises:
        DamagedError: it holds anything else, or is cut.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global:?)\s+`?([\w.]+)", str(error))
        if refused is None:  # torch's own message advises to let the file run code
            raise DamagedError("it holds more than tensors and plain types, or is cut") from error
        raise InputError(
            f"{path} holds pickled objects ({refused[1]}), which could run code, so it is refused; "
            f"if you trust it, re-save its state dict alone with torch.save"
        ) from error
    except Exception as error:
        raise DamagedError(first_line(error).partition(". ")[0]) from error


def _unwrap(found: object, path: Path) -> dict[str, Tensor]:
    for _ in range(NESTED):
        outer = found if isinstance(found, Mapping) else {}
        inside = [key for key in WRAPPERS if isinstance(outer.get(key), Mapping)]
        if not inside:
            break
        if len(inside) > 1:
            others = ", ".join(inside[1:])
            warn(f"warning: {path} holds {inside[0]} and {others}; {inside[0]} is taken")
        found = outer[inside[0]]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path} holds no state dict: expected a mapping of names to tensors")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds no state dict: {key!r} is {type(value).__name__}, not a tensor; "
                f"save model.state_dict() alone"
            )
    if all(str(key).startswith("module.") for key in found if key != AVERAGED):
        found = {key: value for key, value in found.items() if key != AVERAGED}
    for prefix in PREFIXES:
        if all(str(key).startswith(prefix) for key in found):
            found = {str(key).removeprefix(prefix): value for key, value in found.items()}
    return {str(key): value for key, value in found.items()}


def on_host(value: Any, *, copy: bool = False) -> Any:
    """Nested data with every tensor on the CPU; the host waits for a GPU once, not once a tensor.

    Args:
        value: tensors in mappings, lists and tuples.
        copy: copy those that are on the CPU already, too.
    """
    devices: set[torch.device] = set()

    def move(entry: Any) -> Any:
        if isinstance(entry, Tensor) and entry.device.type == "cuda":
            devices.add(entry.device)
            return entry.detach().to("cpu", non_blocking=True)
        if isinstance(entry, Tensor) and copy:
            return entry.detach().clone()
        if isinstance(entry, Mapping):
            return {key: move(each) for key, each in entry.items()}
        if isinstance(entry, (list, tuple)):
            return type(entry)(move(each) for each in entry)
        return entry

    moved = move(value)
    for device in devices:
        torch.cuda.synchronize(device)  # only then have the copies arrived
    return moved


def plain_copy(value: Any, place: str) -> Any:
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
        return {key: plain_copy(entry, f"{place}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [plain_copy(entry, f"{place}[{i}]") for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    raise TypeError(f"{place} is {type(value).__name__}: only tensors and plain types are saved")


def _with_shape(key: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{key} {list(tensors[key].shape)}"


def _some(keys: Iterable[str], shown: int = 3) -> str:
    keys = list(keys)
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more
