"""A batch in several parts, one after the other: less memory, and the same step up to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ablation.errors import InputError, out_of_memory
from ablation.numerics.modes import BatchNorm
from ablation.output import warn
from ablation.ranks import Ranks, present
from ablation.text import first_line
from ablation.training.memory import parts_of
from ablation.training.method import Method
from ablation.types import Batch, Couples, Remembers

Accumulate = int | Literal["auto"]
"""Parts of a batch; ``auto``, as many as memory asks for."""


def couplings(net: nn.Module, methods: Sequence[Method]) -> Iterator[str]:
    """Say why a batch cannot be taken in parts, one line each; nothing if it can."""
    if any(isinstance(module, BatchNorm) for module in net.modules()):
        yield "BatchNorm in the network would take its statistics of a part of the batch"
    parts = [part for method in methods for part in parts_of(method)]
    for name in dict.fromkeys(
        type(part).__name__ for part in parts if isinstance(part, Couples) and part.couples
    ):
        yield f"{name} looks at all samples of the batch at once"
    for name in dict.fromkeys(type(part).__name__ for part in parts if isinstance(part, Remembers)):
        yield f"{name} remembers the whole batch"


@dataclass
class MicroBatches:
    """How many parts a batch is taken in.

    Attributes:
        number: of parts; a batch with fewer images has one of each.
        grows: whether there may be more, where memory runs out.
    """

    number: int = 1
    grows: bool = False

    @classmethod
    def of(cls, asked: Accumulate, net: nn.Module, methods: Sequence[Method]) -> MicroBatches:
        """The parts for a run.

        Raises:
            InputError: a number is asked for, and batches cannot be taken in parts.
        """
        reasons = list(couplings(net, methods))
        if asked == "auto":
            return cls(1, grows=not reasons and present().alone)
        if asked > 1 and reasons:
            raise InputError(f"runtime.accumulate={asked}: {reasons[0]}; set it to 1")
        return cls(asked)

    def split(self, batch: Batch) -> list[Batch]:
        """The parts of a batch: contiguous, as even as can be."""
        size = len(batch.y)
        number = min(self.number, size)
        if number < 2:
            return [batch]
        rows = [Ranks(part, number).rows(size) for part in range(number)]
        return [
            Batch(batch.x[own], batch.y[own], batch.index[own], (own.start, size)) for own in rows
        ]

    def grow(self, error: Exception, batch: Batch) -> bool:
        """After an error, say whether to try again: in twice as many parts, if memory ran out."""
        if not (self.grows and out_of_memory(error)) or self.number >= len(batch.y):
            return False
        self.number *= 2
        torch.cuda.empty_cache()
        warn(
            f"out of memory ({first_line(error)}): each batch is now taken in {self.number} parts, "
            f"one after the other; runtime.accumulate={self.number} begins so"
        )
        return True


class _Known(torch.autograd.Function):
    """A loss whose gradient with respect to the parameters is known."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (slope,) = slopes
        return (None, None, *(each if each is None else slope * each for each in ctx.gradients))


def summed(
    net: nn.Module, losses: Iterator[tuple[Tensor, dict[str, Tensor]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up the losses of parts of a batch, each differentiated before the next is computed.

    Args:
        net: whose parameters are differentiated with respect to.
        losses: of the parts, with their terms; scalars.

    Returns:
        The total, which has the gradient of the sum, and the sum of each term, detached.
    """
    parameters = [each for each in net.parameters() if each.requires_grad]
    gradients: list[Tensor | None] = [None] * len(parameters)
    total, terms = parameters[0].new_zeros(()), dict[str, Tensor]()
    for loss, own in losses:
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [
            one if other is None else other if one is None else one + other
            for one, other in zip(gradients, found, strict=True)
        ]
        total = total + loss.detach()
        for name, term in own.items():
            terms[name] = terms[name] + term.detach() if name in terms else term.detach()
    known: Tensor = _Known.apply(total, gradients, *parameters)
    return known, terms
