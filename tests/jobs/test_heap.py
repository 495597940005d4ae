"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from ablation.jobs.setup import pick_device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(8 << 20)  # 32 MiB: 8192 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults()]
pick_device("cpu")
torch.ones(8 << 20)
print(*found, faults())
"""


def counted(environment: dict[str, str]) -> list[int]:
    """Pages that twenty tensors of 32 MiB ask for, before the device is chosen and after."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_stays_with_the_process_unless_the_user_says_otherwise():
    before, after = counted({})
    assert before > 20 * 512  # or, with huge pages, fewer faults than pages
    assert after < before / 20
    before, after = counted({"MALLOC_ARENA_MAX": "4"})
    assert after > before / 2
