"""What sources share: one-line problems, and one download at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ablation.errors import InputError


def require(problems: Sequence[str]) -> None:
    """Raise the problems of ``Source.check`` as one line.

    Raises:
        InputError: there is one.
    """
    if problems:
        raise InputError("; ".join(problems))


def reason(error: BaseException) -> str:
    """The first line of an exception's text, or its name: messages are one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__


def absent(root: Path, names: Sequence[str]) -> list[Path]:
    """Which of the files ``names`` below ``root`` are not there."""
    return [root / name for name in names if not (root / name).is_file()]


def missing_files(root: Path, names: Sequence[str], download: bool) -> list[str]:
    """The problem, if any, that files below ``root`` are missing and will not be fetched."""
    gone = absent(root, names)
    if not gone:
        return []
    if root.exists() and not root.is_dir():
        return [f"data_dir={root}: a file, not a folder; set data_dir to a folder"]
    if download:
        return []
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [
        f"data_dir={root}: {gone[0]}{more} missing; set data.source.download=true, "
        f"or data_dir to the folder that holds {names[0]}"
    ]


@contextmanager
def download_lock(root: Path, name: str, needed: bool) -> Iterator[None]:
    """Jobs that start together download once; the others wait. A read-only folder is fine."""
    if not needed:
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        yield
