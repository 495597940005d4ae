"""Signals that ask a run to save and stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Signals that stop a run or a pool: Ctrl-C, a closed terminal, and what schedulers send."""


class Stop:
    """Remember whether a signal has asked to stop.

    Attributes:
        requested: true from the first signal on.
        name: that signal's, for example ``SIGTERM``.
        before: who handled each signal until now.
    """

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self.before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._received: list[int] = []

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. The second Ctrl-C does not wait.

        Raises:
            KeyboardInterrupt: at the second SIGINT.
        """
        del frame
        self._received.append(number)
        if self._received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self.name = True, signal.Signals(number).name
            again = "; once more to stop at once" if number == signal.SIGINT else ""
            with suppress(OSError):  # not sys.stderr: its buffer is not safe in a signal handler
                os.write(2, f"{self.name}: stopping after this step{again}\n".encode())

    def hand_on(self) -> bool:
        """Give what arrived to its handlers before us: a scheduler's may put the job in its queue.

        A Ctrl-C is a person's, and goes to nobody else.

        Returns:
            Whether there were any. They came back, so the scheduler wants the job to go on.
        """
        if signal.SIGINT in self._received:
            return False
        called = False
        for number in self._received:
            handler = self.before.get(number)
            if callable(handler):
                called = True
                handler(number, None)
        return called


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 only set a flag, until the context ends.

    Python allows handlers in the main thread only; elsewhere nothing is installed.
    """
    stop = Stop()
    if threading.current_thread() is threading.main_thread():
        for name in STOPS:
            number = getattr(signal, name, None)  # Windows has few of them
            ignored = name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            if number is not None and not ignored:  # nohup ignores it for good
                stop.before[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in stop.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
