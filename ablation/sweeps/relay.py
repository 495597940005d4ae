"""Let jobs save where a launcher would kill them, or leave them, when a sweep is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ablation.output import warn
from ablation.runs.signals import handling

POLL_SECONDS = 0.2


@contextmanager
def saving_first(jobs: Callable[[], Mapping[str, int]]) -> Iterator[None]:
    """At a signal, let the jobs save and stop before it becomes a ``KeyboardInterrupt``.

    A launcher's own answer to Ctrl-C is to kill its workers (joblib) or to leave them
    (submitit_local). What has not begun to train by then is killed.

    Args:
        jobs: the runs at work on this machine now, with their process ids.
    """
    stopped: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        stopped.append(number)
        if len(stopped) == 1:
            waiting = jobs()
            warn(
                f"{signal.Signals(number).name}: {len(waiting)} jobs save and stop; a further "
                f"Ctrl-C kills them"
            )
            _send(waiting.values(), signal.SIGUSR1)  # a terminal's SIGINT may have come already
            while set(waiting.items()) & set(jobs().items()):
                time.sleep(POLL_SECONDS)
        raise KeyboardInterrupt

    try:
        with handling(receive):
            yield
    finally:
        if stopped:
            _send(descendants(os.getpid()), signal.SIGKILL)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Processes below one, without joblib's resource tracker; none where there is no ``/proc``."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    kept = [child for child in found if "resource_tracker" not in _command(child)]
    return [each for child in kept for each in (child, *descendants(child))]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    return ""
