"""Helpers of the sources: one-line problems, and a lock for downloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ablation.errors import InputError


def require(problems: Sequence[str]) -> None:
    """Raise the problems of ``Source.check`` as one line.

    Raises:
        InputError: there is at least one.
    """
    if problems:
        raise InputError("; ".join(problems))


def reason(error: BaseException) -> str:
    """Shorten an exception to the first line of its text, or its name: messages are one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


def absent(root: Path, names: Sequence[str]) -> list[Path]:
    """List those of the files ``names`` below ``root`` that do not exist."""
    return [root / name for name in names if not (root / name).is_file()]


def no_folder(root: Path) -> list[str]:
    """Report, as one line or none, that ``root`` is no folder and cannot be made.

    A download makes ``root``, but not the folders above it: where those are missing, the path is
    more likely misspelt.
    """
    if root.exists() and not root.is_dir():
        return [f"data_dir={root}: a file, not a folder; set data_dir to a folder"]
    above = root.absolute().parent
    if not above.is_dir():
        return [f"data_dir={root}: there is no folder {above}; mend the path, or create it"]
    return []


def missing_files(root: Path, names: Sequence[str], download: bool) -> list[str]:
    """Report, as one line or none, that files below ``root`` are missing and not fetched."""
    gone = absent(root, names)
    if not gone:
        return []
    problems = no_folder(root)
    if problems or download:
        return problems
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [
        f"data_dir={root}: {gone[0]}{more} missing; set data.source.download=true, "
        f"or data_dir to the folder that holds {names[0]}"
    ]


@contextmanager
def download_lock(root: Path, name: str, needed: bool) -> Iterator[None]:
    """Lock a download: of jobs that start together one fetches, the others wait.

    Unless a download is ``needed`` nothing is written, so a read-only folder will do.
    """
    if not needed:
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        yield
