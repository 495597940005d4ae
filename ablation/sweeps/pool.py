"""Processes side by side: a fixed number at a time, each with a log of its own.

A process that fails or is killed costs only its own job. A signal stops them all after they saved,
and none is left behind, whatever happens to this process. Knows nothing of Hydra or torch.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from ablation import output
from ablation.errors import DONE, INTERRUPTED, InputError
from ablation.runs.progress import drawable
from ablation.runs.signals import die_with, handling
from ablation.text import duration, printable

POLL_SECONDS = 0.1
REDRAW_SECONDS = 1.0
"""Time between looks at the jobs' logs where there is a terminal."""
LINE_SECONDS, LONGEST_SECONDS = 30.0, 600.0
"""Time between lines of progress where there is no terminal: the first, and late ones."""
GRACE_SECONDS = 60.0
"""After an error of this process: how long the others may save."""
ELSEWHERE = 256
"""Code of a job that others work on or have finished; no process ends with it."""
LAST_LINES = 8
"""Of a failed job's log, shown at once."""

Environment = Mapping[str, str]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def slots(
    jobs: int | None,
    gpus: Sequence[int | str] | str | None,
    per_gpu: int = 1,
    per_job: int = 1,
) -> list[Environment]:
    """List the environment variables that each place in the pool gives its jobs.

    Args:
        jobs: how many places; ``None`` means all that the GPUs have, and without GPUs one per two
            cores.
        gpus: ``auto`` means all visible ones; ``None`` assigns none: jobs see what this process
            sees. A list counts the visible ones, or names them by UUID (of a MIG slice, too); one
            that occurs twice has twice the places.
        per_gpu: how many places a GPU has. The first jobs go to different GPUs.
        per_job: GPUs of a place, one after the other in the list; then ``per_gpu`` is 1.

    Raises:
        InputError: these do not fit each other or the machine.
    """
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise InputError(f"hydra.launcher.jobs={jobs}: a number from 1, or null")
    check_per_gpu(per_gpu)
    single = chosen_gpus(gpus)
    devices = groups_of(single, per_job) * per_gpu
    if per_gpu > 1 and per_job > 1:
        raise InputError(
            f"hydra.launcher.per_gpu={per_gpu}: a run on {per_job} GPUs has them to itself; set "
            f"runtime.devices=1 or hydra.launcher.per_gpu=1"
        )
    if per_job > 1 and single and (jobs or 1) > len(devices):
        raise InputError(
            f"hydra.launcher.jobs={jobs}: each takes {per_job} GPUs of its own (runtime.devices), "
            f"and there are {len(single)}"
        )
    if per_gpu > 1 and not devices:
        raise InputError(
            f"hydra.launcher.per_gpu={per_gpu}: no GPU is assigned (hydra.launcher.gpus={gpus}, "
            f"{len(visible_gpus())} visible); hydra.launcher.jobs=N says how many run without"
        )
    if devices and (jobs or 0) > len(devices):
        raise InputError(
            f"hydra.launcher.jobs={jobs}: with hydra.launcher.per_gpu={per_gpu} there are "
            f"{len(devices)} places on GPUs; more jobs can share one: "
            f"hydra.launcher.per_gpu={-(-jobs // (len(devices) // per_gpu)) if jobs else 1}"
        )
    count = jobs or len(devices) or max(1, cores() // 2)
    shared: dict[str, str] = {}
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, cores() // count))
    if not devices:
        return [shared] * count
    return [{**shared, "CUDA_VISIBLE_DEVICES": device} for device in devices[:count]]


def check_per_gpu(per_gpu: object) -> None:
    """Check a number of jobs on one GPU.

    Raises:
        InputError: it is none.
    """
    if not isinstance(per_gpu, int) or isinstance(per_gpu, bool) or per_gpu < 1:
        raise InputError(f"hydra.launcher.per_gpu={per_gpu}: a number of jobs from 1")


def groups_of(gpus: Sequence[str], size: int) -> list[str]:
    """Values for ``CUDA_VISIBLE_DEVICES`` of so many GPUs each; a rest is left out.

    Raises:
        InputError: the size is not a number from 1.
    """
    if not isinstance(size, int) or size < 1:
        raise InputError(f"hydra.launcher.gpus_per_job={size}: a number from 1")
    groups = [gpus[first : first + size] for first in range(0, len(gpus), size)]
    return [",".join(group) for group in groups if len(group) == size]


def chosen_gpus(gpus: Sequence[int | str] | str | None) -> list[str]:
    """Values for ``CUDA_VISIBLE_DEVICES``, one per place.

    Raises:
        InputError: a GPU is not there.
    """
    if gpus is None:
        return []
    visible = visible_gpus()
    if isinstance(gpus, str):
        if gpus != "auto":
            raise InputError(f"hydra.launcher.gpus={gpus}: auto, null, or a list as in [0,1]")
        return visible
    wrong = [n for n in gpus if isinstance(n, int) and not 0 <= n < len(visible)]
    if wrong:
        raise InputError(
            f"hydra.launcher.gpus: there is no GPU {wrong[0]}, {len(visible)} are visible "
            f"(counted from 0)"
        )
    return [visible[n] if isinstance(n, int) else str(n) for n in gpus]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by number or UUID; none is initialised."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return [name for name in names if name and name != "-1"]
    import torch

    from ablation.numerics.devices import warn_of_idle_gpus

    warn_of_idle_gpus()
    return [str(n) for n in range(torch.cuda.device_count())]


class Turn(Protocol):
    """Whose turn a job is, where several pools may have it: ``ablation.sweeps.claims.Claim``."""

    def take(self) -> str | None:
        """Claim the job before its process starts; returns what others do with it instead."""

    def elsewhere(self, pid: int | None = None) -> str | None:
        """What others do with the job of which our process ``pid`` failed; ``None`` if nothing."""

    def release(self) -> None:
        """The job's process has ended."""


@dataclass(frozen=True)
class Work:
    """A job to run.

    Attributes:
        title: what a person calls it.
        command: program and arguments.
        log: file that its output is appended to.
        turn: is asked before the job starts; ``None`` means that nobody else has it.
        unwanted: asked while the job runs; once it says yes, the job is told to save and stop.
    """

    title: str
    command: Sequence[str]
    log: Path
    turn: Turn | None = None
    unwanted: Callable[[], bool] | None = None


@dataclass(frozen=True)
class _Child:
    name: str
    work: Work
    index: int
    process: subprocess.Popen[bytes]
    log_start: int
    since: float


class Pool:
    """Runs jobs, each in a process and session of its own.

    Args:
        slots: one environment per place.
        out: where progress goes; ``None`` means stdout.

    Attributes:
        signal: what stopped the pool.
    """

    def __init__(self, slots: Sequence[Environment], out: TextIO | None = None) -> None:
        self._slots = slots
        self._board = Board(output.out() if out is None else out)
        self._running: dict[int, _Child] = {}
        self._codes: dict[int, int] = {}
        self._seconds: list[float] = []
        self._told: set[int] = set()  # unwanted jobs that know it
        self._total = 0
        self.signal: int | None = None
        self._forwarded = self._impatient = False

    def run(self, work: Sequence[Work]) -> list[int]:
        """Run all jobs; returns their exit codes, as ``stream`` does."""
        return self.stream(work, len(work))

    def stream(self, work: Iterable[Work], total: int) -> list[int]:
        """Run jobs that are made one by one: the next is asked for when a place is free.

        Args:
            work: the jobs.
            total: how many to expect.

        Returns:
            Their exit codes, negative for a signal as in ``subprocess``. A job that others have or
            had has the code ``ELSEWHERE``.

        Raises:
            KeyboardInterrupt: a signal stopped the pool; every process has ended.
        """
        waiting, self._total = enumerate(work), total
        with handling(self._receive):
            try:
                self._start(waiting)
                while self._running:
                    self._pass_signals_on()
                    self._stop_unwanted()
                    self._board.progress(self._standing)
                    time.sleep(POLL_SECONDS)
                    self._reap()
                    self._start(waiting)
            finally:
                self._end()
                self._board.close()
        if self.signal is not None:
            raise KeyboardInterrupt
        return [self._codes[index] for index in range(len(self._codes))]

    def _start(self, waiting: Iterator[tuple[int, Work]]) -> None:
        """Fill the free places."""
        for place, environment in enumerate(self._slots):
            while place not in self._running and self.signal is None:
                index, work = next(waiting, (-1, None))
                if work is None:
                    return
                name = f"[{index + 1}/{self._total}] {work.title}"
                if work.turn is not None and (why := work.turn.take()):
                    self._settle(index, work, ELSEWHERE, f"{name}: {why}")
                    continue
                try:
                    self._running[place] = self._started(name, index, work, environment)
                except OSError as error:  # the log, or no memory for a process
                    self._settle(index, work, -1, f"{name}: FAILED to start: {error}")
                else:
                    self._board.event(f"{name}: started (log {work.log})")

    def _started(self, name: str, index: int, work: Work, environment: Environment) -> _Child:
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with work.log.open("ab") as log:
            settings = [f"{key}={value}" for key, value in environment.items()]
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            log.write(f"# {now} {shlex.join([*settings, *work.command])}\n".encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(  # noqa: S603
                work.command,
                # Unbuffered: the last lines of a killed process are in its log.
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C reaches this process only, which passes it on once: a second
                # one would stop a job before it saved.
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )
            return _Child(name, work, index, process, start, time.monotonic())

    def _reap(self) -> None:
        """Note who ended."""
        for place, child in list(self._running.items()):
            code = child.process.poll()
            if code is None:
                continue
            del self._running[place]
            seconds = time.monotonic() - child.since
            if code == DONE:
                self._seconds.append(seconds)
                text = f"done in {duration(seconds)}"
            elif code == INTERRUPTED:
                text = f"stopped after {duration(seconds)}"
            elif child.work.turn and (why := child.work.turn.elsewhere(child.process.pid)):
                code, text = ELSEWHERE, why
            else:
                tail = [f"    {line}" for line in last_lines(child.work.log, child.log_start)]
                why = f"FAILED ({ending(code)}) after {duration(seconds)}"
                text = "\n".join([why, *tail])
            self._settle(child.index, child.work, code, f"{child.name}: {text}")

    def _settle(self, index: int, work: Work, code: int, text: str) -> None:
        """A job is over."""
        self._codes[index] = code
        if work.turn is not None:
            work.turn.release()
        self._board.event(text)

    def _stop_unwanted(self) -> None:
        """Tell jobs whose result nobody waits for any more, once each."""
        for child in self._running.values():
            unwanted = child.work.unwanted
            if unwanted is not None and child.index not in self._told and unwanted():
                self._told.add(child.index)
                child.process.terminate()

    def _standing(self) -> list[str]:
        """How far it all is, then what each running job said last."""
        jobs = []
        for child in self._running.values():
            said = last_lines(child.work.log, child.log_start, 1)
            jobs += [f"{child.name}: {line.strip()}" for line in said]
        return [self._counted(), *jobs]

    def _counted(self) -> str:
        """How many jobs are done, run and are left, and how long it takes."""
        codes = list(self._codes.values())
        left = max(0, self._total - len(codes) - len(self._running))
        done, elsewhere = codes.count(DONE), codes.count(ELSEWHERE)
        stopped = sum(self._codes.get(index) == INTERRUPTED for index in self._told)
        failed = len(codes) - done - elsewhere - stopped
        text = f"{done} done, {len(self._running)} running"
        text += f", {stopped} stopped" if stopped else ""
        text += f", {failed} failed" if failed else ""
        text += f", {elsewhere} elsewhere" if elsewhere else ""
        text += f", {left} left"
        if not self._seconds:
            return text
        mean, now = sum(self._seconds) / len(self._seconds), time.monotonic()
        ran = [now - child.since for child in self._running.values()]
        rest = [max(mean - seconds, seconds / 10) for seconds in ran]  # a late one is not over
        eta = (sum(rest) + mean * left) / len(self._slots)
        return f"{text}, eta {duration(max([eta, *rest]))}"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._impatient |= self.signal is not None and number == signal.SIGINT
        self.signal = self.signal or number

    def _pass_signals_on(self) -> None:
        """The first to the jobs, once; a Ctrl-C after it ends them."""
        if self.signal is None:
            return
        if not self._forwarded:
            self._forwarded = True
            name = signal.Signals(self.signal).name
            self._board.event(
                f"{name}: no job starts any more, those running save and stop; "
                f"a further Ctrl-C kills them"
            )
            for child in self._running.values():
                child.process.send_signal(self.signal)
        if self._impatient:
            self._kill()

    def _kill(self) -> None:
        for child in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)  # it leads a group of its own

    def _end(self) -> None:
        """Leave nobody behind. After an error of this process jobs may still save."""
        for child in self._running.values():
            child.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while any(child.process.poll() is None for child in self._running.values()):
            if self._impatient or time.monotonic() > deadline:
                self._kill()
            time.sleep(POLL_SECONDS)


class Board:
    """Display of a pool: lasting lines, and one of progress below them.

    On a terminal the last line is redrawn; elsewhere lines come after half a minute, and then more
    and more rarely, so that the log of a night can be read.

    Args:
        out: where to write.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self._terminal = out, drawable(out)
        self._shown, self._last = "", time.monotonic()
        self._pause = REDRAW_SECONDS if self._terminal else LINE_SECONDS

    def event(self, text: str) -> None:
        """A lasting line, or some."""
        self._write(f"{text}\n", shown="")

    def progress(self, standing: Callable[[], Sequence[str]]) -> None:
        """How far it is, as a whole and job by job; may be called all the time."""
        if time.monotonic() - self._last < self._pause:
            return
        self._last = time.monotonic()
        if self._terminal:
            line = "; ".join(standing())[: shutil.get_terminal_size().columns - 1]
            if line != self._shown:
                self._write(line, shown=line)
        else:
            self.event("\n  ".join(standing()))
            self._pause = min(1.5 * self._pause, LONGEST_SECONDS)

    def close(self) -> None:
        """Remove the last line."""
        if self._shown:
            self._write("", shown="")

    def _write(self, text: str, shown: str) -> None:
        clear = "\r\x1b[K" if self._shown else ""
        self._shown = shown
        self._out.write(clear + printable(text, output.LAYOUT))
        self._out.flush()


def ending(code: int) -> str:
    """``exit 3``, or ``killed by SIGKILL``."""
    if code >= 0:
        return f"exit {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def last_lines(log: Path, start: int = 0, count: int = LAST_LINES) -> list[str]:
    """The end of a log, no further back than a byte position; nothing if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 8192))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []
