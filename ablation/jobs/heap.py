"""The memory of a process that computes on the CPU: kept once it has it."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Numbers that glibc's ``mallopt`` has for its settings."""
NEVER = 2**31 - 1


@cache
def keep_freed_memory() -> None:
    """Let freed memory stay with this process, so that the next step need not ask for it again.

    By default glibc gives every large tensor back and has each page of the next one zeroed: a third
    of the time of a small network's step. Peak memory is as before, only its decline is missing.
    Settings of the user's (``MALLOC_...`` in the environment) are left alone, and so are other C
    libraries.
    """
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if own or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
