"""Square (Andriushchenko et al., 2020, arXiv:1912.00049), as AutoAttack runs it.

Random search with squares that shrink at fixed numbers of queries; a square is kept where it lowers
the margin or breaks the example. The reference code draws one square for all images of a batch;
here every image has its own, so that its path does not depend on its neighbours.

Points are flat, [n, C * H * W]; a query reads and writes the pixels of its squares alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.evaluation.attacks import Family, check_positive
from ablation.evaluation.autoattack import Square
from ablation.evaluation.fast.hunt import Examples, FastAttack, Hunt, Streams
from ablation.numerics.functional import lp_norm, margin, per_sample
from ablation.types import Norm

SHARE = 0.8
"""Share of the image that the first squares cover."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which it is halved."""
BLOCK = 100
"""Queries whose random numbers are drawn at once."""


def share(query: int) -> float:
    """Return the share of the image that the square of a query covers; the first is query 0."""
    return SHARE * 0.5 ** sum(query > end for end in HALVED_AFTER)


def side(query: int, height: int, width: int, norm: Norm) -> int:
    """Return the side of the square of a query: in L2 odd, and at least 3 where that fits."""
    wanted = round(math.sqrt(share(query) * height * width))
    if norm == "l2":
        wanted = max(wanted, 3)
        wanted += 1 - wanted % 2
    return min(max(wanted, 1), height, width)


@dataclass
class _Draws:
    """Random numbers of a query for the examples that are left: places and signs."""

    numbers: Tensor

    def place(self, which: int, room: int) -> Tensor:
        """Turn a column into integers below ``room``, or 0 without room, [n].

        As in the reference, a square thus reaches the last row and column only if it is as large
        as the image; elsewhere they keep what they started with.
        """
        return (self.numbers[:, which] * room).long()

    def signs(self, first: int, channels: int, dtype: torch.dtype) -> Tensor:
        """Turn columns into signs, [n, channels]."""
        return torch.where(self.numbers[:, first : first + channels] < 0.5, -1.0, 1.0).to(dtype)


def draws(hunt: Hunt, streams: Streams, queries: int, count: int) -> Iterator[_Draws]:
    """Yield ``count`` random numbers for each query and example left.

    Args:
        hunt: what is left.
        streams: of the examples.
        queries: how many times.
        count: numbers for one query of one example.
    """
    for begun in range(0, queries, BLOCK):
        left = hunt.left
        block = streams.uniform(left, min(BLOCK, queries - begun), count)
        for query in range(block.shape[1]):
            if len(hunt.left) < len(left):
                block, left = block[torch.isin(left, hunt.left)], hunt.left
            yield _Draws(block[:, query])


def window(row: Tensor, column: Tensor, length: int, width: int) -> Tensor:
    """Return the flat indices of squares with these top left corners [n], [n, length^2]."""
    along = torch.arange(length, device=row.device)
    square = (along[:, None] * width + along).flatten()
    return (row * width + column)[:, None] + square


@dataclass
class _Walk(Examples):
    """Where the examples that are left are: flat points [n, P] and their margins [n]."""

    point: Tensor
    gap: Tensor


def search_linf(hunt: Hunt, eps: float, queries: int, streams: Streams) -> None:
    """Search from vertical stripes; a square moves all its pixels to one corner of the ball.

    Args:
        hunt: what is left; broken examples leave it.
        eps: radius in pixels.
        queries: forwards after that of the start.
        streams: of the examples.
    """
    channels, height, width = hunt.x.shape[1:]
    stripes = streams.uniform(hunt.left, channels, 1, width) < 0.5
    walk = _enter(hunt, (hunt.x + torch.where(stripes, -eps, eps).to(hunt.x.dtype)).clamp(0, 1))
    planes = torch.arange(channels, device=hunt.x.device)[:, None] * (height * width)
    for query, drawn in enumerate(draws(hunt, streams, queries, 2 + channels)):
        length = side(query, height, width, "linf")
        row, column = drawn.place(0, height - length), drawn.place(1, width - length)
        where = (planes + window(row, column, length, width)[:, None]).flatten(1)
        signs = eps * drawn.signs(2, channels, hunt.x.dtype)
        corner = hunt.x.flatten(1).gather(1, where) + signs.repeat_interleave(length**2, 1)
        before, after = walk.point.gather(1, where), corner.clamp(0, 1)
        walk.point.scatter_(1, where, after)
        kept, gap, stay = _ask(hunt, walk.point, walk.gap)
        if not len(hunt.left):
            return
        walk.point.scatter_(1, where, torch.where(kept[:, None], after, before))
        walk.gap = gap
        if stay is not None:
            walk = walk.keep(stay)


def search_l2(hunt: Hunt, eps: float, queries: int, streams: Streams) -> None:
    """Search from a mosaic; a query moves mass from one window to another, in a bump's shape.

    Args:
        hunt: what is left; broken examples leave it.
        eps: radius in pixels.
        queries: forwards after that of the start.
        streams: of the examples.
    """
    channels, height, width = hunt.x.shape[1:]
    walk = _enter(hunt, _scaled(hunt.x, mosaic(hunt, streams), eps))
    for query, drawn in enumerate(draws(hunt, streams, queries, 5 + channels)):
        length = side(query, height, width, "l2")
        rows, columns = height - length, width - length
        to = window(drawn.place(0, rows), drawn.place(1, columns), length, width)
        off = window(drawn.place(2, rows), drawn.place(3, columns), length, width)
        shape = bump(length).to(hunt.x)
        shapes = torch.stack([shape.T, shape]).flatten(1)[drawn.place(4, 2)]
        fresh = shapes[:, None] * drawn.signs(5, channels, hunt.x.dtype)[:, :, None]
        delta = (walk.point - hunt.x.flatten(1)).view(len(to), channels, -1)
        ahead = _scaled(hunt.x, shift(delta, to, off, fresh, eps).view_as(hunt.x), eps).flatten(1)
        kept, gap, stay = _ask(hunt, ahead, walk.gap)
        if not len(hunt.left):
            return
        walk = _Walk(torch.where(kept[:, None], ahead, walk.point), gap)
        if stay is not None:
            walk = walk.keep(stay)


def _enter(hunt: Hunt, point: Tensor) -> _Walk:
    """Test the first points [n, C, H, W]."""
    gap = torch.full_like(point[:, 0, 0, 0], torch.inf)
    _, gap, stay = _ask(hunt, point.flatten(1), gap)
    walk = _Walk(point.flatten(1), gap)
    return walk if stay is None else walk.keep(stay)


def _ask(hunt: Hunt, point: Tensor, gap: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Query flat points [n, P] beside the least margins so far [n].

    Returns:
        Masks [n] of the points to keep, the margins then, and who stays; see ``Hunt.settle``.
    """
    images = point.view_as(hunt.x)
    z = hunt.logits(images)
    ahead = margin(z, hunt.y)
    stay = hunt.settle(ahead < 0, z, images)
    kept = (ahead < gap) | (ahead <= 0)
    return kept, torch.where(kept, ahead, gap), stay


def _scaled(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Move images [n, C, H, W] along ``delta`` by ``eps``, then clamp them to [0, 1]."""
    length = per_sample(lp_norm(delta, "l2") + 1e-12, x)
    return (x + eps * delta / length).clamp(0, 1)


def shift(delta: Tensor, to: Tensor, off: Tensor, fresh: Tensor, eps: float) -> Tensor:
    """Empty the windows ``off``; put their mass and what eps leaves over into ``to``.

    Args:
        delta: perturbations [n, C, H * W].
        to: flat indices of the windows that are filled, [n, s^2].
        off: of those that are emptied.
        fresh: bumps that are added to what is in ``to``, [n, C, s^2].
        eps: radius in pixels.
    """
    filled, emptied = to[:, None].expand_as(fresh), off[:, None].expand_as(fresh)
    inside = torch.zeros_like(delta[:, 0], dtype=torch.bool).scatter(1, to, True)
    mass = (delta * inside.scatter(1, off, True)[:, None]).square().sum(2, keepdim=True)
    spare = (eps**2 - delta.square().sum((1, 2), keepdim=True)).clamp_min(0) / delta.shape[1]
    new = fresh + _unit(delta.gather(2, filled))
    new = _unit(new) * (spare + mass).sqrt()
    return delta.scatter(2, emptied, 0.0).scatter(2, filled, new)


def _unit(window: Tensor) -> Tensor:
    """Scale the last dimension to length 1."""
    length: Tensor = torch.linalg.vector_norm(window, dim=-1, keepdim=True)
    return window / (length + 1e-12)


def mosaic(hunt: Hunt, streams: Streams) -> Tensor:
    """Tile the images that are left with bumps of random signs and directions, [n, C, H, W]."""
    n, channels, height, width = hunt.x.shape
    length = max(min(height, width) // 5, 1)
    tall, wide = height // length, width // length
    drawn = streams.uniform(hunt.left, tall, wide, channels + 1)
    shape = bump(length).to(hunt.x)
    shapes = torch.stack([shape.T, shape])[(drawn[..., 0] < 0.5).long()]  # [n, tall, wide, s, s]
    signs = torch.where(drawn[..., 1:] < 0.5, -1.0, 1.0).to(hunt.x.dtype).permute(0, 3, 1, 2)
    tiles = shapes[:, None] * signs[..., None, None]  # [n, C, tall, wide, s, s]
    size = (tall * length, wide * length)
    tiled = tiles.transpose(3, 4).reshape(n, channels, *size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return F.pad(tiled, (left, width - size[1] - left, top, height - size[0] - top))


@cache
def bump(length: int) -> Tensor:
    """Build a square of two opposite bumps, one above the other, [length, length], of L2 norm 1."""
    above, below = length // 2, length - length // 2
    shape = torch.cat([_pyramid(above, length), -_pyramid(below, length)])
    return _whole_unit(shape)


def _pyramid(height: int, width: int) -> Tensor:
    """sum_{k >= r} 1 / (k + 1)^2 at a Chebyshev distance r from the centre, of L2 norm 1."""
    if height == 0:
        return torch.zeros(0, width)
    most = max(height, width) // 2 + 1
    terms = 1 / torch.arange(1, most + 1).square()
    tails = terms.flip(0).cumsum(0).flip(0)
    away = [(torch.arange(size) - size // 2).abs() for size in (height, width)]
    values = tails[torch.maximum(away[0][:, None], away[1])]
    return _whole_unit(values)


def _whole_unit(shape: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(shape)
    return shape / length


@dataclass(frozen=True)
class FastSquare(FastAttack):
    """Search at random with squares, without gradients; as ``Square``.

    Args:
        queries: forward passes per example, at most, after that of the start.
    """

    kind: ClassVar[str] = "fast_square"
    family: ClassVar[Family] = "black box"

    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(queries=self.queries)

    def _hunt(self, hunt: Hunt, eps: float, norm: Norm, streams: Streams) -> None:
        search = search_linf if norm == "linf" else search_l2
        search(hunt, eps, self.queries, streams)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        return self._facts(**Square(self.queries).describe(eps, classes))
