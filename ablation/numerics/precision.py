"""Arithmetic precision: autocast, TF32, and the library of fp32 matrix products on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any, Literal

import torch

Precision = Callable[[], AbstractContextManager[object]]
"""Makes the context of one training forward."""

SHAPES = ((100, 1024, 784), (128, 1024, 1024), (1000, 10, 1024), (7, 33, 65))
"""Rows, columns and inner size of the matrix products that are tested for exactness."""


def _with_precision(backend: Any, *names: str) -> tuple[Any, ...]:
    """The operations of a backend that have a precision of their own; torch before 2.9 has none."""
    owners = (getattr(backend, name, None) for name in names)
    return tuple(owner for owner in owners if hasattr(owner, "fp32_precision"))


ALLOWING: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
"""Whose ``allow_tf32`` is off without TF32."""
CUDNN = _with_precision(torch.backends.cudnn, "conv", "rnn")
"""They start with a value of their own; all others follow ``torch.backends.fp32_precision``."""
CPU = _with_precision(torch.backends.mkldnn, "matmul", "conv", "rnn")
OPERATIONS = (*_with_precision(torch.backends.cuda, "matmul"), *CUDNN, *CPU)
"""What a global precision reaches, whatever ``allow_tf32`` says."""


@contextmanager
def fastest_exact_matmul() -> Iterator[None]:
    """Use oneDNN for matrix products on processors where it computes in full fp32.

    MKL is half as fast on AMD processors. torch hands fp32 products to oneDNN only if it may round
    their inputs to bf16. Processors without matrix units do not round them; whether this one does
    is tested, not assumed.
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
        _give_back([(matmul, saved)])


@cache
def _exact() -> bool:
    """Test that products are as accurate as fp32 allows; bf16 inputs would err by 1e-3."""
    rng = torch.Generator().manual_seed(0)
    for rows, columns, inner in SHAPES:
        a = torch.randn(rows, inner, generator=rng)
        b = torch.randn(inner, columns, generator=rng)
        exact = a.double() @ b.double()
        if (a @ b - exact).norm() > 1e-5 * exact.norm():
            return False
    return True


def precision_context(kind: Literal["fp32", "tf32", "bf16"], device: torch.device) -> Precision:
    """Choose the context of training forwards: autocast to bfloat16, or nothing."""
    if kind == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext


def product_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that a context rounds the factors of products to; ``None``: it does not."""
    with precision():
        enabled = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if enabled else None


@contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply and convolve fp32 numbers as they are."""
    saved = [(owner, owner.fp32_precision) for owner in OPERATIONS]
    allowing, matmul = [], None
    for owner in ALLOWING:
        with suppress(RuntimeError):  # contradictory switches cannot be read as one
            allowing.append((owner, owner.allow_tf32))
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    for owner, _ in allowing:
        owner.allow_tf32 = False
    for owner in OPERATIONS:
        if owner.fp32_precision == "tf32":
            owner.fp32_precision = "ieee"
    try:
        yield
    finally:
        for owner, allowed in allowing:
            owner.allow_tf32 = allowed
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        _give_back(saved)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in fp32 within a run of lower precision: neither autocast nor TF32."""
    with without_tf32(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute in plain fp32, without TF32 and autocast; every switch is restored afterwards.

    cuDNN's search for the fastest kernel is off too: robust examples leave a batch one by one, so
    shapes change all the time, each would be searched anew, and the choice would move verdicts.
    """
    benchmark = torch.backends.cudnn.benchmark
    try:
        with without_tf32():
            for owner in CPU:
                owner.fp32_precision = "ieee"
            torch.backends.cudnn.benchmark = False
            with torch.autocast(device.type, enabled=False), fastest_exact_matmul():
                yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _give_back(saved: Iterable[tuple[Any, str]]) -> None:
    """Restore precisions; one that was the global one's follows it again."""
    for owner, value in saved:
        owner.fp32_precision = "none"
        if owner.fp32_precision != value or owner in CUDNN:
            owner.fp32_precision = value
