"""Writing beside the training: a thread that takes one file after the other to the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does what it is given in order, on a thread of its own.

    After an error nothing more is done, for what comes later may rest on what failed: the state
    that names the best weights must not outlive a failure to write them.

    Args:
        depth: how much may wait or be under way: it bounds the copies that are held in memory.
    """

    def __init__(self, depth: int = 2) -> None:
        self._depth = depth
        self._pending: deque[Future[object]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._failed = False

    def submit(self, work: Callable[[], object]) -> None:
        """Have this done; waits while ``depth`` others are not.

        Raises:
            Exception: what an earlier one raised.
        """
        while len(self._pending) >= self._depth:
            self._next()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending.append(self._pool.submit(self._do, work))

    def settle(self) -> None:
        """Wait until all is done, and end the thread.

        Raises:
            Exception: the first that one of them raised.
        """
        try:
            while self._pending:
                self._next()
        finally:
            self._pending.clear()
            if self._pool is not None:
                self._pool.shutdown()
            self._pool, self._failed = None, False

    def _do(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise

    def _next(self) -> None:
        self._pending[0].result()  # an error stays first in line: whoever comes next hears it, too
        self._pending.popleft()
