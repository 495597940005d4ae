"""Which library multiplies fp32 matrices on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

SHAPES = ((100, 1024, 784), (128, 1024, 1024), (1000, 10, 1024), (7, 33, 65))
"""Rows, columns and inner size of the products that are tried."""


@contextmanager
def fastest_exact_matmul() -> Iterator[None]:
    """Let oneDNN multiply where it does so in full fp32: MKL is half as fast on AMD processors.

    torch hands fp32 products to oneDNN only with leave to round their inputs to bf16. Processors
    without matrix units make no use of that leave; whether this one does is tried, not assumed.
    """
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(matmul, "fp32_precision"):  # torch before 2.9
        yield
        return
    saved = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        if not _exact():
            matmul.fp32_precision = saved
        yield
    finally:
        matmul.fp32_precision = saved


@cache
def _exact() -> bool:
    """Are products as accurate as fp32 allows? bf16 inputs would err by 1e-3."""
    rng = torch.Generator().manual_seed(0)
    for rows, columns, inner in SHAPES:
        a = torch.randn(rows, inner, generator=rng)
        b = torch.randn(inner, columns, generator=rng)
        exact = a.double() @ b.double()
        if (a @ b - exact).norm() > 1e-5 * exact.norm():
            return False
    return True
