"""The training loop of a config: the same on every rank of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ablation.config.experiment import Config
from ablation.data import DeviceLoader
from ablation.jobs.setup import Images, start_from
from ablation.models import Net
from ablation.numerics.precision import precision_context
from ablation.training.engine import Engine, Recipe, Reporter, Store, Validate


def engine(
    config: Config,
    net: Net,
    images: Images,
    store: Store,
    reporter: Reporter,
    validate: Validate,
    stop: Callable[[], bool],
    on_epoch: Callable[[Mapping[str, Any], nn.Module], None],
) -> Engine:
    """What trains a network as the config says; see ``Engine``."""
    if config.init_from is not None:  # a checkpoint of this run, if there is one, wins
        start_from(net, Path(config.init_from).expanduser())
    device = next(net.parameters()).device
    loader = DeviceLoader(
        images.train,
        images.split.train,
        config.batch_size,
        seed=config.seed,
        augment=config.augment,
        drop_last=config.data.drop_last,
        device=device,
        channels_last=config.runtime.channels_last,
    )
    recipe = Recipe(
        phases=config.phases,
        optim=config.optim,
        schedule=config.schedule,
        lr=config.lr,
        average=config.average,
        seed=config.seed,
        precision=precision_context(config.runtime.precision, device),
        classes=config.data.classes,
        select_every=config.selection.every,
        compile=config.runtime.compile,
        statistics=config.runtime.batch_norm,
        accumulate=config.runtime.accumulate,
        fast=config.runtime.fast,
    )
    return Engine(net, loader, recipe, validate, store, reporter, stop, on_epoch)
