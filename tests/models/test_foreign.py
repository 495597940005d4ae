"""Weights of others: networks written here under the names of the field give the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ablation.errors import InputError
from ablation.models import Net, PreActResNet, ResNet, Vgg, WideResNet, build_model
from ablation.models.foreign import translate
from ablation.runs.state_dicts import load_into
from tests.support import kuangliu
from tests.support.kuangliu import conv


class PreAct(nn.Module):
    """A block of preactresnet.py; ``wide`` names the shortcut as wideresnet.py does."""

    def __init__(self, inputs: int, outputs: int, stride: int, wide: bool = False) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        self.way = None
        if stride != 1 or inputs != outputs:
            path = conv(inputs, outputs, 1, stride)
            self.way = "convShortcut" if wide else "shortcut"
            self.add_module(self.way, path if wide else nn.Sequential(path))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        short = x if self.way is None else getattr(self, self.way)(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + short


class Stage(nn.Module):
    """wideresnet.py's NetworkBlock."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class KuangliuResNet(kuangliu.ResNet):
    spec = ResNet(blocks=(1, 2), width=4)
    size = 8

    def __init__(self) -> None:
        super().__init__((1, 2), width=4, classes=5)


class RicePreActResNet(nn.Module):
    spec = PreActResNet(blocks=(1, 2), width=4)
    size = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 4)
        self.layer1 = nn.Sequential(PreAct(4, 4, 1))
        self.layer2 = nn.Sequential(PreAct(4, 8, 2), PreAct(8, 8, 1))
        self.bn, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        out = F.relu(self.bn(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(out.mean((2, 3)))


class TradesWideResNet(nn.Module):
    spec = WideResNet(depth=10, width=1)
    size = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 16)
        self.block1 = Stage(PreAct(16, 16, 1, wide=True))
        self.sub_block1 = Stage(PreAct(16, 16, 1, wide=True))
        self.block2 = Stage(PreAct(16, 32, 2, wide=True))
        self.block3 = Stage(PreAct(32, 64, 2, wide=True))
        self.bn1, self.fc = nn.BatchNorm2d(64), nn.Linear(64, 5)

    def forward(self, x):
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))


class KuangliuVgg(nn.Module):
    spec = Vgg(convs=(1, 2), width=4)
    size = 8

    def __init__(self) -> None:
        super().__init__()

        def layers(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

        pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(
            *layers(3, 4), pool, *layers(4, 8), *layers(8, 8), pool, nn.AvgPool2d(1)
        )
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


FOREIGN: list[Any] = [KuangliuResNet, RicePreActResNet, TradesWideResNet, KuangliuVgg]


def trained(make: Any) -> nn.Module:
    """Random weights and statistics: no two layers are alike."""
    torch.manual_seed(0)
    net: nn.Module = make()
    for value in (*net.parameters(), *net.buffers()):
        if value.is_floating_point():
            value.data = 0.5 + torch.rand_like(value)
    return net.eval()


def ours(make: Any, **options: Any) -> Net:
    return build_model(
        make.spec, channels=3, size=(make.size, make.size), classes=5, **options
    ).eval()


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("wrapper", ["{}", "module.{}", "model.{}", "module.model.{}"])
def test_logits_are_those_of_the_foreign_network(make, wrapper):
    theirs, net = trained(make), ours(make)
    weights = {wrapper.format(name): value for name, value in theirs.state_dict().items()}
    load_into(net, translate(weights, net, make.spec), "weights")
    x = torch.rand(4, 3, make.size, make.size)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", FOREIGN)
def test_our_own_names_stay_and_counters_may_be_missing(make):
    net = ours(make)
    own = net.state_dict()
    assert translate(own, net, make.spec).keys() == own.keys()
    without = {
        name: value for name, value in trained(make).state_dict().items() if "tracked" not in name
    }
    load_into(net, translate(without, net, make.spec), "weights")


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("1.", ("0.mean", "0.std")),
        ("model.", ("mu", "sigma")),
        ("", ("normalize.mean", "normalize.std")),
    ],
)
def test_constants_of_a_normalisation_are_taken_over(prefix, names):
    make = KuangliuResNet
    theirs, mean, std = trained(make), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    weights = {prefix + name: value for name, value in theirs.state_dict().items()}
    weights |= dict(zip(names, (mean, std), strict=True))
    net = ours(make, mean=[0.5] * 3, std=[0.5] * 3)
    load_into(net, translate(weights, net, make.spec), "weights")
    x = torch.rand(4, 3, 8, 8)
    normal = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(normal), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"set model\.normalize=true"):
        translate(weights, ours(make), make.spec)


def test_what_does_not_fit_is_listed_by_name_and_shape():
    net = ours(KuangliuResNet)
    weights = {**trained(KuangliuResNet).state_dict(), "extra.weight": torch.zeros(2, 3)}
    del weights["linear.bias"]
    weights["linear.weight"] = torch.zeros(7, 8)
    with pytest.raises(InputError) as raised:
        load_into(net, translate(weights, net, KuangliuResNet.spec), "net.pt")
    for part in (
        "missing: head.linear.bias [5]",
        "unexpected: extra.weight [2, 3]",
        "head.linear.weight is [7, 8] there and [5, 8] in the model",
    ):
        assert part in str(raised.value)


def test_a_network_without_the_last_batchnorm_is_no_preact_resnet_of_rice_et_al():
    weights = trained(RicePreActResNet).state_dict()
    weights = {name: value for name, value in weights.items() if not name.startswith("bn.")}
    net = ours(RicePreActResNet)
    with pytest.raises(InputError, match=r"missing: body\.layers\.bn\.weight \[8\]"):
        load_into(net, translate(weights, net, RicePreActResNet.spec), "weights")
