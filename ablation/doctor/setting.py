"""What every check is given: the device, the configs, the time; and a network that makes steps."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.config.validation import load
from ablation.data.digits import Digits
from ablation.doctor.lines import Figure, Line, failed, skipped
from ablation.jobs.setup import build_net_of, numerics
from ablation.models.folding import Folded
from ablation.numerics.compiled import compile_passes
from ablation.numerics.precision import precision_context, product_type
from ablation.random import generator
from ablation.training.memory import Memories, remembering
from ablation.training.searches import Searches
from ablation.training.step import StepLog, train_step
from ablation.types import Batch, Clock

Kind = Literal["fp32", "tf32", "bf16"]
CPU = torch.device("cpu")
LR = 0.01
LESSONS, LESSON = 120, 128
"""Steps that a pupil trains for, and the images of each."""
SMALL: Mapping[str, Sequence[str]] = {
    "mlp": ["model.spec.hidden=2", "model.spec.width=8"],
    "cnn": ["model.spec.width=4", "model.spec.dense=8"],
    "vgg16_bn": ["model.spec.convs=[1,1]", "model.spec.width=4"],
    "resnet18": ["model.spec.blocks=[1,1]", "model.spec.width=8"],
    "preact_resnet18": ["model.spec.blocks=[1,1]", "model.spec.width=8"],
    "wrn34_10": ["model.spec.depth=10", "model.spec.width=1"],
    "wrn34_10_emr": ["model.spec.depth=10", "model.spec.width=1"],
    "tiny_cnn": ["model.spec.width=4"],
}
"""Each of our architectures as small as it can be: of a strided 1x1 convolution of fewer than eight
channels, channels_last, the backward in torch 2.15 ends the process on CPUs with AVX2 alone."""
ATTACK = ("eps=8/255", "attack.step_size=2/255", "attack.steps=10", "attack.start=gaussian")
"""The training attack whose time is taken: the usual one, and that of ``reference.py``."""
LONG = "epochs=110"
"""So that parts which begin in a late epoch are at work in the last."""


class Configs:
    """Composed configs; Hydra is asked once for each choice of options.

    Needs an initialised ``GlobalHydra``.
    """

    def __init__(self) -> None:
        self._composer = Composer()

    def __call__(self, *overrides: str) -> Config:
        """The config of these overrides.

        Raises:
            ConfigError: they do not go together.
        """
        return load(self._composer.plain([*overrides, LONG]))

    def small(self, *overrides: str) -> Config:
        """The same on scikit-learn's digits, with a small network that has BatchNorm."""
        net = ("model=resnet18", "model.spec.blocks=[1,1]", "model.spec.width=8")
        return self("data=digits", *net, *overrides)

    def methods(self) -> list[str]:
        """Every method there is, those of plug-ins too."""
        return self._composer.options("method")


@dataclass(frozen=True)
class Pupil:
    """What was learned on the digits, so that attacks meet boundaries: never on a GPU.

    Attributes:
        weights: of the network of ``Configs.small``.
        images: of the test set, [360, 1, 8, 8], uint8, which it did not see.
        labels: theirs, [360].
    """

    weights: Mapping[str, Tensor]
    images: Tensor
    labels: Tensor

    def batch(self, n: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """The first test images."""
        x = (self.images[:n].double() / 255).to(device, dtype)
        return Batch(x, self.labels[:n].to(device), torch.arange(n).to(device))


@dataclass
class Setting:
    """What checks are made in.

    Attributes:
        device: that is examined.
        tiny: small networks and few rounds, as for a CPU.
        configs: what composes methods.
        until: when the present section has to end, of ``time.perf_counter``.
        facts: what is known of the machine; sections add to it.
    """

    device: torch.device
    tiny: bool
    configs: Configs
    until: float = math.inf
    facts: dict[str, Figure] = field(default_factory=dict)

    def full(self, model: str, *overrides: str) -> Config:
        """The config of a network, or of its small form, on images of the shape it is made for."""
        images = "data=mnist" if model == "mlp" else "data=cifar10"
        small = SMALL[model] if self.tiny else ()
        return self.configs(images, f"model={model}", *small, *ATTACK, *overrides)

    @cached_property
    def pupil(self) -> Pupil:
        """The trained network and its images; who asks first gets the time back."""
        begun = time.perf_counter()
        found = learned(self.configs)
        self.until += time.perf_counter() - begun
        return found

    def left(self) -> float:
        """Seconds of the present section."""
        return self.until - time.perf_counter()

    def lines(
        self, names: Iterable[str], examine: Callable[[str], Line], least: float = 0.0
    ) -> Iterator[Line]:
        """A line for each name: one that raises has failed, and the next is examined all the same.

        Args:
            names: of the lines.
            examine: makes the line of a name.
            least: seconds that one needs to begin; the rest is skipped.
        """
        for name in names:
            if self.left() <= least:
                yield skipped(name, "no time left for it")
                continue
            try:
                yield examine(name)
            except Exception as error:
                yield failed(name, error)
            self.free()

    def free(self) -> None:
        """Give back what a check held on a GPU."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


def extent_of(config: Config) -> tuple[int, tuple[int, int]]:
    """Channels and size of a config's images, without reading them."""
    extent = config.data.source.extent(config.data_root)
    assert extent is not None  # noqa: S101
    return extent.channels, (extent.size[0], extent.size[1])


def noise_batch(
    config: Config, n: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Batch:
    """So many images of noise in the shape of a config's; the same numbers on every device."""
    channels, size = extent_of(config)
    rng = generator(0, "doctor/batch")
    x = torch.rand((n, channels, *size), generator=rng, dtype=torch.float64)
    y = torch.randint(config.data.classes, (n,), generator=rng)
    x = x.to(device, dtype).contiguous(memory_format=torch.channels_last)
    return Batch(x, y.to(device), torch.arange(n).to(device))


class Trainee:
    """A network that makes training steps of a config, as the engine makes them.

    Args:
        config: its last phase gives the method.
        batch: of every step; its device and type are the network's.
        kind: precision of training forwards.
        searches: captured searches, or none.
        compiled: torch.compile the body and its folded copy.
        folded: attacks search on a copy without BatchNorm.
        weights: to begin with, where the network has a place for each; ``None``: random ones.
        lr: learning rate.
    """

    def __init__(
        self,
        config: Config,
        batch: Batch,
        kind: Kind = "fp32",
        searches: Searches | None = None,
        compiled: bool = False,
        folded: bool = True,
        weights: Mapping[str, Tensor] | None = None,
        lr: float = LR,
    ) -> None:
        device, phase = batch.x.device, config.phases[-1]
        channels, size = extent_of(config)
        self.net = build_net_of(config, channels, size, phase.method, device).to(batch.x.dtype)
        if weights is not None and weights.keys() == self.net.state_dict().keys():
            self.net.load_state_dict(weights)
        self.net.train()
        self.batch, self.method, self.searches = batch, phase.method, searches
        self._optimizer, self._clip = config.optim.build(self.net, lr), config.optim.clip
        rows = len(batch.y) if compiled else None
        self._folded = Folded(self.net, rows) if folded else None
        if rows is not None:
            compile_passes(self.net.body, rows, training=True)
        self._precision = precision_context(kind, device)
        self._memories = Memories(
            [self.method],
            n_train=len(batch.y),
            batch_size=len(batch.y),
            classes=config.data.classes,
            device=device,
        )
        self._last_epoch, self._phase = phase.counts_from + phase.epochs - 1, phase.name
        self._step = 0

    def step(self) -> StepLog:
        """Make the next step, in the last epoch of its phase."""
        clock = Clock(self._last_epoch, self._step, self._phase)
        log, views = train_step(
            self.method,
            self.net,
            self._optimizer,
            self.batch,
            clock,
            seed=0,
            precision=self._precision,
            clip=self._clip,
            folded=self._folded,
            searches=self.searches,
            memories=self._memories,
        )
        self._memories.commit(remembering(self.method), views)
        self._step += 1
        return log

    def make_copies(self) -> None:
        """Make the folded copies, which a run does once."""
        for low in {None, product_type(self._precision, self.batch.x.device)}:
            if self._folded is not None:
                self._folded.refresh(low)

    def gradient(self) -> Tensor:
        """Gradient of the parameters in one vector, float64, on the CPU."""
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        return vector(gradients)

    def weights(self) -> Tensor:
        """Parameters and buffers in one vector, float64, on the CPU."""
        return vector(list(self.net.state_dict().values()))


def learned(configs: Configs) -> Pupil:
    """Train by PGD-AT on the CPU for a few seconds."""
    train, test = Digits().load(Path())
    config = configs.small("method=at", "attack.steps=3", "attack.step_size=eps/2")
    x, y = train.images / 255, train.labels

    def lesson(number: int) -> Batch:
        rows = torch.randint(len(y), (LESSON,), generator=generator(0, "doctor/lesson", number))
        return Batch(x[rows], y[rows], rows)

    trainee = Trainee(config, lesson(0), lr=10 * LR)
    for number in range(LESSONS):
        trainee.batch = lesson(number)
        trainee.step()
    return Pupil(trainee.net.state_dict(), test.images, test.labels)


def vector(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors in one vector, float64, on the CPU."""
    return torch.cat([each.detach().cpu().double().flatten() for each in tensors])


def relative(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; NaN where one of them is not finite."""
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """Cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))


@contextmanager
def arithmetic(config: Config, kind: Kind, *, deterministic: bool = False) -> Iterator[None]:
    """The global switches of a run of this precision."""
    with numerics(replace(config.runtime, precision=kind, deterministic=deterministic)):
        yield
