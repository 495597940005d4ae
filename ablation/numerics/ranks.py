"""Whether two numbers of each sample rise together: by ranks, and by pairs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's correlation of two numbers of each sample, [N] both; equal ones share a rank.

    NaN where one of the two is the same for all samples, or there are fewer than two.
    """
    if any(len(np.unique(each)) < 2 for each in (first, second)):
        return math.nan
    return float(np.corrcoef(_mean_ranks(first), _mean_ranks(second))[0, 1])


def _mean_ranks(values: Array) -> Array:
    """Ranks from 1; equal values have the mean of theirs. Importing scipy's takes seconds."""
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = np.cumsum(sizes) - (sizes - 1) / 2
    return means[place]


def pair_share(first: Array, second: Array) -> float:
    """Share of the pairs that ``first`` tells apart in which ``second`` has the same strict order.

    Exact: pairs with equal ``first`` do not count; of the others, those with equal ``second`` count
    as not in order. O(N log N) in time, O(N) in memory. NaN where no pair counts.

    Args:
        first: [N], decides which of a pair should be the larger one.
        second: [N].
    """
    count = len(first)
    _, sizes = np.unique(first, return_counts=True)
    apart = math.comb(count, 2) - sum(math.comb(int(size), 2) for size in sizes)
    if apart == 0:
        return math.nan
    # By falling ``second`` where ``first`` is equal: no such pair is ever in order.
    order = np.lexsort((-second, first))
    ranks = np.unique(second, return_inverse=True)[1][order] + 1
    return _ascents(ranks.tolist()) / apart


def _ascents(ranks: list[int]) -> int:
    """Count pairs i < j with ranks[i] < ranks[j], of ranks from 1 (a Fenwick tree of counts)."""
    tree = [0] * (len(ranks) + 1)
    found = 0
    for rank in ranks:
        below = rank - 1
        while below:
            found += tree[below]
            below &= below - 1
        while rank < len(tree):
            tree[rank] += 1
            rank += rank & -rank
    return found
