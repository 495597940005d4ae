"""Several processes that train one network together: data parallel over torch.distributed.

Every rank has the whole network and takes its own rows of each batch. What is a sum over the batch
is summed over the ranks, so that one step is that of one process up to rounding. With one process
everything here is the identity, and nothing is communicated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ablation.errors import InterruptedRunError, LostRankError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
PORT = "ABLATION_PORT"
"""Environment variable of a rank that rank 0 has started: where that one listens."""
PATIENCE = timedelta(hours=6)
"""How long a rank waits for the others: the first one validates and saves alone. A rank that has
died is noticed at once, by its closed connection."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is.

    Attributes:
        rank: from 0; rank 0 alone writes, validates and reports.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    def rows(self, count: int) -> slice:
        """The rows of a batch of ``count`` that this rank takes: contiguous, as even as can be."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor of the same shape over the ranks; can be differentiated, also twice.

        The gradient that arrives at a rank is that of the sum of all ranks' results.
        """
        if self.alone:
            return values
        total: Tensor = _Sum.apply(values)
        return total

    def total(self, number: int) -> int:
        """Sum a number that the host knows."""
        if self.alone:
            return number
        return int(self.sum(torch.tensor(number)))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return self.total(int(flag)) > 0

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the ranks in place, such as gradients: in one message.

        Args:
            tensors: of one type and device, the same shapes on every rank.
        """
        if self.alone or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _reduce(flat)
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have on rank 0, in place."""
        for tensor in () if self.alone else tensors:
            with _noticing():
                dist.broadcast(tensor.detach(), src=0)

    @torch.no_grad()
    def gather(self, values: Tensor, place: tuple[int, int] | None) -> Tensor:
        """Join the rows of all ranks, exactly.

        Args:
            values: own rows [N, ...].
            place: of the first of them among all, and the rows of all; see ``Batch``.

        Returns:
            All rows, [count, ...].
        """
        if place is None:
            return values
        first, count = place
        whole = values.new_zeros(count, *values.shape[1:])
        whole[first : first + len(values)] = values
        if whole.dtype != torch.bool:
            return _reduce(whole)
        return _reduce(whole.byte()).bool()

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, where alone it runs.

        Raises:
            InterruptedRunError: on all ranks, if ``make`` raised it.
            LostRankError: on the others, if it raised something else.
        """
        if self.alone:
            return make()
        made: list[Any] = [None, None]
        try:
            if self.first:
                made[0] = make()
        except InterruptedRunError as error:
            made[1] = str(error)
        with _noticing():
            dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        result, interrupted = made
        if interrupted is not None:
            raise InterruptedRunError(interrupted)
        return result  # type: ignore[no-any-return]


def launched() -> Ranks:
    """What this process was started as, by torchrun or by rank 0; without them it is alone."""
    given = os.environ
    if not {"RANK", "WORLD_SIZE"} <= given.keys() or not {"MASTER_ADDR", PORT} & given.keys():
        return Ranks()
    return Ranks(int(given["RANK"]), int(given["WORLD_SIZE"]))


def present() -> Ranks:
    """The ranks of this process: those of torch.distributed's default group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def joined(
    rank: int, world: int, device: torch.device, store: Store | None = None
) -> Iterator[Ranks]:
    """Be one of several ranks, until the context ends.

    Args:
        rank: from 0.
        world: how many there are.
        device: of the network; ``cuda`` communicates by NCCL, the host always by Gloo.
        store: where the ranks meet; ``None`` is what torchrun's environment says.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _noticing():
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield present()
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over the ranks, whose gradient is again a sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _reduce(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradients[0])
        return total


def _reduce(values: Tensor) -> Tensor:
    with _noticing():
        dist.all_reduce(values)
    return values


@contextmanager
def _noticing() -> Iterator[None]:
    """Say what it means that a message fails.

    Raises:
        LostRankError: it did.
    """
    try:
        yield
    except RuntimeError as error:  # dist.DistError is one
        raise LostRankError(
            "another process of this run ended; the run goes on from its last checkpoint with the "
            "same command"
        ) from error
