"""Which sweep starts a job: two sweeps of one table share the work, and none does it twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from ablation.runs.directory import Run

JobState = Literal["done", "partial", "running", "queued", "failed", "new"]
TAKE_SECONDS = 0.5
"""How long a claim waits: longer than ``claimed`` of another process holds the lock."""


def claim_path(run: Run) -> Path:
    """The lock of a run's claim, beside the run directories."""
    return run.path.parent / ".sweep" / f"{run.path.name}.claim"


def claimed(run: Run) -> bool:
    """Say whether a sweep has claimed this run: its job starts, or runs."""
    path = claim_path(run)
    if not path.is_file():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # somebody else's folder, or no locks
        return False


class Claim:
    """A sweep's right to start a job, from before its process starts until that has ended.

    Args:
        run: of the job.
        look: the job's present state on disk.

    Attributes:
        lost: the job's state if others came first.
    """

    def __init__(self, run: Run, look: Callable[[], JobState]) -> None:
        self._run, self._look = run, look
        status = run.status()
        self._finished = None if status is None else status.finished
        self._lock = FileLock(claim_path(run), thread_local=False)
        self.lost: JobState | None = None

    def take(self) -> str | None:
        """Claim the job; returns who else has it or had it since it was planned, else ``None``."""
        try:
            claim_path(self._run).parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=TAKE_SECONDS, poll_interval=0.02)
        except Timeout:
            self.lost = "running"
            return "running elsewhere (another sweep has it)"
        except (OSError, NotImplementedError):  # no locks here: the run's own must do
            pass
        return self.elsewhere()

    def elsewhere(self, pid: int | None = None) -> str | None:
        """What others do with the job, or did since it was planned; ``None`` if nothing.

        Args:
            pid: of our own process for the job, if it has ended: what that wrote is not others'.
        """
        state, status = self._look(), self._run.status()
        ours = status is not None and status.pid == pid
        news = status is not None and status.finished != self._finished
        if state == "running":
            self.lost = state
            return f"running elsewhere ({self._run.worker() or 'it has just begun'})"
        if not ours and (state == "done" or (state == "failed" and news)):
            self.lost = state
            return f"{state} elsewhere"
        return None

    def release(self) -> None:
        """Let go of the job."""
        with suppress(OSError):
            self._lock.release()
