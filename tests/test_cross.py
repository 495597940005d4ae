"""Whatever can be combined trains, saves and resumes: methods, components, averages, networks.

Every method and every component variant meets every built-in network. A component gets the method
and the optimiser that are next in turn, and a model the average, so that the whole table need not
be run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from torch import Tensor

from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.config.folders import register_components
from ablation.config.validation import load
from ablation.data import DeviceLoader, ImageSet
from ablation.errors import ConfigError, InterruptedRunError
from ablation.models import build_model
from ablation.numerics.precision import precision_context
from ablation.runs.checkpoint import Snapshot
from ablation.runs.state_dicts import decode, encode, plain_copy
from ablation.training.engine import Engine, Recipe
from tests.support.options import COMPONENTS, CONF, completed, options

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
MODELS, METHODS, AVERAGES = options("model"), options("method"), options("average")
OPTIMS = options("optim")
SIZE, CLASSES, BATCH, STEPS = (8, 12), 3, 6, 2
"""Images are not square; an epoch, and every phase, is of two steps."""
QUICK = ("epochs=110", "attack.steps=2", "attack.step_size=eps/2")


class Configs:
    """Composed configs; Hydra is asked once for each method and component, and for each model."""

    def __init__(self) -> None:
        composer = Composer()
        self.plain = cache(lambda *overrides: composer.plain(list(overrides)))

    def __call__(self, model: str, *overrides: str) -> Config:
        """The config of these overrides on the small form of a model."""
        network = self.plain(f"model={model}", *SMALL[model])["model"]
        return load({**self.plain(*overrides, *QUICK), "model": network})


@pytest.fixture(scope="module")
def configs() -> Iterator[Configs]:
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield Configs()


@dataclass
class Shelf:
    """A store in memory; what is saved goes through the encodings of the files."""

    saved: Snapshot | None = None

    def save(self, snapshot: Snapshot) -> None:
        buffer = io.BytesIO()
        torch.save(plain_copy(snapshot.train, "train"), buffer)
        average = snapshot.average and decode(encode(snapshot.average, {}))[0]
        weights, _ = decode(encode(snapshot.weights, {}))
        train = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        self.saved = replace(snapshot, weights=weights, average=average, train=train)

    def load(self) -> Snapshot | None:
        return self.saved

    def keep_weights(self, *_: object) -> None: ...
    def rewind_metrics(self, epoch: int) -> None: ...
    def log(self, row: Mapping[str, Any]) -> None: ...


class Silent:
    """A reporter that counts the steps of its engine."""

    steps = 0

    def step(self, n_images: int) -> None:
        self.steps += 1

    def start(self, total_epochs: int, steps_per_epoch: int, done_steps: int) -> None: ...
    def epoch_end(self, row: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def images() -> ImageSet:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (STEPS * BATCH, 1, *SIZE), generator=g, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(STEPS * BATCH) % CLASSES)


def trained(config: Config, shelf: Shelf, stop_after: int | None = None) -> Snapshot:
    """Train every phase of a config for one epoch, or until ``stop_after`` steps of this call."""
    phases = [replace(phase, epochs=1) for phase in config.phases]
    net = build_model(
        config.model.spec,
        channels=1,
        size=SIZE,
        classes=CLASSES,
        head=phases[-1].method.head or config.model.head,
        mean=[0.5] if config.model.normalize else None,
        std=[0.5] if config.model.normalize else None,
        seed=0,
    )
    recipe = Recipe(
        phases=phases,
        optim=config.optim,
        schedule=config.schedule,
        lr=0.01,
        average=config.average,
        seed=0,
        precision=precision_context("fp32", torch.device("cpu")),
        classes=CLASSES,
        select_every=1,
    )
    data, reporter = images(), Silent()
    loader = DeviceLoader(data, torch.arange(len(data)), BATCH, seed=0, device="cpu")
    engine = Engine(
        net,
        loader,
        recipe,
        lambda net: {},
        shelf,
        reporter,
        lambda: reporter.steps == stop_after,
        lambda row, net: None,
    )
    if stop_after is None:
        engine.fit()
    else:
        with pytest.raises(InterruptedRunError):
            engine.fit()
    assert shelf.saved is not None
    return shelf.saved


def check(config: Config) -> None:
    """Train, and again with an interruption before the last step: the same bits."""
    whole, shelf = trained(config, Shelf()), Shelf()
    last = STEPS * len(config.phases)
    assert trained(config, shelf, last - 1).step == last - 1
    resumed = trained(config, shelf)
    assert resumed.step == whole.step == last
    assert all(value.isfinite().all() for value in whole.weights.values())
    theirs, ours = tensors(vars(whole)), tensors(vars(resumed))
    assert theirs.keys() == ours.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def tensors(value: Any, key: str = "") -> dict[str, Tensor]:
    """Every tensor in nested data by its place."""
    if isinstance(value, Tensor):
        return {key: value}
    entries = value.items() if isinstance(value, Mapping) else ()
    pairs = entries or (enumerate(value) if isinstance(value, (list, tuple)) else ())
    found = dict[str, Tensor]()
    for name, entry in pairs:
        found |= tensors(entry, f"{key}.{name}")
    return found


def in_turn(choices: list[str], start: int) -> Iterator[str]:
    """The choices from one of them on, each once."""
    return islice(cycle(choices), start % len(choices), start % len(choices) + len(choices))


def test_every_model_has_a_small_form():
    assert sorted(SMALL) == MODELS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_resumes_on_every_model(configs, method, model):
    average = next(in_turn(AVERAGES, MODELS.index(model)))
    check(configs(model, f"method={method}", f"average={average}"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_trains_and_resumes_on_every_model(configs, component, model):
    turn = COMPONENTS.index(component) + MODELS.index(model) % 2
    optim = OPTIMS[turn % len(OPTIMS)]
    for method in in_turn(METHODS, turn):
        try:
            config = configs(model, f"method={method}", f"optim={optim}", *completed(component))
        except ConfigError:  # it has nothing that the component could change
            continue
        return check(config)
    pytest.fail("no method takes it")
