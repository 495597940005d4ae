"""What a config needs outside itself: data folder, device, the run to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ablation.config import validation
from ablation.config.evaluations import evaluations
from ablation.config.experiment import Config, DataConfig, EvaluationConfig, RuntimeConfig
from ablation.config.extension import extension_problems
from ablation.config.folders import has_file
from ablation.config.rules import model_problems
from ablation.crafters import BoundarySearch, FabSearch
from ablation.data import Extent, check_batch_size, check_shares, check_sizes, label_problems
from ablation.errors import InputError
from ablation.evaluation import AutoAttack, Square
from ablation.models import overrun, refusal
from ablation.ranks import launched
from ablation.runs.tensorboard import missing_extra
from ablation.terms import EffectiveWeightNorm, ProbedNorm

Place = Literal["here", "pool", "elsewhere"]
"""Where a job runs: as this process; with a GPU of its own on this machine; on another machine."""


def init_problems(config: Config) -> list[str]:
    """Check that the run to start from is finished."""
    if config.init_from is None:
        return []
    weights = Path(config.init_from).expanduser() / "checkpoints" / "last.safetensors"
    if has_file(weights):
        return []
    return [f"init_from={config.init_from}: no finished run there ({weights} is missing)"]


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed config, its data folder and device; nothing is read or started."""
    config, problems = validation.check(container)
    if config is None:
        return problems
    extent = config.data.source.extent(config.data_root)
    found = [*problems, *outside_problems(config), *size_problems(config, extent)]
    found += extension_problems(config)
    return list(dict.fromkeys(found))


def outside_problems(config: Config, place: Place = "here") -> list[str]:
    """Problems outside the config: the run to start from, the data folder, the device."""
    return [
        *init_problems(config),
        *config.data.source.check(config.data_root),
        *device_problems(config.runtime.device, place),
        *sharing_problems(config),
        *missing_extra(config.tracking),
    ]


def size_problems(config: Config, extent: Extent | None, place: Place = "here") -> list[str]:
    """Check classes, split, batch and model against the images, where these are known unread."""
    if extent is None:
        return []
    node, classes = config.data, len(extent.labels)
    val_size, train_size = node.val_size, node.train_size
    problems = label_problems(extent.labels, node.classes)
    problems += _normalisation_problems(config, extent)

    def fits(check: Callable[..., None], *sizes: int | None) -> bool:
        try:
            check(*sizes)
        except InputError as error:
            problems.append(str(error))
            return False
        return True

    # What does not fit is left out of what the others are held against.
    if not fits(check_sizes, extent.train, classes, val_size, None):
        val_size = 0
    if train_size is not None and not fits(
        check_sizes, extent.train, classes, val_size, train_size
    ):
        train_size = None
    count = train_size or extent.train - val_size
    if fits(check_batch_size, config.batch_size, count):
        problems += _model_problems(config, extent, count, place)
        fits(check_shares, config.batch_size, count, node.drop_last, devices_of(config))
    return [
        *problems,
        *_attack_problems(config, extent),
        *count_problems(evaluations(config), config.data, extent),
    ]


def count_problems(
    nodes: Sequence[EvaluationConfig], data: DataConfig, extent: Extent | None
) -> list[str]:
    """Check that each evaluation has as many images as it is to take."""
    if extent is None:
        return []
    train_size = data.train_size or extent.train - data.val_size
    sizes = {"test": extent.test, "val": data.val_size, "train": train_size}
    return [
        f"evaluation.n={node.n}: there are {sizes[node.split]} {node.split} images; set "
        f"evaluation.n={sizes[node.split]} or null"
        for node in nodes
        if node.n is not None and node.n > sizes[node.split]
    ]


def _normalisation_problems(config: Config, extent: Extent) -> list[str]:
    given = len(config.data.mean)
    if not config.model.normalize or given == extent.channels:
        return []
    return [
        f"data.mean={config.data.mean}: {given} entries, and the images have {extent.channels} "
        f"channels; give data.mean and data.std one entry per channel, or set "
        f"model.normalize=false"
    ]


def _attack_problems(config: Config, extent: Extent) -> list[str]:
    """Square places square patches, by their number along the height alone in L2."""
    height, width = extent.size
    if height == width:
        return []
    return [
        f"evaluation.attacks.{name}: Square in L2 needs square images, these have "
        f"{width}x{height}; leave the attack out, or set data.source.image_size"
        for node in evaluations(config)
        for name, attack in node.attacks.items()
        if isinstance(attack, (Square, AutoAttack))
        and (attack.norm or node.norm or config.norm) == "l2"
    ]


def _model_problems(config: Config, extent: Extent, count: int, place: Place) -> list[str]:
    """Check that the model takes images of this size, and BatchNorm the smallest batch of them."""
    spec, shape = config.model.spec, (extent.channels, extent.size)
    if any(model_problems(spec)):  # told already, and building it could take all memory
        return []
    problem = refusal(spec, *shape, 2)
    if problem is not None:
        return [problem]
    rest = 0 if config.data.drop_last else count % config.batch_size
    if config.batch_size == 1 and (problem := refusal(spec, *shape, 1)):
        return [f"batch_size=1: {problem}; set batch_size=2 or more"]
    if rest == 1 and (problem := refusal(spec, *shape, 1)):
        return [
            f"batch_size={config.batch_size}: the last batch of {count} images would hold a single "
            f"one, and {problem}; set data.drop_last=true"
        ]
    layer = overrun(spec, *shape) if _may_overrun(config.runtime, place) else None
    if layer is None:
        return []
    return [
        f"runtime.channels_last=true: on this CPU, PyTorch computes the gradient of {layer} (a "
        "strided 1x1 convolution of fewer than eight channels) outside its memory; set "
        "runtime.channels_last=false"
    ]


def _may_overrun(node: RuntimeConfig, place: Place) -> bool:
    """Whether the job trains where ``models.overrun`` applies."""
    on_cpu = node.device == "cpu" or (node.device == "auto" and not torch.cuda.is_available())
    return (
        on_cpu
        and place != "elsewhere"
        and node.channels_last
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


def device_problems(name: str, place: Place = "here") -> list[str]:
    """Check that the device exists where the job runs, as far as that can be known."""
    if name in ("auto", "cpu"):
        return []
    if not name.startswith("cuda"):
        return [f"runtime.device={name}: choose auto, cpu, cuda or cuda:<index>"]
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    if place == "pool" and index.isdigit() and int(index) > 0:
        return [
            f"runtime.device={name}: a job of the pool sees one GPU, which is its cuda:0; set "
            f"runtime.device=cuda and choose with hydra.launcher.gpus=[{index}]"
        ]
    if place == "elsewhere" and index.isdigit():
        return []
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        return [f"runtime.device={name}: {count} CUDA devices are visible; set runtime.device=auto"]
    return []


def devices_of(config: Config) -> int:
    """How many devices train a run together: those asked for, or what torchrun has started."""
    return max(config.runtime.devices, launched().world)


def sharing_problems(config: Config) -> Iterator[str]:
    """Check that the devices that are to train a run together are there, and that it can be."""
    node, started, visible = config.runtime, launched().world, torch.cuda.device_count()
    if node.devices < 1:
        yield f"runtime.devices={node.devices}: at least 1"
    if node.devices > 1 and started not in (1, node.devices):
        yield f"runtime.devices={node.devices}: torchrun has started {started} processes; leave it"
    if node.batch_norm == "replica" and node.devices == 1:
        yield (
            "runtime.batch_norm=replica: a device alone has the whole batch; set runtime.devices, "
            "or runtime.batch_norm=synchronised"
        )
    if devices_of(config) == 1:
        return
    if node.device not in ("auto", "cpu", "cuda"):
        yield f"runtime.device={node.device}: several devices train; set runtime.device=cuda"
    if node.device != "cpu" and 0 < visible < node.devices:
        yield f"runtime.devices={node.devices}: {visible} CUDA devices are visible"
    if node.compile:
        yield (
            "runtime.compile=true: BatchNorm's messages between devices cannot be compiled; set "
            "runtime.compile=false or runtime.devices=1"
        )
    if _shares_bias(config):
        yield (
            "component.fab_margin.shared_bias=true: all samples take it of the first, which is on "
            "one device alone; set it to false or runtime.devices=1"
        )
    if any(search.masked for search in _searches(config)):
        yield (
            "component.closed_form_gradient.masked=true: BatchNorm counts the points of one device "
            "alone; set it to false or runtime.devices=1"
        )
    yield from _probe_problems(config)


def _probe_problems(config: Config) -> Iterator[str]:
    """Check that no probe is of some samples of the batch: it draws by rows of the whole one."""
    subsets = {
        name
        for phase in config.phases
        for name, crafter in phase.method.crafters.items()
        if isinstance(crafter, BoundarySearch) and crafter.subset
    }
    terms = [slot.term for phase in config.phases for slot in phase.method.terms.values()]
    for penalty in (term for term in terms if isinstance(term, EffectiveWeightNorm)):
        if isinstance(penalty.norm, ProbedNorm) and penalty.view in subsets:
            yield (
                f"component.emr.view={penalty.view}: it holds some samples of the batch, and a "
                f"probe's numbers are drawn for all; set component/emr=exact or runtime.devices=1"
            )


def _shares_bias(config: Config) -> bool:
    searches = [crafter.search for crafter in _searches(config)]
    return any(isinstance(search, FabSearch) and search.shared_bias for search in searches)


def _searches(config: Config) -> list[BoundarySearch]:
    crafters = [each for phase in config.phases for each in phase.method.crafters.values()]
    return [crafter for crafter in crafters if isinstance(crafter, BoundarySearch)]
