"""Tests of many cases: a part is always run, all of them where slow tests are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def some_of(cases: Iterable[Any], share: int) -> list[Any]:
    """Of the cases of one parameter one in ``share`` as it is, the others marked as slow."""
    return [
        pytest.param(case, marks=pytest.mark.slow if index % share else ())
        for index, case in enumerate(cases)
    ]


def some_pairs(
    rows: Sequence[str], columns: Sequence[str], share: int, first: int = 0
) -> list[Any]:
    """Pairs for two parameters, of which one in ``share`` is not marked as slow.

    They lie on diagonals, so that every row and every column is among them.

    Args:
        rows: at least ``share``.
        columns: at least ``share``.
        share: how many pairs there are for each that always runs.
        first: below ``share``; other tests of the same pairs may begin elsewhere.
    """
    assert first < share <= min(len(rows), len(columns))
    return [
        pytest.param(
            *(row, column),
            marks=pytest.mark.slow if (x + y) % share != first else (),
            id=f"{column}-{row}",
        )
        for x, row in enumerate(rows)
        for y, column in enumerate(columns)
    ]
