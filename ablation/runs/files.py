"""Write files that hold their old or their new content whatever happens, and strict JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablation.errors import InputError

_TEMPORARY = re.compile(r"\.tmp-(\d+)$")


class DamagedError(Exception):
    """A file is not what was written: truncated, altered or missing."""


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it holds its old or its new content whatever happens, durably.

    Raises:
        InputError: the disk is full or cannot be written; the old content is untouched.
    """
    temporary = temporary_path(path)
    try:
        make_folder(path.parent)
        write_durably(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        discard(temporary)
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
        sync_folder(folder.parent)


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
                discard(path)


def process_alive(pid: int) -> bool:
    """Say whether a process of this number exists on this machine."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def storage_error(error: OSError, folder: Path, doing: str) -> InputError:
    """Turn a failed write into an error that says what the user can do.

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


def temporary_path(path: Path) -> Path:
    """Where a file is written before it takes its name; ``sweep_temporaries`` knows the form."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def discard(path: Path) -> None:
    """Remove a file or folder of ours; in the wake of an error, that one counts and not this."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk; what is there under its name goes, a link too.

    Not mkstemp, whose files only the owner may read.
    """
    path.unlink(missing_ok=True)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(target, rest) :]
        os.fsync(target)
    finally:
        os.close(target)


def sync_folder(folder: Path) -> None:
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


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        InputError: this user may not read it.
        DamagedError: it is missing, or the disk fails.
    """
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its owner") from error
    except OSError as error:
        raise DamagedError(f"{path.name}: {error.strerror}") from error


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()


def finite(value: Any) -> Any:
    """Plain data fit for strict JSON: a NaN or infinite number becomes null.

    In a mapping a sibling ``<key>_reason`` says what it was: ``nan``, ``inf`` or ``-inf``.
    """
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, entry in value.items():
            entry = _scalar(entry)
            found[str(key)] = finite(entry)
            if isinstance(entry, float) and not math.isfinite(entry):
                found[f"{key}_reason"] = str(entry)
        return found
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    value = _scalar(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Mapping[str, Any]) -> str:
    """Strict, indented JSON of plain data; see ``finite``."""
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"


def _scalar(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number."""
    item: Callable[[], Any] | None = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value
