"""Run directories: one process per run, records that survive a kill, results that are never lost.

``<runs_dir>/<data>-<model>-<method>-s<seed>-<train_id>/`` holds ``config.yaml``, ``status.json``,
``metrics.jsonl``, ``split.npz``, ``checkpoints/``, ``evaluations/`` and ``result.json``. Every file
but ``metrics.jsonl`` is replaced atomically; that one is appended to, a line at a time.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from ablation.errors import InputError, InterruptedRunError, NonFiniteError
from ablation.output import warn
from ablation.runs.checkpoint import Checkpoints, Snapshot
from ablation.runs.evaluations import EvaluationRecords
from ablation.runs.files import (
    atomic_write_bytes,
    atomic_write_text,
    discard,
    finite,
    make_folder,
    storage_error,
    sweep_temporaries,
)
from ablation.runs.state_dicts import on_host
from ablation.runs.status import (
    LOCK_SECONDS,
    STALE_SECONDS,
    RunStatus,
    State,
    place_lock,
    place_of,
    seconds_since,
    utc_now,
)
from ablation.runs.writer import Writer

if TYPE_CHECKING:
    from torch import Tensor, nn


VOLATILE = (
    *("attack", "evaluation", "tracking", "monitor"),
    *("runs_dir", "data_dir", "retry", "extend", "init_from"),
    *("runtime.device", "data.eps", "data.augment", "optim.lr", "data.source.download"),
    # Older configs lack these; the identity has them.
    *("data.source.relabel", "runtime.devices", "runtime.batch_norm", "runtime.accumulate"),
    "runtime.fast",
)
"""Keys in which a command may differ from a run's ``config.yaml``: they change nothing that was
trained, or act through other keys that are compared."""
_NAME = re.compile(r".+-([0-9a-f]{10})")


class Run(RunStatus, EvaluationRecords):
    """One run directory, and the engine's ``Store``.

    Reading needs no lock; writing happens inside ``open`` or ``reopen``.

    Args:
        path: the directory; made by ``open``.
        train_id: the run's identity, the last part of its name.
    """

    def __init__(self, path: Path, train_id: str) -> None:
        super().__init__(path)
        self.train_id = train_id
        self.checkpoints = Checkpoints(path / "checkpoints", train_id)
        self._writer = Writer()

    @classmethod
    def at(cls, path: Path) -> Run:
        """A run by its directory alone, whose name ends in the train id; it need not exist."""
        return cls(path, path.name.rpartition("-")[2])

    @property
    def config_path(self) -> Path:
        """The resolved config, reusable as input."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def split_path(self) -> Path:
        """The train and validation indices."""
        return self.path / "split.npz"

    @property
    def picture_path(self) -> Path:
        """A few adversarial examples."""
        return self.path / "adversarial.png"

    def keep_classes(self, names: Sequence[str]) -> None:
        """Write ``classes.json``: what each class number stands for in the user's images."""
        atomic_write_text(self.path / "classes.json", json.dumps(list(names), ensure_ascii=False))

    @contextmanager
    def open(self, config_yaml: str, ignore: Sequence[str] = VOLATILE) -> Iterator[None]:
        """Make or take over the directory, for as long as the context lasts.

        Temporary files of killed processes are removed, the state becomes ``running``. An
        exception that leaves the context while it still is ``running`` is recorded:
        ``interrupted`` for what the same command can go on from, else ``failed``.

        Args:
            config_yaml: the resolved config. One that is there already stays as it is.
            ignore: dotted keys in which the two may differ.

        Raises:
            InputError: another process trains this run, the directory cannot be written, or it
                holds a run of another config.
        """
        with self._locked(lambda: self._write_config(config_yaml, ignore)):
            self._sweep()
            self.set_status("running")
            try:
                yield
            except BaseException as error:
                if self._recorded().get("state") == "running":
                    with suppress(InputError):  # the disk may be what failed
                        self.set_status(*_ending(error), term=getattr(error, "term", None))
                raise

    @contextmanager
    def reopen(self, patience: float = LOCK_SECONDS) -> Iterator[None]:
        """Take the lock of a run that exists, to add evaluations; its status stays.

        Args:
            patience: seconds to wait for another process.

        Raises:
            InputError: there is no such run, or another process works on it.
        """
        if not self.config_path.is_file():
            raise InputError(f"{self.path} is no run: config.yaml is missing; check the path")
        with self._locked(patience=patience):
            self._sweep()
            yield

    def save(self, snapshot: Snapshot) -> None:
        """Write a resumable checkpoint of this moment, beside what is done next.

        Raises:
            InputError: the disk is full or cannot be written, found now or while an earlier one
                was written; older checkpoints are untouched.
        """
        self.check_place()
        copy = snapshot.copied()
        self._writer.submit(lambda: self.checkpoints.save(copy))

    def settle(self) -> None:
        """Wait until all that was saved is on the disk.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        self._writer.settle()

    def load(self) -> Snapshot | None:
        """Read the newest intact checkpoint; a damaged one is named on stderr and passed over.

        Raises:
            InputError: none is intact, or one belongs to another run or a newer program; or the
                best weights so far are damaged.
        """
        self.settle()
        snapshot, warnings = self.checkpoints.load_latest() or (None, ())
        for warning in warnings:
            warn(f"warning: {warning}")
        if snapshot is not None:  # the best weights so far cannot be computed again: say so now
            for name in snapshot.train.get("position", {}).get("best", ()):
                self.checkpoints.load_weights(name, snapshot.average is not None)
        return snapshot

    def keep_weights(
        self,
        name: str,
        net: nn.Module,
        average: nn.Module | None,
        epoch: int,
        step: int,
        recorded: Mapping[str, Tensor],
    ) -> None:
        """Write the weights ``best_robust``, ``best_clean`` or ``last``, and their average.

        They are written beside what is done next, as ``save`` does. ``recorded`` is what training
        recorded of each image in their epoch, as columns; empty if its method records nothing.

        Raises:
            InputError: as ``save``; the old files are untouched.
        """
        self.check_place()
        averaged = None if average is None else average.state_dict()
        meta = {"epoch": str(epoch), "step": str(step), "run": self.path.name}
        parts = on_host((net.state_dict(), averaged, recorded), copy=True)
        self._writer.submit(lambda: self.checkpoints.save_weights(name, *parts, meta=meta))

    def log(self, row: Mapping[str, float | int | str | None]) -> None:
        """Append the line of an epoch, durably. NaN and Inf become null with a ``_reason``.

        Raises:
            InputError: the disk is full or cannot be written; the file is as before.
        """
        line = json.dumps(finite(row), allow_nan=False) + "\n"
        self.check_place()
        try:
            make_folder(self.path)
            _append(self.metrics_path, line.encode())
        except OSError as error:
            raise storage_error(error, self.path, "writing metrics.jsonl") from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line torn by a kill is left out.

        Raises:
            InputError: another line is damaged.
        """
        rows, damaged = self._rows()
        if damaged:
            raise InputError(f"{self.metrics_path}: line {damaged[0]} is damaged; remove it")
        return rows

    def _rows(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The sound lines, and the numbers of the damaged ones, counted from 1."""
        try:
            content = self.metrics_path.read_bytes()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise InputError(f"{self.metrics_path} cannot be read: {error.strerror}") from error
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        rows, damaged = [], []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict) and isinstance(row.get("epoch", -1), int):
                rows.append(row)
            elif number < len(lines):
                damaged.append(number)
        return rows, damaged

    def last_epoch(self) -> int:
        """The last epoch in ``metrics.jsonl``, damaged lines left out; 0 if there is none."""
        rows, _ = self._rows()
        return max((row.get("epoch", 0) for row in rows), default=0)

    def rewind_metrics(self, epoch: int) -> None:
        """Drop the lines of this epoch (of the whole run) and later ones, and damaged ones.

        Epochs that are lost are named on stderr: they cannot be measured again.

        Raises:
            InputError: the disk is full or cannot be written; the file is as before.
        """
        rows, _ = self._rows()
        kept = [row for row in rows if row.get("epoch", -1) < epoch]
        lost = sorted(set(range(epoch)) - {row.get("epoch") for row in kept})
        if lost:
            names = ", ".join(str(number) for number in lost)
            warn(
                f"warning: {self.metrics_path}: the lines of epochs {names} are damaged or "
                f"missing; training goes on, the curves lack them"
            )
        content = "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in kept).encode()
        if self.metrics_path.is_file() and self.metrics_path.read_bytes() != content:
            atomic_write_bytes(self.metrics_path, content)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep everybody else off a run that exists, to copy or remove it; no record changes.

        Raises:
            InputError: there is no such folder, it is a link, or another process works on it.
        """
        if self.path.is_symlink():
            raise InputError(f"{self.path} is a link, which is not followed; name what it leads to")
        if not self.path.is_dir():
            raise InputError(f"{self.path} is gone")
        with self._alone(LOCK_SECONDS):
            yield

    @contextmanager
    def _locked(
        self, check: Callable[[], None] = lambda: None, patience: float = LOCK_SECONDS
    ) -> Iterator[None]:
        try:
            with self._alone(patience):
                check()
                self._place, self._started = place_of(self.path), utc_now()
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": self._started}
                self.note(owner=owner)
                yield
        finally:
            self._place = self._started = None

    @contextmanager
    def _alone(self, patience: float) -> Iterator[None]:
        """Hold the lock of the run.

        Raises:
            InputError: another process has it, or the directory cannot be written.
        """
        try:
            make_folder(self.path)
            lock = FileLock(self.path / ".lock", thread_local=False)
            lock.acquire(timeout=patience, poll_interval=0.02)
        except Timeout as error:
            raise InputError(self._who_has_it()) from error
        except OSError as error:
            raise storage_error(error, self.path, "starting the run") from error
        try:
            with place_lock(self.path) as free:
                if not free:
                    raise InputError(self._who_has_it())
                self._check_claim()
                yield
        finally:
            lock.release()

    def _check_claim(self) -> None:
        """Refuse a run that another machine works on, also where locks do not reach it."""
        found = self._recorded()
        if self._claimed_elsewhere(found):
            seconds = STALE_SECONDS - seconds_since(str(found.get("heartbeat")))
            raise InputError(
                f"{self._who_has_it()}; if that host is dead, run the same command again in "
                f"{max(1, round(seconds))} s"
            )

    def _who_has_it(self) -> str:
        owner = self._recorded().get("owner") or {}
        pid, host, since = (owner.get(key, "?") for key in ("pid", "host", "since"))
        return (
            f"run {self.path} is being trained or evaluated by pid {pid} on host {host} since "
            f"{since}; wait for it or stop it"
        )

    def _sweep(self) -> None:
        for folder in (self.path, self.evaluations):
            sweep_temporaries(folder)
        self.checkpoints.sweep()
        for partial in self.evaluations.glob("*.partial"):
            checkpoint, _, eval_id = partial.stem.rpartition("-")
            if self.has_evaluation(checkpoint, eval_id):  # a kill came before it was removed
                discard(partial)
        self._rebuild_result()  # a kill may have come between an evaluation and the result

    def config(self) -> dict[str, Any]:
        """The resolved config that the run was started with, as plain data.

        Raises:
            InputError: it is missing, damaged or no config.
        """
        try:
            found = yaml.safe_load(self.config_path.read_bytes())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise self._damaged_config(" ".join(str(error).split())) from error
        if not isinstance(found, dict) or not found:
            kind = "it is empty" if not found else f"it is a {type(found).__name__}"
            raise self._damaged_config(kind)
        return found

    def _damaged_config(self, why: str) -> InputError:
        return InputError(
            f"{self.config_path} cannot be read ({why}): restore it, move the run's directory "
            f"away, or set runs_dir=..."
        )

    def _write_config(self, text: str, ignore: Sequence[str]) -> None:
        if not self.config_path.exists():
            atomic_write_text(self.config_path, text)
            return
        before, now = self.config(), yaml.safe_load(text)
        found = first_difference(_switched_on(before), _switched_on(now), ignore)
        if found is not None:
            key, old, new = found
            raise InputError(
                f"{self.config_path} is of another run: {key} is {old!r} there and {new!r} in this "
                f"command; move the directory away or set runs_dir=..."
            )


def find_runs(runs_dir: Path, *, damaged: bool = False) -> Iterator[Run]:
    """The runs in a folder, by name; none if it does not exist.

    Args:
        runs_dir: the folder.
        damaged: also those that have results and lost their ``config.yaml``.

    Raises:
        InputError: it is a file, or cannot be read.
    """
    try:
        paths = sorted(runs_dir.iterdir()) if runs_dir.exists() else []
    except OSError as error:
        raise InputError(
            f"runs_dir={runs_dir} cannot be listed ({error.strerror}); name a folder of runs"
        ) from error
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        run = Run(path, match[1])
        try:
            is_run = run.config_path.is_file() or (damaged and run.evaluations.is_dir())
        except OSError:  # somebody else's, closed to us
            is_run = damaged
        if is_run:
            yield run


def _switched_on(config: Any) -> Any:
    """A config without its disabled components: older ones do not mention those that came later."""
    if not isinstance(config, dict) or not isinstance(config.get("component"), dict):
        return config
    enabled = {k: v for k, v in config["component"].items() if v != {"enabled": False}}
    return {**config, "component": enabled}


def first_difference(
    old: Any, new: Any, ignore: Sequence[str] = (), key: str = ""
) -> tuple[str, Any, Any] | None:
    """Dotted key and both values where two nested containers first differ, in sorted order."""
    if key in ignore:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}, key=str):
            path = f"{key}.{name}" if key else str(name)
            there, here = old.get(name, "(absent)"), new.get(name, "(absent)")
            if found := first_difference(there, here, ignore, path):
                return found
        return None
    # A NaN equals itself here; 1 and 1.0 are the same setting, True is another.
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return None if same or repr(old) == repr(new) else (key, old, new)


def _ending(error: BaseException) -> tuple[State, str]:
    """State and error text of a run that an exception ended."""
    text = " ".join(f"{error}".split())
    if isinstance(error, (InterruptedRunError, InputError, KeyboardInterrupt, SystemExit)):
        return "interrupted", text or type(error).__name__
    return "failed", text if isinstance(
        error, NonFiniteError
    ) else f"{type(error).__name__}: {text}"


def _append(path: Path, line: bytes) -> None:
    """Add a line; a torn one before it goes, and so does this one if it cannot be written."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(handle, content.rfind(b"\n") + 1)
        size = os.fstat(handle).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except BaseException:
            with suppress(OSError):  # the first error counts
                os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)
