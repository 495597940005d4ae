"""Keep run directories elsewhere, verified byte by byte, and remove those nobody works on.

A run is read and removed under its lock only. Links are never followed: a run that is one stays,
and what a link inside leads to is neither archived nor removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ablation.errors import InputError
from ablation.runs.directory import Run
from ablation.runs.files import discard, make_folder, sync_folder, temporary_path

ARCHIVES = (".tar.gz", ".tgz", ".tar")
"""Ends of names of files that hold many runs; any other name is a folder's."""
LOCK = ".lock"
"""The file of a run that is nobody's record."""
CHUNK = 1 << 20
"""Bytes read at once."""


def size_of(path: Path) -> int:
    """Bytes of all files below a folder, links not followed; what cannot be read counts nothing."""
    return sum(_bytes(file) for file in _files(path))


def archive(runs: Sequence[Run], place: Path) -> Mapping[str, str]:
    """Copy runs into a new archive, or into a folder; it appears when every byte is verified.

    Args:
        runs: which, each of another name.
        place: ``.tar``, ``.tar.gz`` or ``.tgz``, else a folder, made if needed.

    Returns:
        SHA-256 of each file by ``<run>/<file>``.

    Raises:
        InputError: the place is taken or cannot be written, or a run is at work or holds links;
            nothing of the archive is left.
    """
    for run in runs:
        if link := next(_links(run.path), None):
            raise InputError(
                f"{link} is a link, whose content the archive would lack; put that there instead"
            )
    try:
        return (_pack if place.name.endswith(ARCHIVES) else _copy)(runs, place)
    except OSError as error:
        raise InputError(
            f"archive={place}: cannot be written ({error.strerror or error}); free space, or give "
            "another place"
        ) from error


def remove(run: Run, kept: Mapping[str, str] | None = None) -> None:
    """Remove a run's directory under its lock; links in it go, what they lead to stays.

    It loses its name first, so that a kill half-way leaves no half a run.

    Args:
        run: which.
        kept: of its archive: a run that is no longer as it was kept stays.

    Raises:
        InputError: it is at work, is a link, changed, or cannot be removed.
    """
    with run.held():
        if kept is not None and any(kept.get(name) != found for name, found in _digests(run)):
            raise InputError(f"{run.path} changed since it was archived, and stays")
        gone = temporary_path(run.path)
        try:
            run.path.rename(gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise InputError(f"{run.path} cannot be removed ({error.strerror})") from error


def _pack(runs: Sequence[Run], place: Path) -> dict[str, str]:
    _refuse_taken(place)
    temporary, wanted = temporary_path(place), dict[str, str]()
    try:
        make_folder(place.parent)
        with tarfile.open(temporary, "w" if place.suffix == ".tar" else "w:gz") as file:
            for run in runs:
                with run.held():
                    for path in _records(run):
                        file.add(path, _name(run, path), recursive=False)
                    wanted |= dict(_digests(run))
        with tarfile.open(temporary) as file:
            found = {member.name: _packed(file, member) for member in file}
        _verify(wanted, found, place)
        _make_durable(temporary)
        _refuse_taken(place)
        temporary.rename(place)
        sync_folder(place.parent)
    finally:
        discard(temporary)
    return wanted


def _copy(runs: Sequence[Run], place: Path) -> dict[str, str]:
    targets = {run: place / run.path.name for run in runs}
    for target in targets.values():
        _refuse_taken(target)
    wanted: dict[str, str] = {}
    try:
        make_folder(place)
        for run, target in targets.items():
            with run.held():
                for path in _records(run):
                    copy = temporary_path(target) / path.relative_to(run.path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, copy)
                    _make_durable(copy)
                digests = dict(_digests(run))
            copies = ((name, _copied(target, name)) for name in digests)
            _verify(digests, {name: _digest(_chunks(path)) for name, path in copies}, place)
            wanted |= digests
        for target in targets.values():
            _refuse_taken(target)
            temporary_path(target).rename(target)
        sync_folder(place)
    finally:
        for target in targets.values():
            discard(temporary_path(target))
    return wanted


def _copied(target: Path, name: str) -> Path:
    return temporary_path(target) / Path(name).relative_to(target.name)


def _verify(wanted: Mapping[str, str], found: Mapping[str, str], place: Path) -> None:
    """Hold what was written against what was read.

    Raises:
        InputError: a file is missing or another.
    """
    for name, digest in wanted.items():
        if found.get(name) != digest:
            raise InputError(
                f"archive={place}: {name} did not arrive as it is on the disk; nothing was kept: "
                "check the disk and try again"
            )


def _refuse_taken(place: Path) -> None:
    if place.is_symlink() or place.exists():
        raise InputError(f"archive={place}: it exists, and stays as it is; give another place")


def _name(run: Run, path: Path) -> str:
    return f"{run.path.name}/{path.relative_to(run.path).as_posix()}"


def _records(run: Run) -> Iterator[Path]:
    """The files of a run, without its lock."""
    return (path for path in _files(run.path) if path != run.path / LOCK)


def _digests(run: Run) -> Iterator[tuple[str, str]]:
    for path in _records(run):
        yield _name(run, path), _digest(_chunks(path))


def _packed(file: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = file.extractfile(member)
    return "" if content is None else _digest(iter(lambda: content.read(CHUNK), b""))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in order, and links to files; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def _links(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        paths = (Path(parent) / name for name in sorted((*folders, *names)))
        yield from (path for path in paths if path.is_symlink())


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # removed meanwhile, or closed to us
        return 0


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _digest(chunks: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _make_durable(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
