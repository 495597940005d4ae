"""``runtime.compile=true``: one program of the network that trains, and one to search on."""

from __future__ import annotations

import pytest

from ablation.errors import DONE
from ablation.jobs import train as job
from tests.support.compiling import counted_programs
from tests.support.jobs import plain

METHODS = {
    "at": ("method=at",),
    "trades": ("method=trades",),
    "mart": ("method=mart", "component/awp=enabled"),
    "standard": ("method=standard",),
    "mwpb": ("method=trades", "component/margin_weighted_epsilon=trades"),
    "ema": ("method=at", "average=ema"),
    "phases": ("method=at", "component/burn_in=enabled", "component.burn_in.epochs=1"),
}
PARTIAL = ("data.train_size=100", "batch_size=32", "epochs=3", "evaluation=none")
"""The last batch of an epoch has four images."""


@pytest.mark.parametrize("name", METHODS)
def test_a_run_compiles_each_network_once(tmp_path, monkeypatch, name):
    container = plain(tmp_path, *METHODS[name], *PARTIAL, "runtime.compile=true")
    with counted_programs(monkeypatch) as programs:
        assert job.train(container) == DONE
    assert programs.frame_count == (1 if name == "standard" else 2)
