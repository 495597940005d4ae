"""On a GPU nothing mixes devices and no training step waits for it: on a pretended device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ablation.config.experiment import RuntimeConfig
from ablation.jobs.setup import numerics
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Crafted
from tests.support.device_steps import composing, on_device, stepped, stepped_for_real
from tests.support.options import COMPONENTS, completed, options, refused
from tests.support.parts import small_batch, small_net
from tests.support.pretended_cuda import pretending
from tests.support.sampling import some_pairs

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


@pytest.mark.parametrize(
    ("method", "component"), some_pairs(METHODS, ["none", *COMPONENTS], 5, first=1)
)
def test_a_step_mixes_no_devices_and_does_not_wait(configs, method, component):
    if refused(method, component):
        pytest.skip("the method refuses it")
    config = configs(method, () if component == "none" else completed(component))
    done = stepped(config, small(config), batch(), "bf16")
    assert on_device(done.log)
    unknown = [w for w in done.waits if WAITS.get(w.place.partition(":")[0]) != w.reason]
    assert unknown == []
    assert len(done.waits) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [name for name in METHODS if name != "dyart"])
def test_no_step_waits_for_a_real_gpu(configs, method):
    config = configs(method)
    stepped_for_real(config, small(config), batch())


def test_masked_boundary_points_leave_no_wait(configs):
    needed = completed("component/closed_form_gradient=dyart")
    config = configs("dyart", [*needed, "component.closed_form_gradient.masked=true"])
    done = stepped(config, small(config), batch(), "bf16")
    assert done.waits == []
    assert on_device(done.log)


@pytest.mark.parametrize("penalty", ["igr=enabled", "emr=approximate", "emr=probe"])
def test_penalties_on_gradients_are_not_rounded_by_tf32(configs, penalty):
    """Neither in the forward, nor in the backward and double backward, which run later."""
    config = configs("at", [f"component/{penalty}"])
    name = penalty.partition("=")[0]
    net, own = small(config), batch()
    penalise = config.phases[-1].method.terms[name].term
    runtime = RuntimeConfig("cuda", "tf32", False, False, False)
    values = []
    for device in ("cpu", "cuda"):
        twin = copy.deepcopy(net)
        with pretending() as log, numerics(runtime):
            twin = twin.to(device).train()
            there = Batch(own.x.to(device), own.y.to(device), own.index.to(device))
            views = StepViews(twin, there, Clock(0, 0), torch.enable_grad)
            views.add("adv", Crafted(there.x))
            twin(there.x)
            assert log.rounded.total() == (0 if device == "cpu" else 3)
            log.clear()
            penalise(views).sum().backward()
            assert log.rounded == {}
            gradients = [p.grad for p in twin.parameters() if p.grad is not None]
            assert len(gradients) > 4
            values.append([each.cpu() for each in gradients])
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
