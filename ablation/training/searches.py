"""How crafters run on a GPU: each search as one program, captured once and replayed.

A search in evaluation mode is a function of the tensors that it reads and draws. Its first run
shows which these are; they get buffers that stay where they are, and the search on these is
captured as a CUDA graph. From then on a search is: draw, copy into the buffers, replay, copy out.
One size exists: the samples of a smaller batch, the last of an epoch, fill the first rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ablation.output import warn
from ablation.random import Draw, Tape, draw, noting
from ablation.ranks import present
from ablation.types import Batch, Crafted, Crafter, Views

READ = ("x", "y", "logits", "loss_logits", "memory")
"""What of ``Views`` hands out one tensor by its name, with a row of each sample."""
KEPT = 8
"""Programs at a time; a run has one of each crafter and phase."""

Search = Callable[[Views, Tensor, torch.Generator], Crafted]
"""Searches within radii [N] of a batch; see ``Crafter`` and ``Selects``."""


class Capture(Protocol):
    """Records a function of buffers: ``numerics.graphs.Graphs``, or anything of its contract."""

    def __call__(self, run: Callable[[], Crafted]) -> Callable[[], Crafted]:
        """What runs it again; it overwrites what it returned before."""


class Searches:
    """The programs of a run.

    Args:
        rows: samples of a whole batch on this rank.
        capture: records a search.
    """

    def __init__(self, rows: int, capture: Capture) -> None:
        self._rows, self._capture = rows, capture
        self._programs: dict[tuple[Any, ...], _Program | None] = {}
        self._said: set[str] = set()

    def run(
        self,
        name: str,
        crafter: Crafter,
        search: Search,
        views: Views,
        eps: Tensor,
        rng: torch.Generator,
    ) -> Crafted:
        """Run a crafter's search, by its program if it can have one.

        Args:
            name: of the crafter, for messages.
            crafter: whose search it is.
            search: the crafter itself, or its part that selects nothing (``Selects``).
            views: in the mode of the search.
            eps: radii [N].
            rng: of its random draws.
        """
        if crafter.bn != "eval":
            self._say(name, "batch statistics couple its samples")
            return search(views, eps, rng)
        x = views.batch.x
        key = (id(crafter), x.dtype, x.shape[1:], x.stride()[1:])
        if key not in self._programs:
            return self._first(key, name, search, views, eps, rng)
        program = self._programs[key]
        crafted = None if program is None else program.run(views, eps, rng)
        return search(views, eps, rng) if crafted is None else crafted

    def _first(
        self,
        key: tuple[Any, ...],
        name: str,
        search: Search,
        views: Views,
        eps: Tensor,
        rng: torch.Generator,
    ) -> Crafted:
        """Run a search as it is, make its program, and check that it finds the same."""
        if len(self._programs) >= KEPT:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = None
        noted = _Noted(views)
        with noting() as draws:
            crafted = search(cast(Views, noted), eps, rng)
        if not noted.forwards:  # nothing is searched
            return crafted
        reason = _obstacle(noted, draws, crafted, len(eps))
        if reason is None:
            try:
                program = _Program(search, noted.read, draws, crafted, views, eps, self._rows)
                program.capture(self._capture, views)
                drawn = [each.numbers for each in draws]
                again = program.replayed(views, eps, noted.read.values(), drawn)
            except RuntimeError as error:  # memory, too
                reason = f"CUDA refuses: {str(error).partition(chr(10))[0]}"
            else:
                if again is None or _agree(crafted, again):
                    self._programs[key] = program
                    return crafted if again is None else again
                reason = "the captured search finds other points"
        self._say(name, reason)
        return crafted

    def _say(self, name: str, reason: str) -> None:
        """Say once why a crafter's search is launched operation by operation."""
        text = f"warning: craft:{name} is not captured as a CUDA graph, and slower: {reason}"
        if text not in self._said and present().first:
            warn(text)
        self._said.add(text)


class _Noted:
    """The views of a step, which note what a search reads of them."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self.read: dict[tuple[str, str], Tensor] = {}
        self.other: str | None = None
        self.forwards = 0

    @property
    def batch(self) -> Batch:
        return self._views.batch

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self._views.forward(x)

    def __getattr__(self, name: str) -> Any:
        known = getattr(self._views, name)
        if name not in READ:
            self.other = name
            return known

        def read(which: str) -> Tensor:
            value: Tensor = known(which)
            self.read[name, which] = value
            return value

        return read


class _Buffered:
    """The views of a program: what a search reads lies in buffers.

    Args:
        batch: of buffers.
        read: buffers by what they are read as.
    """

    def __init__(self, batch: Batch, read: Mapping[tuple[str, str], Tensor]) -> None:
        self.batch, self._read = batch, read
        self._forward: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def of(self, views: Views) -> Iterator[None]:
        """Make the forwards of a step."""
        self._forward = views.forward
        try:
            yield
        finally:
            self._forward = None

    def forward(self, x: Tensor) -> Tensor:
        assert self._forward is not None  # noqa: S101
        return self._forward(x)

    def __getattr__(self, name: str) -> Callable[[str], Tensor]:
        return lambda which: self._read[name, which]


class _Program:
    """A search on buffers of one size.

    Args:
        search: run on the buffers.
        read: what it reads besides the batch, of the first step.
        draws: what it draws, of the first step.
        crafted: what it found there.
        views: of the first step.
        eps: its radii [N].
        rows: samples that the buffers hold.
    """

    def __init__(
        self,
        search: Search,
        read: Mapping[tuple[str, str], Tensor],
        draws: Sequence[Draw],
        crafted: Crafted,
        views: Views,
        eps: Tensor,
        rows: int,
    ) -> None:
        batch = views.batch
        self._search, self._rows = search, rows
        x, y, index = (_buffer(each, rows) for each in (batch.x, batch.y, batch.index))
        self._batch = Batch(x, y, index)
        self._eps = _buffer(eps, rows)
        self._read = {key: _buffer(value, rows) for key, value in read.items()}
        self._drawn = [_buffer(each.numbers, rows) for each in draws]
        self._makes = [each.make for each in draws]
        self._padded = all(each.shape[:1] == eps.shape for each in _tensors(crafted))
        self._views = _Buffered(self._batch, self._read)
        self._replay: Callable[[], Crafted] = self._on_buffers

    def capture(self, capture: Capture, views: Views) -> None:
        """Record the search, on whatever the buffers hold."""
        with self._views.of(views):
            self._replay = capture(self._on_buffers)

    def run(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted | None:
        """Search from a step's values; ``None``: the program cannot, and nothing was drawn."""
        read = [getattr(views, kind)(which) for kind, which in self._read]
        if not self._takes(len(eps)) or any(len(each) != len(eps) for each in read):
            return None
        shapes = [(len(eps), *each.shape[1:]) for each in self._drawn]
        drawn = [
            draw(make, shape, rng, buffer)
            for make, shape, buffer in zip(self._makes, shapes, self._drawn, strict=True)
        ]
        return self.replayed(views, eps, read, drawn)

    def _takes(self, n: int) -> bool:
        """Whether a batch of this size fits: a smaller one, if no result is of the whole batch."""
        return n == self._rows or (n < self._rows and self._padded)

    def replayed(
        self, views: Views, eps: Tensor, read: Iterable[Tensor], drawn: Iterable[Tensor]
    ) -> Crafted | None:
        """Search from a step's values, in the order of the buffers; ``None`` as for ``run``."""
        n, batch = len(eps), views.batch
        if not self._takes(n):
            return None
        own = self._batch
        buffers = (own.x, own.y, own.index, self._eps, *self._read.values(), *self._drawn)
        values = (batch.x, batch.y, batch.index, eps, *read, *drawn)
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer[:n].copy_(value)
        with self._views.of(views):
            return _mapped(self._replay(), lambda found: found[:n] if found.dim() else found)

    def _on_buffers(self) -> Crafted:
        tape = Tape()
        tape.numbers = iter(self._drawn)
        return self._search(cast(Views, self._views), self._eps, tape)


def _buffer(like: Tensor, rows: int) -> Tensor:
    """Zeros in the shape, type and memory format of a tensor [N, ...], but of so many rows."""
    buffer = like.new_zeros((rows, *like.shape[1:]))
    last = torch.channels_last
    if like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=last):
        return buffer.to(memory_format=last)
    return buffer


def _tensors(crafted: Crafted) -> list[Tensor]:
    """All results of a search."""
    groups = (crafted.aux, crafted.facts, crafted.recorded)
    single = [] if crafted.counted is None else [crafted.counted]
    return [crafted.x, *single, *(each for group in groups for each in group.values())]


def _mapped(crafted: Crafted, part: Callable[[Tensor], Tensor]) -> Crafted:
    """Copies of a part of each result, for the graph will overwrite them."""

    def copied(tensor: Tensor) -> Tensor:
        return part(tensor.detach()).clone()

    def each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: copied(tensor) for name, tensor in tensors.items()}

    return replace(
        crafted,
        x=copied(crafted.x),
        counted=None if crafted.counted is None else copied(crafted.counted),
        aux=each(crafted.aux),
        facts=each(crafted.facts),
        recorded=each(crafted.recorded),
    )


def _obstacle(noted: _Noted, draws: Sequence[Draw], crafted: Crafted, n: int) -> str | None:
    """Why a search of ``n`` samples can have no program; ``None`` if it can."""
    if noted.other is not None:
        return f"it reads views.{noted.other}"
    if crafted.rows is not None or any(len(each) != n for each in noted.read.values()):
        return "how many samples it is of changes from step to step"
    if any(each.numbers.shape[:1] != (n,) for each in draws):
        return "it draws numbers that are not of one sample each"
    return None


def _agree(ours: Crafted, theirs: Crafted) -> bool:
    """Whether two runs of a search found the same; waits for the device.

    Kernels may be others and turn gradients that are of the size of rounding, so a fifth of the
    numbers may differ. A program that reads what is stale moves far more.
    """
    close = [
        torch.isclose(one.double(), other.double(), rtol=1e-2, atol=1e-3, equal_nan=True)
        for one, other in zip(_tensors(ours), _tensors(theirs), strict=True)
    ]
    return bool((torch.stack([each.double().mean() for each in close]) >= 0.8).all())
