"""Every model on images of every form: it trains, or says why not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ablation.errors import InputError
from ablation.models import (
    Body,
    Cnn,
    Mlp,
    ModelSpec,
    PreActResNet,
    ResNet,
    TinyCnn,
    Vgg,
    WideResNet,
    build_model,
    overrun,
    refusal,
)

MODELS: dict[str, ModelSpec] = {
    "mlp": Mlp(hidden=1, width=4),
    "cnn": Cnn(width=2, dense=4),
    "vgg": Vgg(convs=(1, 1, 1, 1, 1), width=2),
    "resnet": ResNet(blocks=(1, 1, 1, 1), width=2),
    "preact_resnet": PreActResNet(blocks=(1, 1, 1, 1), width=2),
    "wide_resnet": WideResNet(depth=10, width=1),
    "wide_resnet_emr": WideResNet(depth=10, width=1, variant="emr"),
    "tiny_cnn": TinyCnn(width=2),
}
SIZES = [(24, 40), (40, 24), (8, 8), (28, 28), (64, 64), (33, 9), (3, 50)]
TOO_SMALL = {
    "cnn": {(3, 50)},
    "vgg": {(24, 40), (40, 24), (8, 8), (28, 28), (33, 9), (3, 50)},
    "resnet": {(3, 50)},
    "preact_resnet": {(3, 50)},
    "wide_resnet": {(3, 50)},
    "wide_resnet_emr": {(33, 9), (3, 50)},
    "tiny_cnn": {(3, 50)},
}
"""Height and width that an architecture refuses."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_on_every_form_of_image(name, size, channels):
    spec = MODELS[name]
    if size in TOO_SMALL.get(name, ()):
        message = refusal(spec, channels, size, 2)
        assert message is not None
        assert f"{size[1]}x{size[0]}" in message
        with pytest.raises(InputError):
            build_model(spec, channels=channels, size=size, classes=3)
        return
    assert refusal(spec, channels, size, 2) is None
    net = build_model(spec, channels=channels, size=size, classes=3)
    x = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    loss = net(x).square().sum()
    loss.backward()
    assert loss.isfinite()
    first = next(net.parameters())
    assert first.grad is not None
    assert first.grad.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (16, 24)])
def test_a_batch_of_one_is_refused_where_it_would_crash(name, size):
    spec = MODELS[name]
    if refusal(spec, 3, size, 2) is not None:
        return
    net = build_model(spec, channels=3, size=size, classes=3)
    try:
        net(torch.zeros(1, 3, *size))
    except ValueError:
        assert refusal(spec, 3, size, 1) == "BatchNorm cannot normalise a batch of a single image"
    else:
        assert refusal(spec, 3, size, 1) is None


def test_one_number_means_a_square():
    one, two = (build_model(Mlp(1, 4), channels=1, size=s, classes=2) for s in (6, (6, 6)))
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


@dataclass(frozen=True)
class Odd:
    """Somebody's architecture, which knows none of our errors."""

    depth: int

    def build(self, *, channels: int, size: tuple[int, int], classes: int) -> Body:
        if self.depth % 2 == 0:
            raise ValueError(f"depth={self.depth} must be odd")
        return Mlp(1, 4).build(channels=channels, size=size, classes=classes)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_value_that_an_architecture_refuses_is_the_reason(batch):
    assert refusal(Odd(4), 3, (8, 8), batch) == "depth=4 must be odd"
    assert refusal(Odd(5), 3, (8, 8), batch) is None
    assert overrun(Odd(4), 3, (8, 8)) is None


def test_a_layer_that_some_cpus_overrun():
    def layer(width: int) -> str | None:
        return overrun(ResNet(blocks=(1, 1, 1, 1), width=width), 3, (32, 32))

    assert layer(4) == "layers.stage2.0.shortcut.0"
    assert layer(1) == "layers.stage3.0.shortcut.0"
    assert layer(8) is None
    assert overrun(TinyCnn(width=2), 3, (32, 32)) is None
    assert overrun(Vgg(), 3, (8, 8)) is None
