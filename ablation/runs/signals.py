"""Signals that ask a run to save and stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ablation.errors import INTERRUPTED

STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Signals that stop a run or a pool: Ctrl-C, a closed terminal, and what schedulers send."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


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
        self.before: dict[int, Handler | int | None] = {}
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


Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handling(receive: Handler) -> Iterator[dict[int, Handler | int | None]]:
    """Give the signals of ``STOPS`` to a handler, until the context ends.

    Python allows handlers in the main thread only; elsewhere nothing is installed.

    Yields:
        Who handled each signal until now.
    """
    before: dict[int, Handler | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for name in STOPS:
            number = getattr(signal, name, None)  # Windows has few of them
            ignored = name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            if number is not None and not ignored:  # nohup ignores it for good
                before[number] = signal.signal(number, receive)
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 only set a flag, until the context ends."""
    stop = Stop()
    with handling(stop.receive) as stop.before:
        yield stop


def end_in_imports() -> None:
    """Make a Ctrl-C during an import end the process at once, in our words.

    An import cannot be undone: numpy takes the exception for a broken installation, and what comes
    after would run without it. Anywhere else a Ctrl-C stays a ``KeyboardInterrupt``.

    Raises:
        KeyboardInterrupt: outside imports, at a SIGINT.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        del number
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(2, b"stopped before anything started\n")
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, receive)


def die_with(parent: int, number: int = signal.SIGTERM) -> Callable[[], None] | None:
    """Runs in a new process before its program: if the parent is killed, it gets a signal.

    Only Linux can. Between fork and exec nothing may be imported or looked up, for another thread
    may have held a lock: the library is loaded already.
    """
    if _LIBC is None:
        return None
    prctl: Callable[..., int] = _LIBC.prctl
    chosen = int(number)

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, chosen)
        if os.getppid() != parent:  # it died before the call
            os._exit(INTERRUPTED)

    return ask
