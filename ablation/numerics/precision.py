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

Switch = tuple[Any, str, Any]
"""Whose it is, its name and its value."""

SHAPES = ((100, 1024, 784), (128, 1024, 1024), (1000, 10, 1024), (7, 33, 65))
"""Rows, columns and inner size of the matrix products that are tested for exactness."""
TF32: tuple[Switch, ...] = (
    (torch.backends.cuda.matmul, "allow_tf32", False),
    (torch.backends.cudnn, "allow_tf32", False),
)
"""The switches of TF32, and their values without it."""
FINER: tuple[Any, ...] = tuple(
    owner
    for owner in (
        torch.backends.cuda.matmul,
        getattr(torch.backends.cudnn, "conv", None),
        getattr(torch.backends.cudnn, "rnn", None),
    )
    if hasattr(owner, "fp32_precision")  # not in torch before 2.9
)
"""What a global ``torch.backends.fp32_precision`` reaches, whatever ``TF32`` says."""


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
        matmul.fp32_precision = saved


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
    """Multiply and convolve fp32 numbers on a GPU as they are."""
    saved = _values(TF32)
    _set([switch for switch in TF32 if switch[:2] in [known[:2] for known in saved]])
    left = [owner for owner in FINER if owner.fp32_precision == "tf32"]
    _set((owner, "fp32_precision", "ieee") for owner in left)
    try:
        yield
    finally:
        for owner in left:
            owner.fp32_precision = "none"
            if owner.fp32_precision != "tf32" or owner is not torch.backends.cuda.matmul:
                owner.fp32_precision = "tf32"  # cuDNN's own default, which "none" is not
        _set(saved)


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
    # set_float32_matmul_precision reaches CPUs through these; torch before 2.9 has them not.
    operations = [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv")]
    cpu = [(o, "fp32_precision", "ieee") for o in operations if hasattr(o, "fp32_precision")]
    benchmark = (torch.backends.cudnn, "benchmark", False)
    saved, saved_cpu = _values([benchmark]), _values(cpu)
    precision = None
    with suppress(RuntimeError):  # contradictory switches cannot be read as one
        precision = torch.get_float32_matmul_precision()
    try:
        with without_tf32():
            _set([benchmark, *cpu])
            with torch.autocast(device.type, enabled=False), fastest_exact_matmul():
                yield
    finally:
        _set(saved)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        _set(saved_cpu)


def _values(switches: Iterable[Switch]) -> list[Switch]:
    """Read the switches, but for those that torch refuses to read since others contradict them."""
    found = []
    for owner, name, _ in switches:
        with suppress(RuntimeError):
            found.append((owner, name, getattr(owner, name)))
    return found


def _set(switches: Iterable[Switch]) -> None:
    for owner, name, value in switches:
        setattr(owner, name, value)
