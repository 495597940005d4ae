"""Run directories: one process per run, records that survive a kill, results that are never lost.

``<runs_dir>/<data>-<model>-<method>-s<seed>-<train_id>/`` holds ``config.yaml``, ``status.json``,
``metrics.jsonl``, ``split.npz``, ``checkpoints/``, ``evaluations/`` and ``result.json``. Every file
but ``metrics.jsonl`` is replaced atomically; that one is appended to, a line at a time.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from filelock import FileLock, Timeout

from ablation.errors import InputError, InterruptedRunError, NonFiniteError
from ablation.runs.checkpoint import Checkpoints, Snapshot
from ablation.runs.files import (
    atomic_write_bytes,
    atomic_write_text,
    make_folder,
    storage_error,
    sweep_temporaries,
)
from ablation.runs.provenance import git_state, versions

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


State = Literal["running", "done", "failed", "interrupted"]


HEARTBEAT_SECONDS = 15.0
"""Least time between two heartbeats on disk."""


STALE_SECONDS = 120.0
"""A run on another machine whose heartbeat is older than this is taken for dead."""


LOCK_SECONDS = 0.5
"""How long a start waits for the lock: longer than a ``status`` of another process holds it."""


VOLATILE = (
    *("attack", "evaluation", "tracking", "monitor", "runs_dir", "data_dir", "retry", "init_from"),
    *("runtime.device", "data.eps", "data.augment", "data.source.download"),
)
"""Keys in which a command may differ from a run's ``config.yaml``: they change nothing that was
trained, or act through other keys that are compared."""


ENTRY_FIELDS = frozenset(
    ("checkpoint", "weights", "metric", "split", "value", "unit", "n", "params")
)
"""What every entry of a result says."""


_NAME = re.compile(r".+-([0-9a-f]{10})")


@dataclass(frozen=True)
class Status:
    """What ``status.json`` says, read tolerantly.

    Attributes:
        state: a run that claims to be running while nobody holds its lock was killed: interrupted.
        pid: process that wrote it, on ``host``.
        host: name of its machine.
        started: UTC, ISO 8601, when that process began.
        heartbeat: likewise, its last sign of life.
        finished: likewise; ``None`` while running.
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


class Run:
    """One run directory, and the engine's ``Store``.

    Reading needs no lock; writing happens inside ``open`` or ``reopen``.

    Args:
        path: the directory; made by ``open``.
        train_id: the run's identity, the last part of its name.
    """

    def __init__(self, path: Path, train_id: str) -> None:
        self.path, self.train_id = path, train_id
        self.checkpoints = Checkpoints(path / "checkpoints", train_id)
        self._started: str | None = None
        self._last_beat = -math.inf

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
    def result_path(self) -> Path:
        """All entries of the run."""
        return self.path / "result.json"

    @property
    def evaluations(self) -> Path:
        """Folder with two files per evaluation."""
        return self.path / "evaluations"

    @property
    def _status_path(self) -> Path:
        return self.path / "status.json"

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
    def reopen(self) -> Iterator[None]:
        """Take the lock of a run that exists, to add evaluations; its status stays.

        Raises:
            InputError: there is no such run, or another process works on it.
        """
        if not self.config_path.is_file():
            raise InputError(f"{self.path} is no run: config.yaml is missing; check the path")
        with self._locked():
            self._sweep()
            yield

    def status(self) -> Status | None:
        """What is known of the run; ``None`` if nothing is, or ``status.json`` cannot be read."""
        found = self._recorded()
        state = found.pop("state", None)
        if state not in get_args(State):
            return None
        if state == "running" and not self._alive(found):
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
        self._record(
            {
                **self._recorded(),
                **facts,
                "state": state,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": self._started or now,
                "heartbeat": now,
                "finished": None if state == "running" else now,
                "error": error,
                "term": term,
                "versions": dict(versions()),
                "git": git_state(),
            }
        )
        self._last_beat = time.monotonic()

    def note(self, **facts: Any) -> None:
        """Keep plain data in ``status.json``; the state stays.

        Raises:
            InputError: the directory cannot be written.
        """
        self._record({**self._recorded(), **facts})

    def beat(self) -> None:
        """Record a heartbeat; may be called every step, writes at most every 15 seconds."""
        now = time.monotonic()
        if now - self._last_beat < HEARTBEAT_SECONDS:
            return
        self._last_beat = now
        with suppress(InputError):  # a missed beat must not end training; a lost checkpoint does
            self._record({**self._recorded(), "heartbeat": utc_now()})

    def save(self, snapshot: Snapshot) -> None:
        """Write a resumable checkpoint; see ``Checkpoints.save`` for errors."""
        self.checkpoints.save(snapshot)

    def load(self) -> Snapshot | None:
        """Read the newest intact checkpoint; a damaged one is named on stderr and passed over.

        Raises:
            InputError: none is intact, or one belongs to another run or a newer program.
        """
        snapshot, warnings = self.checkpoints.load_latest() or (None, ())
        for warning in warnings:
            sys.stderr.write(f"warning: {warning}\n")
        return snapshot

    def keep_weights(
        self, name: str, net: nn.Module, average: nn.Module | None, epoch: int, step: int
    ) -> None:
        """Write the weights ``best_robust``, ``best_clean`` or ``last``, and their average.

        Raises:
            InputError: the disk is full or cannot be written; the old files are untouched.
        """
        averaged = None if average is None else average.state_dict()
        meta = {"epoch": str(epoch), "step": str(step), "run": self.path.name}
        self.checkpoints.save_weights(name, net.state_dict(), averaged, meta=meta)

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
            self._record({**found, "data": fingerprint})
        elif before != fingerprint:
            raise InputError(
                f"{self.path} was trained on other data (fingerprint {before}, now {fingerprint}): "
                f"restore the files in data_dir, or set runs_dir=... to train anew"
            )

    def log(self, row: Mapping[str, float | int | str | None]) -> None:
        """Append the line of an epoch, durably. NaN and Inf become null with a ``_reason``.

        Raises:
            InputError: the disk is full or cannot be written; the file is as before.
        """
        line = json.dumps(finite(row), allow_nan=False) + "\n"
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
        try:
            content = self.metrics_path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.metrics_path} cannot be read: {error.strerror}") from error
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                if number == len(lines):
                    break
                raise InputError(
                    f"{self.metrics_path}: line {number} is damaged; remove it"
                ) from error
            rows.append(row)
        return rows

    def rewind_metrics(self, epoch: int) -> None:
        """Drop the lines of this epoch (of the whole run) and later ones, and a torn one.

        Raises:
            InputError: the disk is full or cannot be written; the file is as before.
        """
        kept = [row for row in self.read_metrics() if row.get("epoch", -1) < epoch]
        content = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode()
        if self.metrics_path.is_file() and self.metrics_path.read_bytes() != content:
            atomic_write_bytes(self.metrics_path, content)

    def add_evaluation(
        self,
        checkpoint: str,
        eval_id: str,
        entries: Sequence[Mapping[str, Any]],
        examples: pd.DataFrame,
        flags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Keep one evaluation and rebuild ``result.json``. One that is there already stays.

        Args:
            checkpoint: the weights that were attacked.
            eval_id: hash of the evaluation.
            entries: numbers; each has the fields of ``ENTRY_FIELDS``.
            examples: one row per example.
            flags: warnings about the evaluation.
            meta: plain data; ``scale`` and ``deviations`` reach ``result.json``.
            checks: of the evaluation, as plain data.

        Raises:
            InputError: the disk is full or cannot be written; earlier results are untouched.
            ValueError: an entry lacks a field.
        """
        for entry in entries:
            if missing := sorted(ENTRY_FIELDS - entry.keys()):
                raise ValueError(f"entry {dict(entry)} lacks {', '.join(missing)}")
        if not self.has_evaluation(checkpoint, eval_id):
            record = {
                "checkpoint": checkpoint,
                "eval_id": eval_id,
                "entries": [dict(entry) for entry in entries],
                "flags": list(flags),
                "checks": [dict(check) for check in checks],
                "meta": dict(meta or {}),
            }
            buffer = BytesIO()
            examples.to_parquet(buffer, index=False)
            path = self._evaluation_path(checkpoint, eval_id)
            # The JSON last: it says that the evaluation is complete.
            atomic_write_bytes(path.with_name(f"{path.stem}.parquet"), buffer.getvalue())
            atomic_write_text(path, _json(record))
        self._rebuild_result()

    def has_evaluation(self, checkpoint: str, eval_id: str) -> bool:
        """Is this evaluation complete and on disk?"""
        path = self._evaluation_path(checkpoint, eval_id)
        return path.is_file() and path.with_name(f"{path.stem}.parquet").is_file()

    def result(self) -> dict[str, Any] | None:
        """All entries of the run, put together from its evaluations; ``None`` if it has none.

        ``checks`` is missing where no evaluation has any: those before there were checks.

        Raises:
            InputError: an evaluation's file is damaged.
        """
        records = []
        for path in sorted(self.evaluations.glob("*.json")):
            try:
                records.append(json.loads(path.read_bytes()))
            except ValueError as error:
                raise InputError(f"{path} is damaged: move it away and evaluate again") from error
        if not records:
            return None
        metas = [record["meta"] for record in records]
        scales = {str(meta["scale"]) for meta in metas if "scale" in meta}
        checks = [check for record in records for check in record.get("checks", ())]
        return {
            "run": self.path.name,
            "train_id": self.train_id,
            "scale": "smoke" if "smoke" in scales else next(iter(scales), None),
            "flags": _unique(record["flags"] for record in records),
            "deviations": _unique(meta.get("deviations", ()) for meta in metas),
            **({"checks": checks} if checks else {}),
            "entries": [entry for record in records for entry in record["entries"]],
        }

    def _evaluation_path(self, checkpoint: str, eval_id: str) -> Path:
        return self.evaluations / f"{checkpoint}-{eval_id}.json"

    def _rebuild_result(self) -> None:
        result = self.result()
        if result is None:
            return
        text = _json(result)
        if not self.result_path.is_file() or self.result_path.read_text("utf-8") != text:
            atomic_write_text(self.result_path, text)

    @contextmanager
    def _locked(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        try:
            make_folder(self.path)
            lock = FileLock(self.path / ".lock", thread_local=False)
            lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.02)
        except Timeout as error:
            raise InputError(self._who_has_it()) from error
        except OSError as error:
            raise storage_error(error, self.path, "starting the run") from error
        try:
            check()
            self._started = utc_now()
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": self._started}
            self._record({**self._recorded(), "owner": owner})
            yield
        finally:
            self._started = None
            lock.release()

    def _who_has_it(self) -> str:
        owner = self._recorded().get("owner") or {}
        pid, host, since = (owner.get(key, "?") for key in ("pid", "host", "since"))
        return (
            f"run {self.path} is being trained or evaluated by pid {pid} on host {host} since "
            f"{since}; wait for it or stop it"
        )

    def _alive(self, found: Mapping[str, Any]) -> bool:
        """Does the process that claims to be running still hold the lock?"""
        elsewhere = found.get("host") != socket.gethostname()
        if elsewhere and seconds_since(str(found.get("heartbeat"))) < STALE_SECONDS:
            return True  # not every network file system carries locks from machine to machine
        path = self.path / ".lock"
        if not path.is_file():
            return False
        try:
            with FileLock(path).acquire(timeout=LOCK_SECONDS / 5, poll_interval=0.01):
                return False
        except Timeout:
            return True
        except OSError:  # somebody else's directory, read-only: only the heartbeat can tell
            return seconds_since(str(found.get("heartbeat"))) < STALE_SECONDS

    def _sweep(self) -> None:
        for folder in (self.path, self.evaluations):
            sweep_temporaries(folder)
        self.checkpoints.sweep()
        self._rebuild_result()  # a kill may have come between an evaluation and the result

    def _write_config(self, text: str, ignore: Sequence[str]) -> None:
        if not self.config_path.exists():
            atomic_write_text(self.config_path, text)
            return
        try:
            there = self.config_path.read_text("utf-8")
            before = None if there == text else yaml.safe_load(there)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(
                f"{self.config_path} cannot be read ({' '.join(str(error).split())}): move the "
                f"run's directory away or set runs_dir=..."
            ) from error
        found = None
        if there != text:
            now = yaml.safe_load(text)
            found = first_difference(_switched_on(before), _switched_on(now), ignore)
        if found is not None:
            key, old, new = found
            raise InputError(
                f"{self.config_path} is of another run: {key} is {old!r} there and {new!r} in this "
                f"command; move the directory away or set runs_dir=..."
            )

    def _recorded(self) -> dict[str, Any]:
        try:
            found = json.loads(self._status_path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _record(self, status: Mapping[str, Any]) -> None:
        atomic_write_text(self._status_path, _json(status))


def find_runs(runs_dir: Path) -> Iterator[Run]:
    """The runs in a folder, by name; none if it does not exist.

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
        if match and (path / "config.yaml").is_file():
            yield Run(path, match[1])


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


def finite(value: Any) -> Any:
    """Plain data fit for strict JSON: a NaN or infinite number becomes null.

    In a mapping a sibling ``<key>_reason`` says what it was: ``nan``, ``inf`` or ``-inf``.
    """
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, entry in value.items():
            entry = _scalar(entry)
            found[str(key)] = finite(entry)
            if isinstance(entry, float) and not math.isfinite(entry):
                found[f"{key}_reason"] = str(entry)
        return found
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    value = _scalar(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def utc_now() -> str:
    """For example ``2025-03-01T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def seconds_since(moment: str) -> float:
    """Seconds from an ISO 8601 moment until now; infinite if it is none."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (TypeError, ValueError):
        return math.inf


def _ending(error: BaseException) -> tuple[State, str]:
    """How a run ended that an exception left."""
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


def _scalar(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number."""
    item: Callable[[], Any] | None = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"


def _unique(lists: Iterator[Sequence[str]]) -> list[str]:
    """All entries in order, each once."""
    return list(dict.fromkeys(entry for entries in lists for entry in entries))
