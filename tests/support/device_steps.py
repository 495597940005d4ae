"""Training steps and runs on the pretended device: what they wait for and launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hydra import initialize_config_dir

from ablation.averages import Ema
from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.config.folders import conf_dir, register_components
from ablation.config.validation import load
from ablation.models.folding import Folded
from ablation.models.net import Net
from ablation.numerics.graphs import Graphs
from ablation.numerics.precision import precision_context, product_type
from ablation.training.memory import Memories, remembering
from ablation.training.searches import Searches
from ablation.training.step import StepLog, train_step
from ablation.types import Batch, Clock
from tests.support.pretended_cuda import CUDA, Wait, pretending


@contextmanager
def composing(*shared: str) -> Iterator[Callable[[str, Sequence[str]], Config]]:
    """Yield what makes the config of a method and overrides that enable components.

    Args:
        *shared: overrides of all these configs.
    """
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        composer = Composer()

        def config(method: str, component: Sequence[str] = ()) -> Config:
            return load(composer.plain([f"method={method}", *component, *shared]))

        yield config


@dataclass(frozen=True)
class Stepped:
    """What a training step did.

    Attributes:
        log: its measurements, on the device.
        waits: of the host.
        launches: number of operations that are no views, averaging left out.
    """

    log: StepLog
    waits: list[Wait]
    launches: int


def stepped(
    config: Config,
    net: Net,
    batch: Batch,
    precision: str = "fp32",
    classes: int = 3,
    captured: bool = False,
) -> Stepped:
    """Make a training step of a config, and one of an EMA, on the pretended device.

    Args:
        config: its method, in the last phase, and its optimiser.
        net: on the CPU; with the method's head.
        batch: on the CPU.
        precision: of training forwards.
        classes: of the images.
        captured: searches are replayed: an earlier step has made their programs.
    """
    with pretending() as log:
        searches = Searches(len(batch.y), Graphs()) if captured else None
        measured = _step(config, net, batch, precision, classes, log.clear, searches)
        launches, average = log.launched, Ema().attach(net)
        average.update(net, Clock(1, 0))
        return Stepped(measured, list(log.waits), launches)


def stepped_for_real(config: Config, net: Net, batch: Batch) -> None:
    """Make a training step on a GPU that refuses to be waited for."""
    try:
        _step(config, net, batch, "bf16", 3, lambda: torch.cuda.set_sync_debug_mode("error"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _step(
    config: Config,
    net: Net,
    batch: Batch,
    precision: str,
    classes: int,
    begin: Callable[[], None],
    searches: Searches | None = None,
) -> StepLog:
    """Make a step on the device, a second one if searches are captured in the first.

    ``begin`` is called when all is there.
    """
    method = config.phases[-1].method
    net = net.to("cuda")
    there = Batch(batch.x.to("cuda"), batch.y.to("cuda"), batch.index.to("cuda"))
    folded, optimizer = Folded(net), config.optim.build(net, 0.01)
    rows = {"n_train": 100, "batch_size": len(batch.y)}
    memories = Memories([method], **rows, classes=classes, device=CUDA)
    in_context = precision_context(precision, CUDA)  # type: ignore[arg-type]
    for low in {None, product_type(in_context, CUDA)}:  # the copies are made once a run
        folded.refresh(low)
    net.train()
    last = 0 if searches is None else 1
    for step in range(last + 1):
        if step == last:
            begin()
        measured, views = train_step(
            method,
            net,
            optimizer,
            there,
            Clock(1, step),
            seed=0,
            precision=in_context,
            clip=config.optim.clip,
            folded=folded,
            searches=searches,
            memories=memories,
        )
        memories.commit(remembering(method), views)
    return measured


def on_device(log: StepLog) -> bool:
    """Whether all that a step measured lies on the device."""
    values = [log.loss, log.grad_norm]
    for group in (log.parts, log.correct, log.facts, log.logits, log.recorded):
        values += group.values()
    return all(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in values)
