"""Estimate time and disk space of jobs before the first of them starts.

Seconds come from comparable runs on disk where there are any, else from the number of passes
through the network times a short probe of it: right to about a factor of two if the machine is
idle. Starting processes, reading data and what ``torch.compile`` gains are left out.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from ablation.config import evaluations
from ablation.config.experiment import DISABLED, Config, digest
from ablation.data import Extent
from ablation.errors import InputError
from ablation.evaluation import Attack, Ensemble, Measure, autoattack, describe
from ablation.evaluation.warnings import warnings_of
from ablation.jobs import setup
from ablation.models import Net, build_model
from ablation.numerics.functional import cross_entropy
from ablation.numerics.precision import precision_context
from ablation.random import generator
from ablation.runs.directory import Run, find_runs
from ablation.training.method import FORWARDS, Method

Precision = Literal["fp32", "tf32", "bf16"]
BASES = ("measured", "partly measured", "rough", "unknown")
"""Where seconds are from: runs on disk, those and a probe of the network, the probe alone, or
neither (counted 0)."""
FORWARD, SEARCH, TRAIN = 1, 2, 3
"""Passes in units of a forward pass: a gradient of the input costs one more, of the weights two."""
CORRECT, ROBUST = 0.85, 0.5
"""Assumed shares of images that a first attack runs on, and that later ones run on."""
UNKNOWN_STEPS = 10
"""Gradient steps of a crafter or an attack that does not say how many it takes."""
UNKNOWN_EXTENT = Extent(50_000, 10_000, 3, (32, 32), range(10))
"""Of a source that cannot tell before it is loaded: as CIFAR."""
PROBE_SECONDS = 1.0
"""Time for the probe of one network, if single images take no longer."""
REPEATS = 4
"""Of each pass of the probe; the quickest counts, for other work on the machine only adds."""
COSTLESS = (
    *("eps", "eps_text", "step_size", "start_std", "confidence"),
    *("split_seed", "download", "decay"),
)
"""Settings of any part that do not change its cost."""
STRENGTHS = ("coef", "gamma")
"""Settings that change it only by being zero."""


Pace = Callable[[Config, Extent, torch.device, Precision], float]
"""Seconds of a forward pass per image, of a config's network on images of an extent."""


@dataclass(frozen=True)
class Estimate:
    """What one job costs, from scratch.

    Attributes:
        train_seconds: all epochs with their validations.
        evaluation_seconds: all attacks on all checkpoints that the config asks for.
        bytes: on disk when finished.
        basis: where ``train_seconds`` is from; one of ``BASES``.
        evaluation_basis: where ``evaluation_seconds`` is from; empty if nothing is evaluated.
        device: that the seconds are for: ``cpu``, ``cuda``, or this machine's for the job's.
    """

    train_seconds: float
    evaluation_seconds: float
    bytes: int
    basis: str
    evaluation_basis: str
    device: str


def estimate(
    configs: Sequence[Config], runs_dir: Path, device: str | None = None
) -> list[Estimate]:
    """Estimate each job as if it ran alone, from scratch.

    Args:
        configs: validated jobs.
        runs_dir: folder of earlier runs; need not exist.
        device: type of the device that jobs get elsewhere, ``cpu`` or ``cuda``; ``None`` means that
            they run on this machine. The probe can only run here.

    Raises:
        InputError: ``runs_dir`` is no folder, or cannot be read.
    """
    measured, networks = Measured(configs, runs_dir, device), Networks()
    return [_estimated(config, measured, networks, device) for config in configs]


def estimate_elsewhere(configs: Sequence[Config], pace: Pace, device: str) -> list[Estimate]:
    """Estimate each job on another machine, from passes through the network alone.

    Args:
        configs: validated jobs.
        pace: that machine's.
        device: type of its device, ``cpu`` or ``cuda``.
    """
    measured, networks = Measured((), None, device), Networks(pace)
    found = [_estimated(config, measured, networks, device) for config in configs]
    return [replace(each, device=device) for each in found]


def _estimated(
    config: Config, measured: Measured, networks: Networks, device: str | None
) -> Estimate:
    train, basis = measured.training(config), "measured"
    if train is None:
        pace = networks.pace(config, config.runtime.precision)
        train = training_passes(config, networks.split(config)) * (pace or 0.0)
        basis = "unknown" if pace is None else "rough"
    evaluation, evaluation_basis = evaluation_seconds(config, measured, networks)
    here, there = setup.pick_device(config.runtime.device).type, job_device(config, device)
    probed = {basis, evaluation_basis} & {"rough", "partly measured"}
    place = f"this machine's {here} in place of the jobs' {there}"
    return Estimate(
        train,
        evaluation,
        disk(config, networks),
        basis,
        evaluation_basis,
        place if probed and here != there else there,
    )


def job_device(config: Config, device: str | None) -> str:
    """Type of the device that a job will run on.

    Args:
        config: of the job.
        device: what ``auto`` is where it runs; ``None`` means that it runs here.
    """
    name = config.runtime.device
    return setup.pick_device(name if name != "auto" or device is None else device).type


def describe_total(estimates: Sequence[Estimate], jobs: int) -> str:
    """Say it in one line: ``about 3 h of compute on cuda: ...; 1.2 GB on disk; with ...``.

    Args:
        estimates: of the jobs, in the order in which they start.
        jobs: how many run at a time, at least 1; they are taken not to slow each other down.
    """
    train = sum(entry.train_seconds for entry in estimates)
    attack = sum(entry.evaluation_seconds for entry in estimates)
    devices = " and ".join(sorted({entry.device for entry in estimates}))
    text = (
        f"about {spoken(train + attack)} of compute{f' on {devices}' if devices else ''}: "
        f"training {spoken(train)}{_bases([entry.basis for entry in estimates])}, "
        f"evaluation {spoken(attack)}{_bases([entry.evaluation_basis for entry in estimates])}; "
        f"{size(sum(entry.bytes for entry in estimates))} on disk"
    )
    if jobs < 2 or len(estimates) < 2:
        return text
    ends = [0.0] * jobs
    for entry in estimates:
        heapq.heapreplace(ends, ends[0] + entry.train_seconds + entry.evaluation_seconds)
    return f"{text}; with {jobs} jobs at a time about {spoken(max(ends))}"


def _bases(bases: Sequence[str]) -> str:
    """`` (measured 2, rough 1 jobs)``."""
    count = Counter(basis for basis in bases if basis)
    said = ", ".join(f"{basis} {count[basis]}" for basis in BASES if count[basis])
    return f" ({said} job{'' if count.total() == 1 else 's'})" if said else ""


def spoken(seconds: float) -> str:
    """Say a duration in words: ``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 5 h``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 89.5:
        return f"{math.ceil(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")


def size(count: float) -> str:
    """Say a number of bytes: ``1.2 GB``."""
    power = 3 if count >= 1e9 else 2 if count >= 1e6 else 1
    number = count / 1000**power
    return f"{number:.{0 if number >= 10 else 1}f} {('kB', 'MB', 'GB')[power - 1]}"


# Passes, in units of a forward pass of one image ------------------------------------------------


def step_passes(method: Method) -> float:
    """Count a training step's passes; a weight ascent looks at every view once more."""
    crafters = [entry.view for entry in method.passes if entry.kind == "craft"]
    views = sum(entry.kind in FORWARDS for entry in method.passes)
    steps = sum(getattr(method.crafters[name], "steps", UNKNOWN_STEPS) for name in crafters)
    return SEARCH * steps + TRAIN * views * (1 if method.ascent is None else 2)


def training_passes(config: Config, split: Mapping[str, int]) -> float:
    """Count the passes of all epochs and validations; ``split`` has the number of images."""
    epochs, node = sum(phase.epochs for phase in config.phases), config.selection
    steps = sum(step_passes(phase.method) * phase.epochs for phase in config.phases)
    attacked = split["val"] if node.n is None else min(node.n, split["val"])
    validation = FORWARD * split["val"] + SEARCH * node.attack.steps * CORRECT * attacked
    return steps * split["train"] + math.ceil(epochs / node.every) * validation


def attack_passes(attack: Attack | Measure, classes: int) -> float:
    """Count an attack's passes per evaluated image, on average; see ``CORRECT`` and ``ROBUST``."""
    parts = [attack]
    if isinstance(attack, Ensemble):
        with warnings_of(autoattack.LOGGER):  # the attack itself will say that a part is left out
            parts = list(attack.parts(classes).values())
    total = 0.0
    for number, part in enumerate(parts):
        facts = _facts(part, 1.0, classes)
        passes = SEARCH * facts.get("steps", UNKNOWN_STEPS)
        if "steps" not in facts and "queries" in facts:
            passes = FORWARD * facts["queries"]
        later = facts.get("restarts", 1) * facts.get("targets", 1) - 1
        total += passes * ((ROBUST if number else CORRECT) + ROBUST * later)
    return total


def _facts(attack: Attack | Measure, eps: float, classes: int) -> dict[str, Any]:
    try:
        return describe(attack, eps, "linf", classes)
    except InputError:  # the evaluation will refuse it
        return {"eps": 0.0, "steps": 0}


def evaluation_seconds(config: Config, measured: Measured, networks: Networks) -> tuple[float, str]:
    """Estimate all attacks on all checkpoints that the config asks for; says on which basis."""
    seconds = passes = 0.0
    for node in evaluations.evaluations(config):
        images = networks.split(config)[node.split]
        images = images if node.n is None else min(node.n, images)
        eps = config.eps if node.eps is None else node.eps
        attacks = {name: attack for name, attack in node.attacks.items() if attack is not None}
        for metric, attack in {"clean": None, **attacks}.items():
            facts = _facts(attack, eps, config.data.classes) if attack else {}
            count = min((attack.n if attack else None) or images, images)
            rate = measured.rate(config, metric, facts)
            if rate is not None:
                seconds += rate * count
            elif attack is None:
                passes += SEARCH * count  # the diagnosis takes a gradient
            elif facts.get("eps", 1.0) > 0:  # a measure has no radius
                passes += attack_passes(attack, config.data.classes) * count
    pace = networks.pace(config, "fp32") if passes else 0.0
    basis = "measured" if seconds else ""
    if passes:
        basis = "unknown" if pace is None else "partly measured" if seconds else "rough"
    total = seconds + passes * (pace or 0.0)
    return total * len(evaluations.checkpoints(config)), basis


# Networks and data ------------------------------------------------------------------------------


class Networks:
    """Sizes of data and networks, and seconds per pass; each is found out once.

    Args:
        pace: how the seconds of a pass are found out; ``None`` means a probe on this machine.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or _probe
        self._extents: dict[str, Extent] = {}
        self._bytes: dict[str, tuple[int, int]] = {}
        self._paces: dict[tuple[object, ...], float | None] = {}

    def extent(self, config: Config) -> Extent:
        """Number and size of the images that the source holds."""
        key = f"{config.data.source!r} in {config.data_dir}"
        if key not in self._extents:
            self._extents[key] = config.data.source.extent(config.data_root) or UNKNOWN_EXTENT
        return self._extents[key]

    def split(self, config: Config) -> dict[str, int]:
        """Number of images of ``train``, ``val`` and ``test``."""
        node, extent = config.data, self.extent(config)
        rest = max(1, extent.train - node.val_size)
        train = rest if node.train_size is None else min(node.train_size, rest)
        return {"train": train, "val": node.val_size, "test": extent.test}

    def bytes(self, config: Config) -> tuple[int, int]:
        """Bytes of the state dict and of the parameters; 0 if the job will fail to build it."""
        key = self._key(config)
        if key not in self._bytes:
            self._bytes[key] = 0, 0
            with contextlib.suppress(InputError), torch.device("meta"):
                net = build(config, self.extent(config))
                self._bytes[key] = _bytes(net.state_dict().values()), _bytes(net.parameters())
        return self._bytes[key]

    def pace(self, config: Config, precision: Precision) -> float | None:
        """Seconds of a forward pass per image; ``None`` if the network does not run."""
        extent, device = self.extent(config), setup.pick_device(config.runtime.device)
        how = device, precision, config.runtime.channels_last, config.batch_size
        key = self._key(config), how
        if key not in self._paces:
            self._paces[key] = None
            with contextlib.suppress(Exception):  # too large for the device, or no such device
                self._paces[key] = self._pace(config, extent, device, precision)
        return self._paces[key]

    def _key(self, config: Config) -> str:
        head, data = config.phases[-1].method.head, config.data
        extent = self.extent(config)
        shape = f"{extent.channels} {extent.size}"
        return f"{config.model!r} {head!r} {data.classes} {data.mean} {shape}"


def build(config: Config, extent: Extent) -> Net:
    """A config's network, for images of an extent."""
    node, data = config.model, config.data
    return build_model(
        node.spec,
        channels=extent.channels,
        size=extent.size,
        classes=data.classes,
        head=config.phases[-1].method.head or node.head,
        mean=data.mean if node.normalize else None,
        std=data.std if node.normalize else None,
    )


def _probe(config: Config, extent: Extent, device: torch.device, precision: Precision) -> float:
    """Time forward and backward of noise images; seconds per forward pass and image."""
    net = build(config, extent).to(device).eval()
    if config.runtime.channels_last:
        net = net.to(memory_format=torch.channels_last)
    shape = (config.batch_size, extent.channels, *extent.size)
    x = torch.rand(shape, generator=generator(0, "probe")).to(device)
    context = precision_context(precision, device)

    def seconds(n: int) -> float:
        started = time.perf_counter()
        with context():
            logits = net(x[:n])
        cross_entropy(logits.float(), logits.argmax(1)).sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / n / TRAIN

    with setup.numerics(replace(config.runtime, precision=precision)):
        seconds(1)  # starts CUDA, and chooses kernels
        one = min(seconds(1) for _ in range(REPEATS))
        batch = min(config.batch_size, int(PROBE_SECONDS / (REPEATS * TRAIN * one)))
        return min(seconds(batch) for _ in range(REPEATS)) if batch > 1 else one


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def disk(config: Config, networks: Networks) -> int:
    """Bytes of a finished run: checkpoints, and what is known to grow with epochs and images."""
    split = networks.split(config)
    state, parameters = networks.bytes(config)
    weights = state * (1 if config.average is None else 2)
    moments = config.optim.moments * parameters
    epochs = sum(phase.epochs for phase in config.phases)
    named = 3 if config.data.val_size > 0 else 1
    total = min(2, epochs) * (weights + moments) + named * weights
    total += 8 * (split["train"] + split["val"]) + 400 * epochs + 10_000
    for node in evaluations.evaluations(config):
        rows = split[node.split] if node.n is None else min(node.n, split[node.split])
        columns = len(node.attacks)
        one = 4_000 + 1_500 * columns + rows * (6 + columns)
        total += len(evaluations.checkpoints(config)) * one
    return total


# Runs on disk -----------------------------------------------------------------------------------


class Measured:
    """Times of the runs on disk that are comparable with planned ones.

    Args:
        configs: the planned runs; runs on other data or models are not read.
        runs_dir: where runs are; ``None`` means that none is looked at.
        device: see ``estimate``.

    Raises:
        InputError: the folder cannot be listed.
    """

    def __init__(
        self, configs: Sequence[Config], runs_dir: Path | None, device: str | None = None
    ) -> None:
        self._device = device
        self._epochs: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._rates: dict[tuple[str, str], list[tuple[Mapping[str, Any], float]]]
        self._rates = defaultdict(list)
        self._keys: dict[int, tuple[str, str]] = {}
        wanted = tuple({f"{config.data.name}-{config.model.name}-" for config in configs})
        for run in [] if runs_dir is None else find_runs(runs_dir.expanduser()):
            if run.path.name.startswith(wanted):
                with contextlib.suppress(Exception):  # damaged, or of another version
                    self._read(run)

    def training(self, config: Config) -> float | None:
        """Seconds of all epochs; ``None`` if no run took the same steps."""
        key, _ = self._digests(config)
        known = [self._epochs.get((key, phase.name), []) for phase in config.phases]
        if not all(known):
            return None
        return sum(p.epochs * fmean(s) for p, s in zip(config.phases, known, strict=True))

    def rate(self, config: Config, metric: str, facts: Mapping[str, Any]) -> float | None:
        """Seconds per image of an attack; ``None`` if no run of this network was attacked so.

        Args:
            config: the planned run.
            metric: the attack's name; ``clean`` is the pass over the clean images.
            facts: what ``evaluation.describe`` says of it.
        """
        settings, (_, key) = _costly(facts).items(), self._digests(config)
        rates = self._rates.get((key, metric), [])
        same = [rate for params, rate in rates if settings <= params.items()]
        return median(same) if same else None

    def _read(self, run: Run) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where available
        container = yaml.load(run.config_path.read_bytes(), loader)  # noqa: S506  both are safe
        status = run.status()
        device = str(status.facts["device"]).split(":")[0] if status else ""
        training, network = _digests(container, device)
        rows = run.read_metrics()
        for row in rows[1:] or rows:  # the first epoch warms up
            self._epochs[training, row["phase"]].append(float(row["seconds"]))
        for path in sorted(run.evaluations.glob("*.json")):
            record = json.loads(path.read_bytes())
            seconds = record["meta"].get("seconds", {})
            for entry in record["entries"]:
                metric = entry["metric"]
                if metric in seconds and "attack_from" not in entry["params"]:
                    known = _costly(entry["params"]), seconds[metric] / entry["n"]
                    self._rates[network, metric].append(known)

    def _digests(self, config: Config) -> tuple[str, str]:
        if id(config) not in self._keys:
            device = job_device(config, self._device)
            self._keys[id(config)] = _digests(config.container(), device)
        return self._keys[id(config)]


OF_OLDER_RUNS = {"devices": 1, "batch_norm": "synchronised"}
"""Keys of ``runtime`` that configs once lacked."""


def _digests(container: Mapping[str, Any], device: str) -> tuple[str, str]:
    """Digests of all that sets the cost of training, and of a forward pass."""
    data, runtime = container["data"], container["runtime"]
    forward = {
        "model": container["model"],
        "data": {key: data[key] for key in ("name", "source", "classes", "mean")},
        "channels_last": runtime["channels_last"],
        "device": device,
    }
    step = {
        **forward,
        "method": {**container["method"], "name": None, "roles": None},
        "component": {k: v for k, v in container["component"].items() if v != DISABLED},
        "split": [data[key] for key in ("val_size", "train_size", "drop_last")],
        "runtime": {**OF_OLDER_RUNS, **runtime, "device": None},
        "selection": {**container["selection"], "metric": None},
        **{key: container[key] for key in ("average", "batch_size", "norm", "augment")},
    }
    return digest(_costly(step)), digest(_costly(forward))


def _costly(node: Any) -> Any:
    """A container without the settings that do not change the cost."""
    if isinstance(node, Mapping):
        return {
            key: bool(value) if key in STRENGTHS else _costly(value)
            for key, value in node.items()
            if key not in COSTLESS
        }
    return [_costly(entry) for entry in node] if isinstance(node, (list, tuple)) else node
