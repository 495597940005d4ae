"""``status.json`` of a run: its state, who works on it, and when it was last alive."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from ablation.errors import InputError
from ablation.runs.files import atomic_write_text, json_text
from ablation.runs.provenance import git_state, versions

State = Literal["running", "done", "failed", "interrupted"]
HEARTBEAT_SECONDS = 15.0
"""Time between two heartbeats on disk."""
STALE_SECONDS = 120.0
"""A run on another machine whose heartbeat is older than this is taken for dead."""
LOCK_SECONDS = 0.5
"""How long a start waits for the lock: longer than a ``status`` of another process holds it."""


@dataclass(frozen=True)
class Status:
    """Content of ``status.json``, read tolerantly.

    Attributes:
        state: a run that claims to be running while nobody holds its lock was killed: interrupted.
        pid: process that wrote it, on ``host``.
        host: name of its machine.
        started: UTC, ISO 8601, when that process began.
        heartbeat: UTC, its last sign of life.
        finished: UTC; ``None`` while running.
        error: what went wrong, one line.
        term: the loss term, or ``gradient``, that was not finite.
        facts: everything else: versions, device, git, data.
    """

    state: State
    pid: int = 0
    host: str = ""
    started: str = ""
    heartbeat: str = ""
    finished: str | None = None
    error: str | None = None
    term: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class RunStatus:
    """Read and write the status of a run.

    Args:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: str | None = None
        self._writing = threading.RLock()  # the heartbeat's thread writes the same file
        self._place: tuple[int, int] | None = None  # of the directory, while it is open

    @property
    def _status_path(self) -> Path:
        return self.path / "status.json"

    def status(self) -> Status | None:
        """Read the run's status; ``None`` if ``status.json`` is missing or cannot be read."""
        found = self._recorded()
        state = found.pop("state", None)
        if state not in get_args(State):
            return None
        if state == "running" and not self._alive({**found, "state": state}):
            state = "interrupted"
            found["error"] = "the process was killed"
        names = ("host", "started", "heartbeat", "finished", "error", "term")
        texts = {name: found.pop(name, None) for name in names}
        texts |= {name: str(texts[name] or "") for name in ("host", "started", "heartbeat")}
        pid = found.pop("pid", 0)
        return Status(state, pid if isinstance(pid, int) else 0, **texts, facts=found)

    def set_status(
        self, state: State, error: str | None = None, *, term: str | None = None, **facts: Any
    ) -> None:
        """Record the state, who and when; facts of earlier calls stay.

        Args:
            state: the new one.
            error: one line for the user.
            term: the loss term that was not finite.
            **facts: plain data to keep, for example ``device="cuda:0"``.

        Raises:
            InputError: the directory cannot be written.
        """
        now = utc_now()
        self.note(
            **facts,
            state=state,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self._started or now,
            heartbeat=now,
            finished=None if state == "running" else now,
            error=error,
            term=term,
            versions=dict(versions()),
            git=git_state(),
        )

    def note(self, **facts: Any) -> None:
        """Keep plain data in ``status.json``; what is not named stays.

        Raises:
            InputError: the directory cannot be written.
        """
        with self._writing:
            self.check_place()
            atomic_write_text(self._status_path, json_text({**self._recorded(), **facts}))

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Record a heartbeat every 15 seconds, whatever the main thread does meanwhile."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                with suppress(InputError):  # a missed beat ends no training; a lost checkpoint does
                    self.note(heartbeat=utc_now())

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def check_data(self, fingerprint: str) -> None:
        """Make sure that the images are those of the run's first start; the first call notes them.

        Args:
            fingerprint: hash of images and labels.

        Raises:
            InputError: they are others.
        """
        found = self._recorded()
        before = found.get("data")
        if before is None:
            self.note(data=fingerprint)
        elif before != fingerprint:
            raise InputError(
                f"{self.path} was trained on other data (fingerprint {before}, now {fingerprint}): "
                f"restore the files in data_dir, or set runs_dir=... to train anew"
            )

    def worker(self) -> str | None:
        """Who trains or evaluates the run now, as ``pid 12 on host h``; ``None`` if nobody does."""
        found = self._recorded()
        busy = self._alive(found) if found.get("state") == "running" else self._is_locked(found)
        owner = found.get("owner")
        if not busy or not isinstance(owner, dict):
            return None
        return f"pid {owner.get('pid')} on host {owner.get('host')}"

    def _alive(self, found: Mapping[str, Any]) -> bool:
        """Say whether the process that claims to be running still holds the lock."""
        if self._claimed_elsewhere(found):
            return True
        return self._is_locked(found)

    def _is_locked(self, found: Mapping[str, Any]) -> bool:
        """Say whether a process holds the lock."""
        path = self.path / ".lock"
        try:
            with place_lock(self.path) as free:
                if not free or not path.is_file():
                    return not free
                with FileLock(path).acquire(timeout=LOCK_SECONDS / 5, poll_interval=0.01):
                    return False
        except Timeout:
            return True
        except OSError:  # somebody else's directory, read-only: only the heartbeat can tell
            return fresh(str(found.get("heartbeat")))

    def _claimed_elsewhere(self, found: Mapping[str, Any]) -> bool:
        """Say whether another machine is at it: not every network file system carries locks."""
        elsewhere = found.get("host") != socket.gethostname()
        return elsewhere and found.get("state") == "running" and fresh(str(found.get("heartbeat")))

    def _recorded(self) -> dict[str, Any]:
        try:
            found = json.loads(self._status_path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def check_place(self) -> None:
        """Make sure that the directory is the one that was opened.

        Raises:
            InputError: it was removed or replaced while the run was at work.
        """
        if self._place is not None and self._place != place_of(self.path):
            raise InputError(
                f"{self.path} was removed or replaced while this process worked in it: nothing "
                f"more is saved; run the same command again to train it anew"
            )


def utc_now() -> str:
    """For example ``2025-03-01T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def fresh(heartbeat: str) -> bool:
    """Say whether a sign of life is recent. Clocks differ; one far in the future is no sign."""
    return abs(seconds_since(heartbeat)) < STALE_SECONDS


def place_of(path: Path) -> tuple[int, int] | None:
    """Device and number of a directory, which tell it from another of its name."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def place_lock(path: Path) -> Iterator[bool]:
    """Lock a directory itself, beside its lock file, which somebody may remove.

    Yields:
        Whether nobody else holds it; true where directories cannot be locked.
    """
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):  # Windows, or somebody else's directory
        yield True
        return
    try:
        yield _locked_now(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _locked_now(flock: Callable[[int, int], None], handle: int, how: int) -> bool:
    try:
        flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without such locks
        return True
    return True


def seconds_since(moment: str) -> float:
    """Seconds from an ISO 8601 moment until now; infinite if it is none."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (TypeError, ValueError):
        return math.inf
