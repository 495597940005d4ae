"""Two processes that train together on the CPU, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing.spawn import start_processes

from ablation.ranks import joined, present
from ablation.types import Batch

WORLD = 2


def on_two_ranks(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Call ``work(*args)`` in two processes that have joined; returns what each one returned.

    Args:
        work: a function at the top of a module, which returns plain data and tensors.
        folder: an empty one, to meet and for the results.
        args: of the function.
    """
    start_processes(_rank, (work, str(folder), args), nprocs=WORLD, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = FileStore(f"{folder}/store", WORLD)
    with joined(rank, WORLD, torch.device("cpu"), store):
        found = work(*args)
    torch.save(found, f"{folder}/{rank}.pt")


def own_rows(batch: Batch) -> Batch:
    """The present rank's share of a batch; with one process all of it."""
    ranks = present()
    if ranks.alone:
        return batch
    rows = ranks.rows(len(batch.y))
    place = (rows.start, len(batch.y))
    return Batch(batch.x[rows], batch.y[rows], batch.index[rows], place)
