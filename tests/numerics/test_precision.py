"""The library that multiplies matrices: faster, and no less exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ablation.numerics import precision
from ablation.numerics.precision import exact_arithmetic, fastest_exact_matmul, full_precision

backend = getattr(torch.backends.mkldnn, "matmul", None)
needs_switch = pytest.mark.skipif(
    not hasattr(backend, "fp32_precision"), reason="torch before 2.9 has no such switch"
)


@pytest.mark.parametrize("rows", [1, 16, 100, 1000])
def test_products_are_as_exact_as_fp32(rows: int) -> None:
    rng = torch.Generator().manual_seed(rows)
    a, b = torch.randn(rows, 300, generator=rng), torch.randn(300, 200, generator=rng)
    exact = a.double() @ b.double()
    with fastest_exact_matmul():
        assert (a @ b - exact).norm() < 1e-6 * exact.norm()


@needs_switch
def test_the_switch_is_put_back_also_after_an_error() -> None:
    before = backend.fp32_precision  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError), fastest_exact_matmul():
        raise ZeroDivisionError
    assert backend.fp32_precision == before  # type: ignore[union-attr]


@needs_switch
def test_a_processor_that_would_round_keeps_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_exact", lambda: False)
    before = backend.fp32_precision  # type: ignore[union-attr]
    with fastest_exact_matmul():
        assert backend.fp32_precision == before  # type: ignore[union-attr]


def test_rounded_products_are_told_from_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision._exact.__wrapped__()
    exact = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float64:
            return exact(a, b)
        return exact(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not precision._exact.__wrapped__()


BACKENDS: Any = torch.backends


def of_a_gpu() -> list[str]:
    owners = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
    return [owner.fp32_precision for owner in owners]


@needs_switch
@pytest.mark.parametrize("globally", ["none", "tf32", "ieee"])
@pytest.mark.parametrize("context", [exact_arithmetic, full_precision])
def test_a_global_switch_lets_no_tf32_in(context: Any, globally: str) -> None:
    saved, own = BACKENDS.fp32_precision, of_a_gpu()
    try:
        BACKENDS.fp32_precision = globally
        before = of_a_gpu()
        with context(torch.device("cpu")):
            assert "tf32" not in of_a_gpu()
        assert [each == "tf32" for each in of_a_gpu()] == [each == "tf32" for each in before]
    finally:
        BACKENDS.fp32_precision = saved
    assert [each == "tf32" for each in of_a_gpu()] == [each == "tf32" for each in own]
    assert BACKENDS.cuda.matmul.allow_tf32 in (True, False)  # torch can tell


@needs_switch
def test_the_older_switches_agree_and_come_back() -> None:
    older: tuple[Any, ...] = (BACKENDS.cuda.matmul, BACKENDS.cudnn)
    saved = [owner.allow_tf32 for owner in older]
    try:
        for owner in older:
            owner.allow_tf32 = True
        with full_precision(torch.device("cpu")):
            assert [owner.allow_tf32 for owner in older] == [False, False]
        assert [owner.allow_tf32 for owner in older] == [True, True]
    finally:
        for owner, value in zip(older, saved, strict=True):
            owner.allow_tf32 = value
