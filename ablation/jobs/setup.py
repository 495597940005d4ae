"""Build what a job needs from its config: data, network, validation, tracking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ablation.config import experiment as configuration
from ablation.config.experiment import Config
from ablation.data import ImageSet, Split, check_labels, load_split, stratified_split
from ablation.errors import InputError
from ablation.evaluation import Pgd, Request, SplitName, evaluate
from ablation.jobs.heap import keep_freed_memory
from ablation.jobs.monitor import Curves, Monitor, fixed_subset
from ablation.models import Net, build_model
from ablation.numerics.devices import warn_of_idle_gpus
from ablation.numerics.precision import fastest_exact_matmul
from ablation.runs import tensorboard
from ablation.runs.directory import Run
from ablation.runs.launches import recorded_group, recorded_launches, recorded_recipe
from ablation.runs.state_dicts import load_into, load_weights_file
from ablation.runs.tracking import LONGEST_ID, Tracker, TrackingConfig, start
from ablation.training.engine import Validate
from ablation.training.method import Method

EVAL_BATCH = 500
"""Images attacked at once during selection."""


def pick_device(name: str) -> torch.device:
    """The device a name stands for; ``auto`` prefers a GPU, and says so if it cannot be used.

    On a CPU the process keeps its memory from here on.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        warn_of_idle_gpus()
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


@contextmanager
def numerics(runtime: configuration.RuntimeConfig) -> Iterator[None]:
    """Set the global numerical switches of a run; restore them afterwards."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    allow = runtime.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    torch.backends.cudnn.benchmark = not runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        with fastest_exact_matmul():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = benchmark
        if runtime.deterministic:
            torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Images:
    """The data of a run: whole training set on the device, the rest on the host until needed."""

    train: ImageSet
    test: ImageSet
    split: Split

    def fingerprint(self) -> str:
        """Hash of all images and labels."""
        return f"{self.train.fingerprint()}-{self.test.fingerprint()}"

    def of(self, name: str) -> ImageSet:
        """Images of a split: ``test``, ``val`` or ``train``."""
        if name == "test":
            return self.test
        return self.train.subset(self.split.val if name == "val" else self.split.train)


def load_images(config: Config, device: torch.device) -> Images:
    """Read the images, check them against the config, and split them.

    Raises:
        InputError: the data do not fit the config.
    """
    node = config.data
    train, test = node.source.load(config.data_root)
    problems = []
    for images in (train, test):
        try:
            check_labels(images, node.classes)
        except InputError as error:
            problems.append(str(error))
    try:
        split = stratified_split(train.labels, node.val_size, node.split_seed, node.train_size)
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("; ".join(dict.fromkeys(problems)))
    return Images(train.to(device), test, split)


def build_net(config: Config, images: ImageSet, method: Method, device: torch.device) -> Net:
    """The model for these images, initialised from the seed, on the device."""
    _, channels, *size = images.images.shape
    return build_net_of(config, channels, (size[0], size[1]), method, device)


def build_net_of(
    config: Config, channels: int, size: tuple[int, int], method: Method, device: torch.device
) -> Net:
    """The same for images of so many channels and this height and width."""
    node = config.model
    net = build_model(
        node.spec,
        channels=channels,
        size=size,
        classes=config.data.classes,
        head=method.head or node.head,
        mean=config.data.mean if node.normalize else None,
        std=config.data.std if node.normalize else None,
        seed=config.seed,
    ).to(device)
    if config.runtime.channels_last:
        net = net.to(memory_format=torch.channels_last)
    return net


def bare_net(config: Config, device: torch.device) -> Net:
    """A run's network before its weights; images are read only if their size is not known.

    Raises:
        InputError: it is not known, and the images cannot be read.
    """
    method, extent = config.phases[-1].method, config.data.source.extent(config.data_root)
    if extent is None:
        return build_net(config, load_images(config, torch.device("cpu")).train, method, device)
    return build_net_of(config, extent.channels, extent.size, method, device)


def validator(config: Config, images: Images, stop: Callable[[], bool]) -> Validate:
    """Clean accuracy on all validation images, PGD accuracy on a fixed set of them.

    A validation raises ``InterruptedRunError`` between two batches once ``stop`` says so.
    """
    val = images.of("val") if config.data.val_size else None
    node = config.selection
    attack = replace(selection_attack(config), n=node.n)
    request = Request(
        {"val_clean": None, "val_robust": attack},
        config.eps,
        config.norm,
        batch_size=EVAL_BATCH,
        seed=config.seed,
        split="val",
        diagnose=False,
    )

    def validate(net: torch.nn.Module) -> Mapping[str, float]:
        if val is None:
            return {}
        found = evaluate(net, val.images, val.labels, request, should_stop=stop)
        return {entry.metric: entry.value for entry in found.entries}

    return validate


def selection_attack(config: Config) -> Pgd:
    """PGD of the config's selection, on all images."""
    node = config.selection.attack
    return Pgd(node.steps, node.step_size, node.start)


def monitor(config: Config, images: Images, stop: Callable[[], bool]) -> Monitor | None:
    """Build the monitor that measures margins at each validation, on a fixed subset of the images.

    Of the validation images, or of the training images (as they are, not augmented) where there
    are none. It raises ``InterruptedRunError`` between two batches once ``stop`` says so.
    """
    node = config.monitor
    if not node.enabled:
        return None

    def some(split: SplitName) -> ImageSet:
        return fixed_subset(images.of(split), node.n, config.data.split_seed)

    split: SplitName = "val" if config.data.val_size else "train"
    measured: tuple[SplitName, ...] = ("train", "test") if node.effective_margin else ()
    curves = Curves(
        {name: some(name) for name in node.curves},
        selection_attack(config),
        config.eps,
        config.norm,
        config.data.split_seed,
        stop,
    )
    return Monitor(
        some(split),
        split,
        config.norm,
        {name: some(name) for name in measured},
        curves if node.curves else None,
        stop=stop,
    )


def own_normalisation(net: Net) -> dict[str, Tensor]:
    """The constants of a network's input normalisation; empty if it has none."""
    return {name: value for name, value in net.state_dict().items() if name in ("mean", "std")}


def start_from(net: Net, source: Path) -> None:
    """Load another run's last weights (averaged, where it averaged)."""
    folder = source / "checkpoints"
    averaged = folder / "last-average.safetensors"
    path = averaged if averaged.is_file() else folder / "last.safetensors"
    weights, _ = load_weights_file(path)
    # The constants of the normalisation are this config's.
    load_into(net, {**weights, **own_normalisation(net)}, str(path))


def check_split(path: Path, split: Split) -> None:
    """Make sure that a resumed run sees the same images.

    Raises:
        InputError: the split on disk is another.
    """
    before = load_split(path)
    if not (torch.equal(before.train, split.train) and torch.equal(before.val, split.val)):
        raise InputError(f"{path} holds another split: the data changed; set runs_dir=... anew")


def start_tracking(node: TrackingConfig, config: Config, run: Run, job_type: str) -> Tracker:
    """Start tracking beside the local files: in W&B, seeds of one arm form a group."""
    settings = {**config.container(), "arm_id": config.arm_id}
    if node.backend == "tensorboard":
        return tensorboard.start(node, run.path, run.last_epoch(), settings)
    suffix = "" if job_type == "train" else f"-{job_type}"
    launches = recorded_launches(run)
    parts = {"data": config.data.name, "model": config.model.name, "method": config.method.name}
    recipe = recorded_recipe(run)
    parts |= {"recipe": recipe} if recipe else {}
    tables = [f"table:{entry['table']}" for entry in launches if entry["table"]]
    rows = [f"row:{arm}" for entry in launches for arm in entry["arms"]]
    marks = ["smoke"] if config.scale == "smoke" else []
    marks += ["reconstructed"] if config.notes else []
    return start(
        node,
        run_dir=run.path,
        run_id=config.run_name + suffix,
        name=config.run_name + suffix,
        group=recorded_group(run) or own_group(config),
        job_type=job_type,
        tags=[*(f"{key}:{name}" for key, name in parts.items()), *tables, *rows, *marks],
        settings=settings,
    )


def own_group(config: Config) -> str:
    """What a run trains, for a person, and the start of its ``arm_id``: other settings part."""
    method = "+".join([config.method.name, *(k for k, v in config.component.items() if v)])
    stem = f"{config.data.name}-{config.model.name}-{method}"
    return f"{stem[: LONGEST_ID - 10]} {config.arm_id[:6]}"
