"""Reads what an offline W&B run wrote: the records of ``run-<id>.wandb``.

The file is a LevelDB log: a 7-byte header, then blocks of 32 KiB holding chunks, each with a
CRC-32, a length and a type that says whether a record is whole or goes on in the next block. A
record is a protocol buffer.
"""

from __future__ import annotations

import importlib
import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = b":W&B" + struct.pack("<H", 0xBEE1) + b"\0"
BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Logged:
    """What one run logged."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


def chunks(content: bytes) -> Iterator[bytes]:
    """The records' bytes, as far as they are written."""
    assert content.startswith(MAGIC[: len(content)])
    at = len(MAGIC)
    parts: list[bytes] = []
    while at < len(content):
        if BLOCK - at % BLOCK < HEADER.size:  # the rest of a block is padding
            at += BLOCK - at % BLOCK
            continue
        start = at + HEADER.size
        if start > len(content):
            return
        crc, length, kind = HEADER.unpack_from(content, at)
        data = content[start : start + length]
        if len(data) < length:
            return
        assert zlib.crc32(bytes([kind]) + data) == crc
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)
        at = start + length


def read(path: Path) -> Logged:
    """Everything a file holds that tests ask for."""
    # Its classes are made at import time, so mypy knows none of them.
    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = Logged()
    for data in chunks(path.read_bytes()):
        record = protocol.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run_id, found.name, found.project = run.run_id, run.display_name, run.project
            found.group, found.job_type, found.tags = run.run_group, run.job_type, list(run.tags)
            found.config |= items(run.config.update)
        elif kind == "config":
            found.config |= items(record.config.update)
        elif kind == "history":
            found.history.append(items(record.history.item))
        elif kind == "summary":
            found.summary |= items(record.summary.update)
        elif kind == "metric":
            metric = record.metric
            found.step_metrics[metric.name or metric.glob_name] = metric.step_metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def items(entries: Any) -> dict[str, Any]:
    return {
        entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries
    }


def read_all(folder: Path, timeout: float = 20.0) -> list[Logged]:
    """The finished offline runs under a run directory, oldest first.

    W&B's service writes the last records a moment after ``finish`` has returned.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = [read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
        if found and all(run.exit_code is not None for run in found):
            return found
        assert time.monotonic() < deadline, f"{folder} holds no finished run"
        time.sleep(0.02)
