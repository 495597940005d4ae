"""On a GPU nothing mixes devices and no training step waits for it: on a pretended device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ablation.types import Batch
from tests.support.device_steps import composing, on_device, stepped
from tests.support.options import COMPONENTS, completed, options, refused
from tests.support.parts import small_batch, small_net

METHODS = options("method")
WAITS = {"crafters/boundary.py": "a size"}
"""Waits of a training step that are known: the boundary points that were found are a batch of
their own, whose size only the device knows."""


@pytest.fixture(scope="module")
def configs() -> Iterator[Any]:
    with composing("scale=smoke") as config:
        yield config


def small(config: Any) -> Any:
    """The small network in fp32, with the method's head."""
    head = config.phases[-1].method.head
    return small_net(head=head(6, 3) if head else None).float()


def batch() -> Batch:
    own = small_batch()
    return Batch(own.x.float(), own.y, own.index)


@pytest.mark.parametrize("component", ["none", *COMPONENTS])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_mixes_no_devices_and_does_not_wait(configs, method, component):
    if refused(method, component):
        pytest.skip("the method refuses it")
    config = configs(method, () if component == "none" else completed(component))
    done = stepped(config, small(config), batch(), "bf16")
    assert on_device(done.log)
    unknown = [w for w in done.waits if WAITS.get(w.place.partition(":")[0]) != w.reason]
    assert unknown == []
    assert len(done.waits) <= 1
