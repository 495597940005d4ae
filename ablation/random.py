"""Keyed random streams: every draw is a function of (seed, stream, step), never of history.

A private generator per key means that resuming needs no generator state, that adding a component
changes no other draws, and that the arms of an ablation are paired: same order, crops and starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


def key(seed: int, stream: str, step: int) -> int:
    """Hash ``(seed, stream, step)`` to a 63-bit integer, the same on every platform."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class RowGenerator(torch.Generator):
    """A generator of one rank: it draws for the whole batch, and the rank's rows are kept.

    So a sample gets the same numbers on any number of ranks.

    Attributes:
        place: the rank's first row in the batch, and the rows of the batch.
    """

    place: tuple[int, int]


class Tape(torch.Generator):
    """Hands out numbers that were drawn before, in the order of the draws.

    Attributes:
        numbers: of each draw.
    """

    numbers: Iterator[Tensor]


@dataclass(frozen=True)
class Draw:
    """One draw: what drew, as ``torch.rand``, and its numbers."""

    make: Callable[..., Tensor]
    numbers: Tensor


_notes: ContextVar[list[Draw] | None] = ContextVar("notes", default=None)


@contextmanager
def noting() -> Iterator[list[Draw]]:
    """Note every ``draw`` within."""
    found: list[Draw] = []
    before = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(before)


_repeated: ContextVar[Iterator[Draw] | None] = ContextVar("repeated", default=None)


@contextmanager
def repeating(draws: Sequence[Draw]) -> Iterator[None]:
    """Draw within what ``noting`` noted, in its order and on whatever device it is drawn.

    A CPU and a GPU draw different numbers from one key: so they get the same.
    """
    before = _repeated.set(iter(draws))
    try:
        yield
    finally:
        _repeated.reset(before)


def generator(
    seed: int,
    stream: str,
    step: int = 0,
    device: torch.device | str = "cpu",
    place: tuple[int, int] | None = None,
) -> torch.Generator:
    """Make a fresh generator for one key.

    Args:
        seed: the run's seed.
        stream: name of what draws, for example ``"attack/adv"`` or ``"augment"``.
        step: the step or epoch of the draw.
        device: where the drawn tensors live. CPU and CUDA draw different numbers.
        place: of a rank's rows (``Batch.place``), for ``draw``; ``None`` draws what is asked for.
    """
    if place is None:
        return torch.Generator(device=device).manual_seed(key(seed, stream, step))
    rng = RowGenerator(device=device)
    rng.manual_seed(key(seed, stream, step))
    rng.place = place
    return rng


def draw(
    make: Callable[..., Tensor], shape: Sequence[int], rng: torch.Generator, like: Tensor
) -> Tensor:
    """Call ``make(shape, generator=rng)``, as ``torch.rand``, with the device and type of a tensor.

    Args:
        make: what draws.
        shape: [N, ...]; of a ``RowGenerator`` N are all the rows of its rank.
        rng: the generator.
        like: gives device and type.
    """
    if isinstance(rng, Tape):
        return next(rng.numbers)
    if (known := _repeated.get()) is not None:
        return _again(next(known, None), make, shape, like)
    if isinstance(rng, RowGenerator):
        first, count = rng.place
        whole = make((count, *shape[1:]), generator=rng, device=like.device, dtype=like.dtype)
        numbers = whole[first : first + shape[0]]
    else:
        numbers = make(shape, generator=rng, device=like.device, dtype=like.dtype)
    if (notes := _notes.get()) is not None:
        notes.append(Draw(make, numbers))
    return numbers


def _again(
    known: Draw | None, make: Callable[..., Tensor], shape: Sequence[int], like: Tensor
) -> Tensor:
    """The numbers of an earlier draw on the device of a tensor.

    Raises:
        RuntimeError: it was another draw.
    """
    if known is None or known.make is not make or known.numbers.shape != torch.Size(shape):
        raise RuntimeError(f"draws {list(shape)} numbers, which were not drawn before")
    return known.numbers.to(like)
