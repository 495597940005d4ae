"""What jobs will cost in time and disk, before the first of them starts.

Best is a run on disk that did the same work: its seconds per epoch and per attacked image. Where
there is none, the passes through the network are counted from method and attacks, and a short probe
times such passes on this device; networks it has no time for are scaled by their FLOPs.

Left out, because they are small or unknown before the fact: starting a process and reading data
(seconds per job), saving, averaging weights, passes that a loss term or a crafter makes besides its
``steps``, and what ``torch.compile`` gains (the probe does not compile).
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch import Tensor

from ablation.averages import Swa
from ablation.config import evaluations
from ablation.config.experiment import DISABLED, Config, digest
from ablation.data import Extent
from ablation.errors import InputError
from ablation.evaluation import Attack, Ensemble, Measure, autoattack, describe
from ablation.evaluation.warnings import warnings_of
from ablation.jobs import setup
from ablation.models import ModelSpec, Net, build_model
from ablation.models.blocks import Body
from ablation.models.folding import Folded
from ablation.numerics.functional import cross_entropy, pgd
from ablation.numerics.modes import evaluating
from ablation.numerics.precision import exact_arithmetic, precision_context
from ablation.random import generator
from ablation.runs.directory import Run, find_runs
from ablation.training.method import Phase
from ablation.types import Norm

BASES = ("measured", "probed", "scaled", "assumed")
"""Where a training time is from, best first: runs on disk, a probe of this very network, FLOPs and
the probe of another one, FLOPs and ``SPEED``."""
CORRECT, ROBUST = 0.85, 0.5
"""Assumed shares of images: classified correctly, so that a first attack runs on them; and robust
after it, so that restarts, further targets and the rest of an ensemble do."""
UNKNOWN_STEPS = 10
"""Gradient steps of a crafter or an attack that does not say how many it takes."""
UNKNOWN_EXTENT = Extent(50_000, 10_000, 32)
"""Of a source that cannot tell before it is loaded: as CIFAR."""
UNKNOWN_FLOPS = 1e9
"""Of a forward pass through a network that cannot be built."""
SPEED: Mapping[str, float] = {"cpu": 5e10, "cuda": 1e13}
"""FLOPs per second where no probe worked: one core, one GPU in fp32."""
CHEAP = (
    *("eps", "eps_text", "step_size", "start_std", "confidence"),
    *("split_seed", "download", "decay"),
)
"""Settings of any part that do not change its cost."""
STRENGTHS = ("coef", "gamma")
"""Settings that change it only by being zero."""
REPEATS = 5
"""Runs of a pass that a probe times, at most."""


@dataclass(frozen=True)
class Estimate:
    """What one job costs, from scratch.

    Attributes:
        train_seconds: all epochs with their validations.
        evaluation_seconds: all attacks on all checkpoints that the config asks for.
        bytes: on disk when finished.
        basis: where ``train_seconds`` is from; one of ``BASES``.
    """

    train_seconds: float
    evaluation_seconds: float
    bytes: int
    basis: str


@dataclass(frozen=True)
class Passes:
    """A number for each kind of pass through a network: how often, or how many seconds.

    Attributes:
        forward: without a gradient.
        search: forward, and backward to the input.
        train: forward, and backward to the weights.
    """

    forward: float = 0.0
    search: float = 0.0
    train: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Passes:
        return Passes(*(factor * value for value in astuple(self)))

    def dot(self, other: Passes) -> float:
        """Sum of the products: counts times seconds."""
        forward, search = self.forward * other.forward, self.search * other.search
        return forward + search + self.train * other.train


COST = Passes(1.0, 2.0, 3.0)
"""Each kind of pass in forward passes: the gradient of the input costs one more, that of the
weights another."""


@dataclass(frozen=True)
class Subject:
    """What a probe times: the passes of a network as training or as evaluation makes them.

    Attributes:
        key: identifies the network.
        flops: of a forward pass of one image.
        batch: images per pass.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        device: where.
        training: training's search runs on the folded copy; evaluation does not train.
        size: of an image, in pixels.
        config: of one of the jobs that need it.
    """

    key: str
    flops: float
    batch: int
    precision: str
    device: torch.device
    training: bool
    size: int = field(compare=False)
    config: Config = field(compare=False, repr=False)


@dataclass(frozen=True)
class Due:
    """Passes to be made, of single images, and the network that makes them."""

    subject: Subject
    passes: Passes

    @property
    def flops(self) -> float:
        """All of them together."""
        return self.subject.flops * COST.dot(self.passes)


@dataclass(frozen=True)
class Bill:
    """Seconds that are known, and passes that are not timed yet."""

    seconds: float
    dues: tuple[Due, ...] = ()


def estimate(configs: Sequence[Config], runs_dir: Path, budget_s: float = 5.0) -> list[Estimate]:
    """What each job costs if it is run alone, from scratch.

    Args:
        configs: validated jobs.
        runs_dir: folder of earlier runs; need not exist.
        budget_s: seconds for the probe; 0 means none. Starting CUDA comes on top.

    Raises:
        InputError: ``runs_dir`` is no folder, or cannot be read.
    """
    measured, sizes = Measured(configs, runs_dir), Sizes()
    bills = [(_training(c, measured, sizes), _evaluating(c, measured, sizes)) for c in configs]
    dues = [due for pair in bills for bill in pair for due in bill.dues]
    paces = Paces(probe(dues, budget_s) if dues else {})
    found = []
    for config, (training, attacking) in zip(configs, bills, strict=True):
        seconds, basis = paces.settle(training)
        found.append(Estimate(seconds, paces.settle(attacking)[0], disk(config, sizes), basis))
    return found


def describe_total(estimates: Sequence[Estimate], jobs: int) -> str:
    """One line for people: ``about 3 h 20 min of compute (...), 1.2 GB on disk; with ...``.

    Args:
        estimates: of the jobs, in the order in which they start.
        jobs: how many run at a time, at least 1; they are taken not to slow each other down.
    """
    train = sum(entry.train_seconds for entry in estimates)
    attack = sum(entry.evaluation_seconds for entry in estimates)
    count = Counter(entry.basis for entry in estimates)
    bases = ", ".join(f"{basis} {count[basis]}" for basis in BASES if count[basis])
    text = (
        f"about {spoken(train + attack)} of compute (training {spoken(train)}, evaluation "
        f"{spoken(attack)}; {bases or 'no'} job{'' if len(estimates) == 1 else 's'}), "
        f"{_size(sum(entry.bytes for entry in estimates))} on disk"
    )
    if jobs < 2 or len(estimates) < 2:
        return text
    ends = [0.0] * jobs
    for entry in estimates:
        heapq.heapreplace(ends, ends[0] + entry.train_seconds + entry.evaluation_seconds)
    return f"{text}; with {jobs} jobs at a time about {spoken(max(ends))}"


def spoken(seconds: float) -> str:
    """A duration in words: ``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 5 h``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 89.5:
        return f"{math.ceil(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")


def _size(count: float) -> str:
    power = 3 if count >= 1e9 else 2 if count >= 1e6 else 1
    number = count / 1000**power
    return f"{number:.{0 if number >= 10 else 1}f} {('kB', 'MB', 'GB')[power - 1]}"


# Passes ---------------------------------------------------------------------------------------


def step_passes(phase: Phase) -> Passes:
    """Of one image in one step; the mean over the phase if its ascent starts late."""
    method = phase.method
    views = [entry for entry in method.training_passes if entry.kind == "view"]
    steps = [
        getattr(method.crafters[entry.view], "steps", UNKNOWN_STEPS)
        for entry in method.passes
        if entry.kind == "craft"
    ]
    ascents = 0.0
    if method.ascent is not None:
        ascents = max(0, phase.epochs - getattr(method.ascent, "start", 0)) / phase.epochs
    trailing = len(method.trailing_passes)
    return Passes(forward=trailing, search=sum(steps), train=len(views) * (1 + ascents))


def attack_passes(attack: Attack | Measure, classes: int) -> Passes:
    """Of one evaluated image, on average; see ``CORRECT`` and ``ROBUST``."""
    if not isinstance(attack, Ensemble):
        first, later = _search_passes(attack, classes)
        return first * CORRECT + later * ROBUST
    with warnings_of(autoattack.LOGGER):  # the attack itself will say that a part is left out
        parts = list(attack.parts(classes).values())
    total = Passes()
    for number, part in enumerate(parts):
        first, later = _search_passes(part, classes)
        total += first * (ROBUST if number else CORRECT) + later * ROBUST
    return total


def _search_passes(attack: Attack | Measure, classes: int) -> tuple[Passes, Passes]:
    """Of the first run with the verdict's forward pass, and of all further restarts and targets."""
    facts = _facts(attack, 1.0, "linf", classes)
    if "steps" not in facts and "queries" in facts:
        return Passes(forward=facts["queries"] + 1), Passes()
    once = Passes(search=facts.get("steps", UNKNOWN_STEPS))
    runs = facts.get("restarts", 1) * facts.get("targets", 1)
    return once + Passes(forward=1), once * (runs - 1)


def _facts(attack: Attack | Measure, eps: float, norm: Norm, classes: int) -> dict[str, Any]:
    try:
        return describe(attack, eps, norm, classes)
    except InputError:  # the evaluation will refuse it
        return {"eps": 0.0, "steps": 0}


def validations(config: Config) -> list[tuple[str, bool]]:
    """For each epoch its phase, and whether it ends with a validation; as ``engine`` has it."""
    total = sum(phase.epochs for phase in config.phases)
    found: list[tuple[str, bool]] = []
    for phase in config.phases:
        for epoch in range(phase.epochs):
            done = len(found) + 1
            ends = phase.selectable and epoch + 1 == phase.epochs
            due = done % config.selection.every == 0 or done == total or ends
            found.append((phase.name, due and config.data.val_size > 0))
    return found


def _training(config: Config, measured: Measured, sizes: Sizes) -> Bill:
    known = measured.training(config)
    if known is not None:
        return Bill(known)
    images = sizes.split(config)["train"]
    if config.data.drop_last:
        images -= images % config.batch_size
    total = Passes()
    for phase in config.phases:
        total += step_passes(phase) * (phase.epochs * images)
    node = config.selection
    attacked = config.data.val_size if node.n is None else min(node.n, config.data.val_size)
    search = Passes(search=node.attack.steps, forward=1) * (CORRECT * attacked)
    validation = search + Passes(search=1) * config.data.val_size
    if isinstance(config.average, Swa):
        validation += Passes(forward=images)
    step = Due(sizes.subject(config, min(config.batch_size, images), training=True), total)
    count = sum(due for _, due in validations(config))
    if count == 0:
        return Bill(0.0, (step,))
    subject = sizes.subject(config, min(setup.EVAL_BATCH, config.data.val_size), training=False)
    return Bill(0.0, (step, Due(subject, validation * count)))


def _evaluating(config: Config, measured: Measured, sizes: Sizes) -> Bill:
    seconds, passes, most = 0.0, Passes(), 1
    for node in evaluations.evaluations(config):
        total = sizes.split(config)[node.split]
        total = total if node.n is None else min(node.n, total)
        most = max(most, total)
        eps, norm = config.eps if node.eps is None else node.eps, node.norm or config.norm
        for metric, attack in {"clean": None, **node.attacks}.items():
            if attack is None and metric != "clean":
                continue  # read off the pass over the clean images
            facts = _facts(attack, eps, norm, config.data.classes) if attack else {}
            count = min(getattr(attack, "n", None) or total, total)
            rate = measured.rate(config, metric, facts)
            if rate is not None:
                seconds += rate * count
            elif attack is None:
                passes += Passes(search=1) * count
            elif facts.get("eps", 1.0) > 0:  # a measure has no radius
                passes += attack_passes(attack, config.data.classes) * count
    times = len(evaluations.checkpoints(config))
    if passes == Passes():
        return Bill(times * seconds)
    subject = sizes.subject(config, min(config.evaluation.batch_size, most), training=False)
    return Bill(times * seconds, (Due(subject, passes * times),))


# Sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bare:
    """An architecture without its own initialisation: drawing nothing can cost seconds of imports.

    Attributes:
        spec: the architecture.
    """

    spec: ModelSpec

    def build(self, *, channels: int, size: int, classes: int) -> Body:
        """See ``ModelSpec``."""
        return self.spec.build(channels=channels, size=size, classes=classes)


class Sizes:
    """Sizes of data and networks; each is found out once, and nothing is allocated."""

    def __init__(self) -> None:
        self._extents: dict[str, Extent] = {}
        self._nets: dict[str, Net | None] = {}
        self._flops: dict[str, float] = {}

    def extent(self, config: Config) -> Extent:
        """How much the source holds."""
        key = f"{config.data.source!r} in {config.data_dir}"
        if key not in self._extents:
            found = config.data.source.extent(config.data_root)
            self._extents[key] = found or UNKNOWN_EXTENT
        return self._extents[key]

    def split(self, config: Config) -> dict[str, int]:
        """Images of ``train``, ``val`` and ``test``."""
        node, extent = config.data, self.extent(config)
        rest = max(1, extent.train - node.val_size)
        train = rest if node.train_size is None else min(node.train_size, rest)
        return {"train": train, "val": node.val_size, "test": extent.test}

    def key(self, config: Config) -> str:
        """Identifies the network."""
        size, head = self.extent(config).size, config.phases[-1].method.head
        return f"{config.model!r} {head!r} {config.data.classes} {config.data.mean} {size}"

    def net(self, config: Config) -> Net | None:
        """The network on the meta device; ``None`` if it cannot be built, as the job will say."""
        key = self.key(config)
        if key not in self._nets:
            self._nets[key] = None
            with contextlib.suppress(InputError), torch.device("meta"):
                spec, size = _Bare(config.model.spec), self.extent(config).size
                self._nets[key] = _build(config, spec, size).eval()
        return self._nets[key]

    def flops(self, config: Config) -> float:
        """Of a forward pass of one image."""
        key, net = self.key(config), self.net(config)
        if net is None:
            return UNKNOWN_FLOPS
        if key not in self._flops:
            size = self.extent(config).size
            x = torch.empty(1, len(config.data.mean), size, size, device="meta")
            self._flops[key] = _count_flops(net, x)
        return self._flops[key]

    def subject(self, config: Config, batch: int, *, training: bool) -> Subject:
        """The network as training or evaluation runs it."""
        return Subject(
            key=self.key(config),
            flops=self.flops(config),
            batch=max(1, batch),
            precision=config.runtime.precision if training else "fp32",
            device=setup.pick_device(config.runtime.device),
            training=training,
            size=self.extent(config).size,
            config=config,
        )


def _count_flops(net: Net, x: Tensor) -> float:
    # The first use imports seconds of torch: not where all is measured already.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return float(max(1, counter.get_total_flops()))


def _build(config: Config, spec: ModelSpec, size: int) -> Net:
    node, data = config.model, config.data
    return build_model(
        spec,
        channels=len(data.mean),
        size=size,
        classes=data.classes,
        head=config.phases[-1].method.head or node.head,
        mean=data.mean if node.normalize else None,
        std=data.std if node.normalize else None,
        seed=config.seed,
    )


def disk(config: Config, sizes: Sizes) -> int:
    """Bytes of a finished run: checkpoints, and what is known to grow with epochs and images."""
    net, split = sizes.net(config), sizes.split(config)
    weights = 0 if net is None else _bytes(net.state_dict().values())
    momentum = 0 if net is None or config.optim.momentum == 0 else _bytes(net.parameters())
    nets = weights * (1 if config.average is None else 2)
    epochs = sum(phase.epochs for phase in config.phases)
    named = 3 if config.data.val_size > 0 else 1
    total = min(2, epochs) * (nets + momentum) + named * nets
    total += 8 * (split["train"] + split["val"]) + 400 * epochs + 10_000
    for node in evaluations.evaluations(config):
        rows = split[node.split] if node.n is None else min(node.n, split[node.split])
        columns = len(node.attacks)
        total += len(evaluations.checkpoints(config)) * (
            4_000 + 1_500 * columns + rows * (6 + columns)
        )
    return total


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# Runs on disk ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """What one run tells.

    Attributes:
        training: digest of what a step costs.
        network: digest of what a forward pass costs.
        epochs: phase and whether it was validated -> seconds of such epochs.
        rates: metric, parameters and seconds per image of attacks.
    """

    training: str
    network: str
    epochs: Mapping[tuple[str, bool], list[float]]
    rates: Sequence[tuple[str, Mapping[str, Any], float]]


class Measured:
    """What the runs on disk say about the planned ones.

    Args:
        configs: the planned ones; runs of other data and models are not read.
        runs_dir: where runs are.

    Raises:
        InputError: the folder cannot be listed.
    """

    def __init__(self, configs: Sequence[Config], runs_dir: Path) -> None:
        wanted = tuple({f"{config.data.name}-{config.model.name}-" for config in configs})
        runs = [run for run in find_runs(runs_dir.expanduser()) if run.path.name.startswith(wanted)]
        self._samples = [sample for run in runs if (sample := _sample(run)) is not None]
        self._keys: dict[int, tuple[str, str]] = {}

    def training(self, config: Config) -> float | None:
        """Seconds of all epochs; ``None`` if no run did the same."""
        key, _ = self._key(config)
        pools: dict[tuple[str, bool], list[float]] = {}
        for sample in self._samples:
            if sample.training == key:
                for kind, epochs in sample.epochs.items():
                    pools.setdefault(kind, []).extend(epochs)
        typical = {kind: median(epochs) for kind, epochs in pools.items()}
        total = 0.0
        for phase, validated in validations(config):
            other = typical.get((phase, not validated))
            seconds = typical.get((phase, validated), other)
            if seconds is None:
                return None
            total += seconds
        return total

    def rate(self, config: Config, metric: str, facts: Mapping[str, Any]) -> float | None:
        """Seconds per image of an attack; ``None`` if no run of this network was attacked so.

        Runs of the same training come first: how many images are robust changes the cost.

        Args:
            config: the planned run.
            metric: the attack's name; ``clean`` is the pass over the clean images.
            facts: what ``evaluation.describe`` says of it.
        """
        wanted = _costly(facts).items()
        training, network = self._key(config)
        for same in (lambda s: s.training == training, lambda s: s.network == network):
            rates = [
                rate
                for sample in filter(same, self._samples)
                for name, params, rate in sample.rates
                if name == metric and wanted <= params.items()
            ]
            if rates:
                return median(rates)
        return None

    def _key(self, config: Config) -> tuple[str, str]:
        if not self._samples:
            return "", ""
        if id(config) not in self._keys:
            device = setup.pick_device(config.runtime.device).type
            self._keys[id(config)] = _digests(config.container(), device)
        return self._keys[id(config)]


def _sample(run: Run) -> _Sample | None:
    """``None`` if the run is damaged or of another version, which is not the plan's to report."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it was built
    try:
        container = yaml.load(run.config_path.read_bytes(), loader)  # noqa: S506  both are safe
        status = run.status()
        device = str(status.facts["device"]).split(":")[0] if status else ""
        training, network = _digests(container, device)
        epochs: dict[tuple[str, bool], list[float]] = {}
        for row in run.read_metrics():
            kind = row["phase"], any(name.startswith("val_") for name in row)
            epochs.setdefault(kind, []).append(float(row["seconds"]))
        paths = sorted(run.evaluations.glob("*.json"))
        rates = [rate for path in paths for rate in _rates(json.loads(path.read_bytes()))]
    except Exception:
        return None
    return _Sample(training, network, epochs, rates)


def _rates(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], float]]:
    """Metric, parameters, seconds per image; the pass over all clean images is ``clean``."""
    seconds = record["meta"].get("seconds", {})
    if "clean" in seconds:
        yield "clean", {}, seconds["clean"] / max(entry["n"] for entry in record["entries"])
    for entry in record["entries"]:
        if entry["params"] and entry["metric"] in seconds:
            params = _costly(entry["params"])
            yield entry["metric"], params, seconds[entry["metric"]] / entry["n"]


def _digests(container: Mapping[str, Any], device: str) -> tuple[str, str]:
    """Of all that sets the cost of training, and of a forward pass."""
    data, runtime = container["data"], container["runtime"]
    forward = {
        "model": container["model"],
        "data": {key: data[key] for key in ("name", "source", "classes", "mean")},
        "channels_last": runtime["channels_last"],
        "device": device,
    }
    method = {key: value for key, value in container["method"].items() if key != "roles"}
    components = container["component"].items()
    step = {
        **forward,
        "method": {**method, "name": None},
        "component": {name: value for name, value in components if value != DISABLED},
        "split": [data[key] for key in ("val_size", "train_size", "drop_last")],
        "runtime": {key: value for key, value in runtime.items() if key != "device"},
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
            if key not in CHEAP
        }
    return [_costly(entry) for entry in node] if isinstance(node, (list, tuple)) else node


# The probe ------------------------------------------------------------------------------------


class Paces:
    """Seconds that passes take.

    Args:
        probed: seconds per image.
    """

    def __init__(self, probed: Mapping[Subject, Passes]) -> None:
        self._probed = probed

    def settle(self, bill: Bill) -> tuple[float, str]:
        """Seconds, and the worst basis among them."""
        seconds, bases = bill.seconds, ["measured"]
        for due in bill.dues:
            pace, basis = self.pace(due.subject)
            seconds += pace.dot(due.passes)
            bases.append(basis)
        return seconds, max(bases, key=BASES.index)

    def pace(self, subject: Subject) -> tuple[Passes, str]:
        """Seconds per image, and where they are from."""
        if subject in self._probed:
            return self._probed[subject], "probed"
        near = [s for s in self._probed if s.device.type == subject.device.type]
        if not near:
            speed = SPEED.get(subject.device.type, SPEED["cpu"])
            return COST * (subject.flops / speed), "assumed"

        def distance(other: Subject) -> tuple[bool, float, bool, float]:
            return (
                other.precision != subject.precision,
                abs(math.log(other.flops / subject.flops)),
                other.training != subject.training,
                abs(math.log(other.batch / subject.batch)),
            )

        nearest = min(near, key=distance)
        same = nearest.key == subject.key and nearest.precision == subject.precision
        pace = self._probed[nearest] * (subject.flops / nearest.flops)
        return pace, "probed" if same else "scaled"


def probe(dues: Sequence[Due], budget_s: float) -> dict[Subject, Passes]:
    """Seconds per image, of the subjects with most work first, as far as the time allows.

    Args:
        dues: the work.
        budget_s: seconds; a subject gets at most half of what is left.
    """
    work: Counter[Subject] = Counter()
    for due in dues:
        work[due.subject] += math.ceil(due.flops)
    for device in {subject.device for subject in work}:
        with contextlib.suppress(Exception):
            torch.zeros(1, device=device)  # starts CUDA, which takes as long as it takes
    deadline = time.perf_counter() + budget_s
    found: dict[Subject, Passes] = {}
    for subject, _ in work.most_common():
        left = deadline - time.perf_counter()
        guess, _ = Paces(found).pace(subject)
        if guess.forward > left / 4:
            continue
        with contextlib.suppress(Exception):  # too large for the device, or no such network
            found[subject] = _time(subject, left / 2)
    return found


def _time(subject: Subject, allowance: float) -> Passes:
    """Seconds per image of each kind of pass, within about ``allowance`` seconds."""
    end = time.perf_counter() + allowance
    config, device = subject.config, subject.device
    net = _build(config, config.model.spec, subject.size).to(device)
    if config.runtime.channels_last:
        net = net.to(memory_format=torch.channels_last)
    trial = Trial(net, subject)
    with trial.context():
        one = min(_seconds(device, lambda: trial.forward(1)) for _ in range(2))
        left = end - time.perf_counter()
        whole = one * (COST.search + (COST.train if subject.training else COST.forward))
        batch = min(subject.batch, int(left / (2 * whole)))
        if batch < 2:
            return COST * one
        middle = time.perf_counter() + left / 2
        search = _best(device, lambda: trial.search(batch), middle) / batch
        work = trial.train if subject.training else trial.forward
        other = _best(device, lambda: work(batch), end) / batch
    if subject.training:
        return Passes(search * COST.forward / COST.search, search, other)
    return Passes(other, search, search * COST.train / COST.search)


class Trial:
    """One network with images of noise, and the passes that a probe times.

    Args:
        net: to be thrown away.
        subject: how it is run.
    """

    def __init__(self, net: Net, subject: Subject) -> None:
        config, device = subject.config, subject.device
        self._net, self._subject = net, subject
        self._precision = precision_context(
            config.runtime.precision if subject.training else "fp32", device
        )
        self._searched = Folded(net).refresh() if subject.training else net
        self._optimizer = config.optim.build(net, lr=1e-6)
        rng = generator(0, "probe")
        shape = (subject.batch, len(config.data.mean), subject.size, subject.size)
        layout = torch.contiguous_format
        if subject.training and config.runtime.channels_last:
            layout = torch.channels_last
        self._x = torch.rand(shape, generator=rng).to(device, memory_format=layout)
        self._y = torch.randint(config.data.classes, shape[:1], generator=rng).to(device)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The switches of training or evaluation."""
        if self._subject.training:
            self._net.train()
            with setup.numerics(self._subject.config.runtime):
                yield
        else:
            with evaluating(self._net), exact_arithmetic(self._subject.device):
                yield

    def _logits(self, x: Tensor) -> Tensor:
        with self._precision():
            logits: Tensor = self._searched(x)
        return logits

    def forward(self, n: int) -> None:
        """Without a gradient."""
        with torch.no_grad():
            self._logits(self._x[:n])

    def search(self, n: int) -> None:
        """A step of PGD."""
        x, y, eps = self._x[:n], self._y[:n], self._x.new_full((n,), 0.03)
        pgd(lambda point: cross_entropy(self._logits(point), y), x, x, eps, eps / 4, 1, "linf")

    def train(self, n: int) -> None:
        """A step of the optimiser."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision():
            output = self._net.output(self._x[:n])
        loss = cross_entropy(self._net.loss_logits(output, self._y[:n]), self._y[:n]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _best(device: torch.device, work: Callable[[], object], until: float) -> float:
    """The shortest of a few runs; one at least, whatever the time."""
    found = [_seconds(device, work)]
    while len(found) < REPEATS and time.perf_counter() + found[-1] < until:
        found.append(_seconds(device, work))
    return min(found)
