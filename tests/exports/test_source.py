"""``model.py``: every architecture and head gives its logits where the package is not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ablation.config.folders import conf_dir
from ablation.errors import InputError
from ablation.exports.export import architecture, write
from ablation.exports.source import Architecture, _module, standalone
from ablation.models import (
    Annealing,
    Hypersphere,
    LargeMargin,
    LinearHead,
    Net,
    TinyCnn,
    build_model,
)
from ablation.runs.state_dicts import encode
from tests.support.configs import compose_config
from tests.support.plugins import Installer, installing

MODELS = sorted({path.stem for path in (conf_dir() / "model").glob("*.yaml")} - {"torch_module"})
NARROW = {"mlp": 8, "wrn34_10": 1, "wrn34_10_emr": 1}
"""Units or channels, so that the weights are small; the layers are those of the model."""
HEADS: dict[str, Any] = {
    "linear": "linear",
    "large_margin": LargeMargin(4, Annealing()),
    "hypersphere": Hypersphere(scale=15.0),
    "projected": Hypersphere(weights="projected"),
}
LOOK = """
import sys
sys.modules["ablation"] = None  # an import of it fails
import importlib.util
from pathlib import Path
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    spec = importlib.util.spec_from_file_location(folder.name, folder / "model.py")
    module = sys.modules[folder.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sample = load_file(Path(sys.argv[2]) / folder.name)
    net = module.load()
    x = sample["x"].clone()  # a file's memory is not aligned, on which the bits depend
    with torch.no_grad():
        same = torch.equal(net(x), sample["logits"])
    print(folder.name, same, net.training, any(n.startswith("ablation.") for n in sys.modules))
"""


def small(name: str, normalize: bool) -> Architecture:
    """A model of ``conf/model`` with few channels."""
    config = compose_config("data=cifar10", f"model={name}", f"model.normalize={normalize}")
    spec = replace(config.model.spec, width=NARROW.get(name, 4))  # type: ignore[type-var]
    return replace(architecture(config, (3, 32, 32)), spec=spec)


def built(node: Architecture) -> Net:
    """The network, with BatchNorm statistics that are not those it began with."""
    mean, std = node.normalisation or (None, None)
    settings = {"channels": node.channels, "size": node.size, "classes": node.classes}
    net = build_model(node.spec, head=node.head, mean=mean, std=std, **settings)  # type: ignore[arg-type]
    if node.channels_last:
        net = net.to(memory_format=torch.channels_last)
    net(torch.rand(8, node.channels, *node.size))
    return net.eval()


def exported(node: Architecture, folder: Path, samples: Path) -> None:
    """Write an export, and images with their logits beside it."""
    net = built(node)
    source = standalone(node, folder.name, "0").text
    files = {"model.py": source.encode(), "model.safetensors": encode(net.state_dict(), {})}
    write(folder, files, net, (node.channels, *node.size))
    x = torch.rand(5, node.channels, *node.size)
    with torch.no_grad():
        logits = net(x)
    samples.mkdir(exist_ok=True)
    save_file({"x": x, "logits": logits}, samples / folder.name)


def test_every_model_and_head_gives_its_logits_where_the_package_is_not(tmp_path):
    for place, name in enumerate(MODELS):
        exported(small(name, place % 2 == 0), tmp_path / "out" / name, tmp_path / "samples")
    for name, head in HEADS.items():
        node = replace(small("tiny_cnn", True), head=head, channels_last=False)
        exported(node, tmp_path / "out" / f"head_{name}", tmp_path / "samples")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOOK, str(tmp_path / "out"), str(tmp_path / "samples")],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = sorted([*MODELS, *(f"head_{name}" for name in HEADS)])
    assert done.stdout.splitlines() == [f"{name} True False False" for name in names]


def test_only_what_the_network_uses_is_there():
    text = standalone(small("tiny_cnn", False), "tiny", "0").text
    assert "class TinyCnn" in text
    assert "class LinearHead" in text
    for absent in (
        "class Cnn:",
        "Hypersphere",
        "loss_logits(self",
        "def output",
        "import ablation",
    ):
        assert absent not in text
    assert "def init" not in standalone(small("wrn34_10", False), "wrn", "0").text
    compile(text, "model.py", "exec")


def test_another_network_is_refused_and_nothing_is_left(tmp_path):
    node = small("tiny_cnn", False)
    net = built(node)
    source = standalone(node, "x", "0").text
    for wrong in (
        source.replace("x.mean((2, 3))", "x.amax((2, 3))"),
        source.replace("x.mean", "y"),
    ):
        assert wrong != source
        files = {"model.py": wrong.encode(), "model.safetensors": encode(net.state_dict(), {})}
        with pytest.raises(InputError, match=r"model.py is not the network of the run"):
            write(tmp_path / "out", files, net, (3, 32, 32))
        assert list(tmp_path.iterdir()) == []


def test_a_head_class_is_named_as_it_is():
    node = replace(small("tiny_cnn", False), head=LinearHead, spec=TinyCnn(4))
    text = standalone(node, "x", "0").text
    assert "head = LinearHead(features=body.features, classes=10)" in text


PARTS = {
    "layers.py": """from torch import Tensor, nn

GAIN = 2.0


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return GAIN * x
""",
    "nets.py": """from dataclasses import dataclass

from torch import nn
from yaml import safe_dump

from ablation.models import Body, Size

from .layers import Scaled


@dataclass(frozen=True)
class Wide:
    width: int = 3

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        safe_dump(self.width)
        pixels = channels * size[0] * size[1]
        layers = {"scaled": Scaled(), "flat": nn.Flatten(), "fc": nn.Linear(pixels, self.width)}
        return Body(layers, self.width)
""",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    with installing(tmp_path / "site", monkeypatch) as installer:
        yield installer


def of_plugin(install: Installer, files: dict[str, str]) -> Architecture:
    """An architecture that a plug-in has."""
    install("lab-parts", files)
    _module.cache_clear()
    spec = importlib.import_module("lab_parts.nets").Wide()
    return replace(small("tiny_cnn", False), spec=spec)


def test_a_network_of_a_plugin_gives_its_logits_where_the_plugin_is_not(install, tmp_path):
    node = of_plugin(install, PARTS)
    exported(node, tmp_path / "out" / "wide", tmp_path / "samples")
    source = standalone(node, "wide", "0")
    assert source.needs == "torch, safetensors and yaml"
    assert "MIT AND LicenseRef-lab-parts (this file" in source.text
    assert "lab_parts" not in source.text
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOOK, str(tmp_path / "out"), str(tmp_path / "samples")],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["wide True False False"], done.stderr


WHOLE = "from . import layers\nScaled = layers.Scaled"
INSIDE = "        from lab_parts.layers import GAIN\n        safe_dump"
TWICE = "class LinearHead(Scaled):\n    pass\n\n\n@dataclass"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "from .layers import Scaled",
            "from . import layers\nScaled = layers.Scaled",
            "the module",
        ),
        ("        safe_dump", INSIDE, "inside a definition"),
        ("@dataclass", TWICE, "both define LinearHead"),
    ],
    ids=["a module", "inside", "twice"],
)
def test_what_one_file_cannot_hold_is_refused(install, before, after, message):
    text = PARTS["nets.py"].replace(before, after)
    if after == TWICE:
        text = text.replace('"scaled": Scaled()', '"scaled": LinearHead()')
    node = of_plugin(install, PARTS | {"nets.py": text})
    with pytest.raises(InputError, match=message):
        standalone(node, "x", "0")
