"""Counts what torch.compile makes, with a backend that runs programs as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch


@contextmanager
def counted_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[torch._dynamo.testing.CompileCounter]:
    """A counter whose ``frame_count`` is the number of programs that were compiled."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=counter))
        yield counter
    torch._dynamo.reset()
