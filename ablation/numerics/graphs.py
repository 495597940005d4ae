"""CUDA graphs: what a function launches, recorded once and replayed as a single launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WARM_UPS = 3
"""Runs before one is recorded, as torch advises: libraries choose kernels and take memory."""


class Graphs:
    """Records functions; the graphs share one pool of memory, since one is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], T]) -> Callable[[], T]:
        """Record a function as a CUDA graph.

        Args:
            run: reads tensors that stay where they are; draws no random numbers and waits for
                nothing. Its Python runs now, and not in a replay.

        Returns:
            What replays it. It returns the same tensors every time, with new numbers.

        Raises:
            RuntimeError: CUDA cannot record it.
        """
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads, as NCCL's, may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = run()

        def replay() -> T:
            graph.replay()
            return results

        return replay
