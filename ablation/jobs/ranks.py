"""The processes of a run that trains on several devices: who starts them, and how they end.

Rank 0 is the job itself: it locks, writes, validates and evaluates. The others only train along,
from the moment at which rank 0 calls them. ``runtime.devices=4`` lets the job start them; under
torchrun they are there already, and wait.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from ablation.config.experiment import Config
from ablation.errors import INTERRUPTED, LostRankError
from ablation.jobs.setup import pick_device
from ablation.output import warn
from ablation.ranks import PATIENCE, PORT, Ranks, joined, launched
from ablation.runs.checkpoint import Snapshot
from ablation.runs.signals import die_with

HERE = "127.0.0.1"
CALL, TRAIN, NOTHING = "call", "train", "nothing"
"""What rank 0 tells the ranks that torchrun started: the key, and its two values."""
FOLLOWER = "ablation.jobs.follow"
"""The program of the others."""
GRACE_SECONDS = 60.0
"""How long a lost rank may go unnoticed, and how long ranks may take to end."""
POLL_SECONDS = 0.2


class RankFailedError(Exception):
    """Another rank of the run ended with an error of its own."""


@dataclass(frozen=True)
class Launched:
    """What this process was started as, by torchrun or by rank 0.

    Attributes:
        ranks: which of how many.
        local: its number on this machine.
    """

    ranks: Ranks
    local: int

    @staticmethod
    def here() -> Launched:
        """Read the environment; without one a process is alone."""
        ranks = launched()
        return Launched(ranks, int(os.environ.get("LOCAL_RANK", ranks.rank)))

    def device(self, name: str) -> torch.device:
        """The device of this rank, where ``name`` stands for that of the run."""
        device = pick_device(name)
        if device.type != "cuda" or self.ranks.alone:
            return device
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)


@contextmanager
def dismissing(me: Launched) -> Iterator[None]:
    """Send away the ranks that torchrun started, unless they were called before the end."""
    if me.ranks.alone:
        yield
        return
    store = _meeting(me.ranks)
    try:
        yield
    finally:
        if not store.check([CALL]):
            store.set(CALL, NOTHING)


def called(me: Launched) -> Store | None:
    """Wait, as a rank beside the first, until it calls; ``None`` if there is nothing to train."""
    store = _meeting(me.ranks)
    if store.get(CALL) != TRAIN.encode():
        return None
    store.set(_ready(me.ranks.rank), "")
    return store


def _ready(rank: int) -> str:
    """The key that a rank sets when it has started."""
    return f"ready/{rank}"


@functools.cache
def _meeting(ranks: Ranks) -> Store:
    """Where the ranks meet, by the environment of this process."""
    if PORT in os.environ:
        return TCPStore(HERE, int(os.environ[PORT]), ranks.world, False, PATIENCE)
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world, timeout=PATIENCE))
    return PrefixStore("ablation", store)


@contextmanager
def company(
    config: Config, me: Launched, device: torch.device, lost: Callable[[str], None]
) -> Iterator[None]:
    """Have the other ranks train along, as rank 0, until the context ends.

    Args:
        config: of the run.
        me: this process.
        device: its own.
        lost: called from another thread, with the reason, if a rank is gone and this process does
            not notice it by itself: what must be recorded before the process ends.

    Raises:
        LostRankError: another rank was killed or cut off.
        RankFailedError: another rank ended with an error, which it has told itself.
    """
    threads = torch.get_num_threads()
    if not me.ranks.alone:
        store = _meeting(me.ranks)
        store.set(CALL, TRAIN)
        with joined(0, me.ranks.world, device, store):
            yield
    elif config.runtime.devices > 1:
        share_threads(config.runtime.devices)
        try:
            with _started(config, device, lost):
                yield
        finally:
            torch.set_num_threads(threads)
    else:
        yield


def share_threads(world: int) -> None:
    """Leave the other ranks on this machine their share of its cores."""
    torch.set_num_threads(max(1, torch.get_num_threads() // world))


@contextmanager
def _started(config: Config, device: torch.device, lost: Callable[[str], None]) -> Iterator[None]:
    world = config.runtime.devices
    store = TCPStore(HERE, 0, world, True, PATIENCE, wait_for_workers=False)
    store.set(CALL, TRAIN)
    others: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    try:
        others.extend(
            _start(rank, world, store.port, config.container()) for rank in range(1, world)
        )
        _await(others, store)
        threading.Thread(target=watch, args=(others, over, lost), daemon=True).start()
        with joined(0, world, device, store):
            yield
    except LostRankError as error:
        failed = [code for code in _codes(others) if code > 0 and code != INTERRUPTED]
        if failed:
            raise _failed(failed[0]) from error
        raise
    finally:
        over.set()
        _codes(others)


def _await(others: Sequence[subprocess.Popen[bytes]], store: Store) -> None:
    """Wait until all others have started: joining waits for those, too, that never will.

    Raises:
        LostRankError: one was killed.
        RankFailedError: one could not start.
    """
    waiting = {_ready(rank): process for rank, process in enumerate(others, 1)}
    while waiting:
        for key, process in list(waiting.items()):
            code = process.poll()
            if code is not None and code > 0:
                raise _failed(code)
            if code is not None:
                raise LostRankError(f"another process of this run ended before it began ({code})")
            if store.check([key]):
                del waiting[key]
        time.sleep(POLL_SECONDS)


def _failed(code: int) -> RankFailedError:
    return RankFailedError(
        f"another process of this run failed (exit {code}); it has said why above"
    )


def _start(
    rank: int, world: int, port: int, container: Mapping[str, Any]
) -> subprocess.Popen[bytes]:
    """Start a rank on this machine; it gets the config on its stdin."""
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, PORT: port}
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", FOLLOWER],
        env={**os.environ, **{key: str(value) for key, value in place.items()}},
        stdin=subprocess.PIPE,
        preexec_fn=die_with(os.getpid(), SIGKILL),
    )
    assert process.stdin is not None  # noqa: S101
    with suppress(BrokenPipeError), process.stdin as pipe:  # it ended: ``_await`` finds out
        pipe.write(json.dumps(container).encode())
    return process


def watch(
    others: Sequence[subprocess.Popen[bytes]],
    over: threading.Event,
    lost: Callable[[str], None],
    grace: float = GRACE_SECONDS,
) -> None:
    """End this process if another rank is gone and it does not notice: it waits for a device.

    Args:
        others: the other ranks.
        over: set once they are no longer needed.
        lost: records why.
        grace: seconds to wait before.
    """
    while not over.wait(POLL_SECONDS):
        gone = [code for process in others if (code := process.poll()) not in (None, 0)]
        if gone:
            if over.wait(grace):
                return
            reason = f"another process of this run ended with {gone[0]}"
            warn(f"{reason}; the run goes on from its last checkpoint with the same command")
            lost(reason)
            os._exit(INTERRUPTED)


def _codes(others: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until they have ended, and kill what does not."""
    until = time.monotonic() + GRACE_SECONDS
    for process in others:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    return [process.wait() for process in others]


class Nothing:
    """Store and progress display of the ranks beside the first: they keep and show nothing."""

    def save(self, snapshot: Snapshot) -> None:
        """Rank 0 saves."""

    def settle(self) -> None:
        """Rank 0 saved it."""

    def load(self) -> Snapshot | None:
        """Rank 0 loads."""
        return None

    def keep_weights(
        self,
        name: str,
        net: nn.Module,
        average: nn.Module | None,
        epoch: int,
        step: int,
        recorded: Mapping[str, Tensor],
    ) -> None:
        """Rank 0 keeps them."""

    def rewind_metrics(self, epoch: int) -> None:
        """Rank 0 has the metrics."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Rank 0 logs."""

    def start(self, phases: Sequence[int], steps_per_epoch: int, done_steps: int) -> None:
        """Rank 0 shows it."""

    def step(self, n_images: int) -> None:
        """Rank 0 shows it."""

    def epoch_end(self, row: Mapping[str, float]) -> None:
        """Rank 0 shows it."""

    def close(self) -> None:
        """Rank 0 closes it."""
