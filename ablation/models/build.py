"""Build an initialised network from a specification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ablation.errors import InputError
from ablation.models.blocks import Body, Size
from ablation.models.heads import HEADS
from ablation.models.net import Net
from ablation.random import key
from ablation.types import HeadFactory


class ModelSpec(Protocol):
    """Hyperparameters of an architecture: a frozen dataclass, its fields the keys in YAML."""

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the layers below the head, initialised by PyTorch's rules.

        Args:
            channels: channels of the images.
            size: (height, width) of the images in pixels.
            classes: number of classes; the bodies here do not depend on it.

        Raises:
            InputError: the architecture cannot take such images.
        """


@runtime_checkable
class Initialises(Protocol):
    """A specification whose official code departs from PyTorch's initialisation."""

    def init(self, module: nn.Module) -> None:
        """Initialise one layer; called for every layer of body and head."""


def build_model(
    spec: ModelSpec,
    *,
    channels: int,
    size: int | Size,
    classes: int,
    head: str | HeadFactory = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Net:
    """Build a network and initialise it from ``seed`` alone.

    The weights are drawn on the CPU, so that a run starts equal on every device, from a stream of
    their own: the global generators are as before. The body is drawn before the head, so another
    head leaves its weights as they are. Under ``torch.device("meta")`` nothing is allocated.

    Args:
        spec: the architecture.
        channels: channels of the images.
        size: (height, width) of the images in pixels; one number means both.
        classes: number of logits.
        head: a name in ``HEADS``, or a head factory.
        mean: pixel mean per channel, subtracted inside the network; ``None`` means raw pixels.
        std: pixel deviation per channel; given exactly if ``mean`` is.
        seed: the run's seed.

    Raises:
        InputError: unknown head, or architecture, images and normalisation do not fit.
    """
    if channels < 1 or classes < 2:
        raise InputError(
            f"channels={channels}, classes={classes}: a model needs 1 or more channels and 2 or "
            "more classes; check the data set"
        )
    if isinstance(head, str) and head not in HEADS:
        raise InputError(f"model.head={head}: unknown; choose from {', '.join(HEADS)}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise InputError(
                f"data.{name}={list(values)} has {len(values)} entries for images of {channels} "
                f"channel{'s' if channels > 1 else ''}: give one per channel, or set "
                "model.normalize=false"
            )
    factory = HEADS[head] if isinstance(head, str) else head
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators' generators as well.
        torch.default_generator.manual_seed(key(seed, "init", 0))
        pixels = (size, size) if isinstance(size, int) else size
        body = spec.build(channels=channels, size=pixels, classes=classes)
        try:
            net = Net(body, factory(features=body.features, classes=classes), mean, std)
        except ValueError as error:
            raise InputError(f"model: {error}") from error
        if isinstance(spec, Initialises):
            net.apply(spec.init)
    return net
