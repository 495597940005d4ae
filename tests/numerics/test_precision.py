"""The library that multiplies matrices: faster, and no less exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from ablation.numerics import precision
from ablation.numerics.precision import (
    exact_arithmetic,
    fastest_exact_matmul,
    full_precision,
    precision_context,
    product_type,
)

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
CPU = torch.device("cpu")


def readings() -> dict[str, object]:
    """What torch says of every switch; ``None`` where switches contradict each other."""
    operations = {
        "products on a GPU": BACKENDS.cuda.matmul,
        "convolutions on a GPU": BACKENDS.cudnn.conv,
        "recurrent layers on a GPU": BACKENDS.cudnn.rnn,
        "products on a CPU": BACKENDS.mkldnn.matmul,
        "convolutions on a CPU": BACKENDS.mkldnn.conv,
    }
    found: dict[str, object] = {name: each.fp32_precision for name, each in operations.items()}
    older = {
        "allowed for products": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "allowed in cuDNN": lambda: BACKENDS.cudnn.allow_tf32,
        "of products": torch.get_float32_matmul_precision,
    }
    for name, read in older.items():
        found[name] = None
        with suppress(RuntimeError):
            found[name] = read()
    return found


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """Every switch back where it was, also after a test that fails."""
    before = BACKENDS.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for each in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv):
        each.fp32_precision = "none"
    BACKENDS.fp32_precision = before


@needs_switch
@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("later", ["none", "tf32", "ieee"])
@pytest.mark.parametrize("globally", ["none", "tf32", "ieee"])
@pytest.mark.parametrize("context", [exact_arithmetic, full_precision])
def test_a_global_switch_lets_no_tf32_in_and_reaches_what_it_did(
    context: Any, globally: str, later: str
) -> None:
    BACKENDS.fp32_precision = globally
    before = readings()
    assert globally != "tf32" or before["products on a GPU"] == "tf32"
    BACKENDS.fp32_precision = later
    expected = readings()
    BACKENDS.fp32_precision = globally
    with context(CPU):
        assert "tf32" not in readings().values()
    assert readings() == before
    BACKENDS.fp32_precision = later
    assert readings() == expected


@needs_switch
@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("context", [exact_arithmetic, full_precision])
def test_the_older_switches_agree_and_come_back(context: Any, precision: Any) -> None:
    torch.set_float32_matmul_precision(precision)
    before = readings()
    with context(CPU):
        within = readings()
        assert within["allowed for products"] is False
        assert within["allowed in cuDNN"] is False
        assert "tf32" not in within.values()
    assert readings() == before


def product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("context", [exact_arithmetic, full_precision])
def test_autocast_ends_where_exactness_begins(context: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product() == torch.bfloat16
        with context(CPU):
            assert product() == torch.float32
        assert product() == torch.bfloat16
    with context(CPU):
        assert product() == torch.float32


@pytest.mark.parametrize(
    ("kind", "rounded"), [("fp32", None), ("tf32", None), ("bf16", torch.bfloat16)]
)
def test_a_training_forward_has_the_precision_of_its_kind(kind: Any, rounded: Any) -> None:
    chosen = precision_context(kind, CPU)
    with chosen():
        assert product() == (rounded or torch.float32)
    assert product_type(chosen, CPU) == rounded


def test_no_kernel_is_searched_for_while_evaluating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS.cudnn, "benchmark", True)
    with exact_arithmetic(CPU):
        assert not BACKENDS.cudnn.benchmark
    assert BACKENDS.cudnn.benchmark


@needs_switch
def test_a_processor_that_does_not_round_takes_the_faster_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_exact", lambda: True)
    with fastest_exact_matmul():
        assert backend.fp32_precision == "bf16"  # type: ignore[union-attr]
