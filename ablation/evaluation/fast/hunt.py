"""What the fast attacks share: the examples still unbroken, their points and random streams.

Shapes: ``n`` examples of ``N`` are left, points [n, C, H, W], logits [n, K].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ablation.evaluation.attacks import AttackBase, Predict
from ablation.numerics.functional import margin, without_true
from ablation.random import generator, key
from ablation.types import Norm

Search = Literal["fp32", "bf16"]
"""Precision of the passes that look for points; the network's own passes judge them."""

SURE = 1e-5
"""Margin below 0, in shares of the largest logit, that no other batch size rounds away again."""


@dataclass(frozen=True, kw_only=True)
class FastAttack(AttackBase):
    """Hold what all fast attacks have; a subclass says how it hunts.

    Args:
        search: precision of the search; ``bf16`` finds points at half the cost, or misses them.
            Points are judged in fp32 either way.
    """

    search: Search = "fp32"

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` gives the seeds."""
        streams = [key(rng.initial_seed(), "example", i) for i in range(len(x))]
        return self.hunt(predict, predict, x, y, eps, norm, streams)

    @torch.no_grad()
    def hunt(
        self,
        predict: Predict,
        searched: Predict,
        x: Tensor,
        y: Tensor,
        eps: float,
        norm: Norm,
        streams: Sequence[int],
    ) -> Tensor:
        """Search as ``Frugal`` says."""
        hunt = Hunt(predict, searched, self.search, x, y)
        self._hunt(hunt, eps, norm, Streams(streams, self.kind))
        return hunt.points

    def _hunt(self, hunt: Hunt, eps: float, norm: Norm, streams: Streams) -> None:
        raise NotImplementedError

    def _facts(self, **facts: Any) -> dict[str, Any]:
        """Say in an entry's parameters that the code is ours, and how it searched."""
        return {**facts, "implementation": "fast", "search": self.search}


class Hunt:
    """The examples still to be broken, ``x`` and ``y``, and the best ``points`` of all [N, ...].

    Args:
        predict: the network, which judges.
        searched: the network to search on: the same function, perhaps cheaper.
        search: precision of the search.
        x: images [N, C, H, W].
        y: labels [N].
    """

    def __init__(
        self, predict: Predict, searched: Predict, search: Search, x: Tensor, y: Tensor
    ) -> None:
        self.points, self.x, self.y = x.clone(), x, y
        self.left = torch.arange(len(x), device=x.device)
        self._predict, self._searched = predict, searched
        self._judges = search == "fp32" and searched is predict
        self._precision: Callable[[], contextlib.AbstractContextManager[object]]
        self._precision = contextlib.nullcontext
        if search == "bf16":
            self._precision = lambda: torch.autocast(x.device.type, dtype=torch.bfloat16)

    def logits(self, points: Tensor) -> Tensor:
        """Pass points through the network that is searched."""
        with self._precision():
            z = self._searched(points)
        return z.to(points.dtype)

    def linearise(
        self, points: Tensor, value: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """Return logits, a value per example of them [n], and what computes its gradient [n, ...].

        The caller may find that nobody is left and no gradient is needed.
        """
        points = points.detach().requires_grad_(True)
        with torch.enable_grad():
            z = self.logits(points)
            values = value(z)
            total = values.sum()

        def gradient() -> Tensor:
            return torch.autograd.grad(total, points)[0]

        return z.detach(), values.detach(), gradient

    def rivals(self, most: int) -> Tensor:
        """Return the wrong classes of all that are left by clean logits, highest first, [n, T]."""
        z = without_true(self.logits(self.x), self.y)
        return z.topk(min(most, z.shape[1] - 1), 1).indices

    def settle(self, suspects: Tensor, z: Tensor, points: Tensor) -> Tensor | None:
        """Judge points that look broken; what is broken for sure leaves.

        A point that the network itself classifies correctly is none, and its example stays. One
        that is wrong by a hair is kept, and its example stays, too: another batch size may round
        it to the right side.

        Args:
            suspects: mask [n] of points that the search takes to be misclassified.
            z: logits of the search, [n, K].
            points: within the ball, [n, ...].

        Returns:
            Mask [n] of the examples that stay; ``None`` if all do.
        """
        if not suspects.any():
            return None
        rows = suspects.nonzero().squeeze(1)
        found, labels = points.detach()[rows], self.y[rows]
        judged = z[rows] if self._judges else self._predict(found)
        wrong = judged.argmax(1) != labels
        self.points[self.left[rows[wrong]]] = found[wrong]
        sure = margin(judged, labels) < -SURE * judged.abs().amax(1)
        if not sure.any():
            return None
        stay = torch.ones_like(suspects)
        stay[rows[sure]] = False
        self.x, self.y, self.left = self.x[stay], self.y[stay], self.left[stay]
        return stay


@dataclass
class Examples:
    """Tensors with a row per example that is left."""

    def keep(self, stay: Tensor) -> Self:
        """Select rows by a mask [n]."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {k: v[stay] if isinstance(v, Tensor) else v for k, v in held.items()}
        return replace(self, **kept)


class Streams:
    """A generator per example: what one draws does not depend on which others are left.

    Args:
        seeds: one per example.
        name: of what draws.
    """

    def __init__(self, seeds: Sequence[int], name: str) -> None:
        self._all = [generator(seed, name) for seed in seeds]

    def uniform(self, left: Tensor, *shape: int) -> Tensor:
        """Draw from [0, 1) for the examples with these numbers, [n, *shape], on their device."""
        return self._draw(torch.rand, left, shape)

    def normal(self, left: Tensor, *shape: int) -> Tensor:
        """Draw from the standard normal distribution, as ``uniform``."""
        return self._draw(torch.randn, left, shape)

    def _draw(self, draw: Callable[..., Tensor], left: Tensor, shape: Sequence[int]) -> Tensor:
        rows = [draw(shape, generator=self._all[i]) for i in left.tolist()]
        return torch.stack(rows).to(left.device)
