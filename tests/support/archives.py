"""Unpacking archives on every Python that the project runs on."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file; Python before 3.11.4 does not know the safe filter."""
    if hasattr(tarfile, "data_filter"):
        shutil.unpack_archive(archive, folder, filter="data")
    else:
        shutil.unpack_archive(archive, folder)
