"""Whatever can be combined trains: every method and component on every built-in network."""

from __future__ import annotations

import pytest
import torch

from ablation.config.experiment import Config
from ablation.models import Net, build_model
from ablation.random import generator
from ablation.training.method import Phase
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from tests.support.configs import compose_config
from tests.support.options import COMPONENTS, completed, options

SMALL = {
    "mlp": ["model.spec.hidden=2", "model.spec.width=8"],
    "cnn": ["model.spec.width=4", "model.spec.dense=8"],
    "vgg16_bn": ["model.spec.convs=[1,1]", "model.spec.width=4"],
    "resnet18": ["model.spec.blocks=[1,1]", "model.spec.width=4"],
    "preact_resnet18": ["model.spec.blocks=[1,1]", "model.spec.width=4"],
    "wrn34_10": ["model.spec.depth=10", "model.spec.width=1"],
    "wrn34_10_emr": ["model.spec.depth=10", "model.spec.width=1"],
    "tiny_cnn": ["model.spec.width=4"],
}
"""Each architecture as small as it can be."""
MODELS, METHODS = options("model"), options("method")


def combined(method: str, model: str, component: str = "") -> Config:
    switched = completed(component) if component else []
    return compose_config(
        *(f"method={method}", f"model={model}", *SMALL[model], *switched),
        *("attack.steps=2", "attack.step_size=eps/2"),
    )


def two_steps(config: Config, phase: Phase) -> Net:
    """The network after two steps of a phase on random images, three classes."""
    net = build_model(
        config.model.spec,
        channels=1,
        size=16,
        classes=3,
        head=phase.method.head or config.model.head,
        mean=[0.5] if config.model.normalize else None,
        std=[0.5] if config.model.normalize else None,
        seed=0,
    )
    optimizer = config.optim.build(net, 0.01)
    for step in range(2):
        x = torch.rand(6, 1, 16, 16, generator=generator(0, "cross", step))
        batch = Batch(x, torch.arange(6) % 3, torch.arange(6))
        log, _ = train_step(phase.method, net, optimizer, batch, Clock(0, step), seed=0)
        assert log.loss.isfinite()
    return net


def test_every_model_has_a_small_form():
    assert sorted(SMALL) == MODELS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_every_model(method, model):
    config = combined(method, model)
    for phase in config.phases:
        net = two_steps(config, phase)
        assert all(value.isfinite().all() for value in net.state_dict().values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_trains_every_model(component, model):
    config = combined("trades", model, component)
    two_steps(config, config.phases[-1])
