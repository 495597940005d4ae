"""One run from config to result: data, network, training, evaluation, records.

The entry points are thin; this is what they call. A run is resumable at every step, and everything
it learns is on disk before it is printed.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ablation.config import experiment as configuration
from ablation.config.experiment import (
    CheckpointName,
    Config,
    EvaluationConfig,
    Launch,
    Weights,
    digest,
    load,
)
from ablation.config.parser import plain, show_fraction
from ablation.data import (
    DeviceLoader,
    Extent,
    ImageSet,
    Split,
    check_batch_size,
    check_labels,
    check_sizes,
    load_split,
    save_split,
    stratified_split,
    to_float,
)
from ablation.errors import (
    DONE,
    INTERRUPTED,
    JOB_FAILED,
    ConfigError,
    InputError,
    InterruptedRunError,
    NonFiniteError,
)
from ablation.evaluation import Evaluation, Pgd, Request, SplitName, evaluate
from ablation.jobs.monitor import Monitor, fixed_subset
from ablation.models import Net, build_model
from ablation.numerics.modes import buffers, evaluating, mode, restore_buffers
from ablation.numerics.precision import fastest_exact_matmul, precision_context
from ablation.random import generator
from ablation.runs.checkpoint import Snapshot, load_into, load_weights_file
from ablation.runs.directory import Run, State, stop_on_signals
from ablation.runs.progress import Progress, summary_table
from ablation.runs.tracking import Panel, Tracker, TrackingConfig, start
from ablation.training.engine import Engine, Recipe, Validate
from ablation.training.method import Method
from ablation.types import Norm

EVAL_BATCH = 500
"""Images attacked at once during selection."""


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed config, its data folder and device; nothing is read or started."""
    config, problems = configuration.check(container)
    if config is None:
        return problems
    extent = config.data.source.extent(config.data_root)
    return [*problems, *surroundings(config), *size_problems(config, extent)]


def surroundings(config: Config) -> list[str]:
    """Problems outside the config: the run to start from, the data folder, the device."""
    return [
        *configuration.init_problems(config),
        *config.data.source.check(config.data_root),
        *device_problems(config.runtime.device),
    ]


def size_problems(config: Config, extent: Extent | None) -> list[str]:
    """Do the split and the batch fit the training set, if its size is known before it is read?"""
    if extent is None:
        return []
    node, rest = config.data, extent.train - config.data.val_size
    try:
        check_sizes(extent.train, node.classes, node.val_size, node.train_size)
        check_batch_size(config.batch_size, rest if node.train_size is None else node.train_size)
    except InputError as error:
        return [str(error)]
    return []


def device_problems(name: str) -> list[str]:
    """Is the device there?"""
    if name in ("auto", "cpu"):
        return []
    if not name.startswith("cuda"):
        return [f"runtime.device={name}: choose auto, cpu, cuda or cuda:<index>"]
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        return [f"runtime.device={name}: {count} CUDA devices are visible; set runtime.device=auto"]
    return []


def pick_device(name: str) -> torch.device:
    """The device a name stands for; ``auto`` prefers a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def numerics(runtime: configuration.RuntimeConfig) -> Iterator[None]:
    """Global switches of a run, put back afterwards."""
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


def eval_id(evaluation: EvaluationConfig, eps: float, norm: Norm, weights: Weights) -> str:
    """Hash of one evaluation as it takes effect; the checkpoint's name is not part of it.

    Args:
        evaluation: the attacks; what it leaves open is filled in by the rest.
        eps: radius unless the evaluation has its own.
        norm: likewise.
        weights: raw or average.
    """
    node = plain(evaluation)
    del node["checkpoints"], node["val"]
    eps = eps if evaluation.eps is None else evaluation.eps
    return digest({**node, "eps": eps, "norm": evaluation.norm or norm, "weights": weights})


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
    """Read, check and split.

    Raises:
        InputError: the data do not fit the config.
    """
    node = config.data
    train, test = node.source.load(config.data_root)
    for images in (train, test):
        check_labels(images, node.classes, "data.classes")
    channels = train.images.shape[1]
    if config.model.normalize and len(node.mean) != channels:
        raise InputError(
            f"data.mean has {len(node.mean)} entries, the images have {channels} channels; "
            f"give data.mean and data.std one entry per channel"
        )
    split = stratified_split(train.labels, node.val_size, node.split_seed, node.train_size)
    return Images(train.to(device), test, split)


def build_net(config: Config, images: ImageSet, method: Method, device: torch.device) -> Net:
    """The model for these images, initialised from the seed, on the device."""
    node = config.model
    net = build_model(
        node.spec,
        channels=images.images.shape[1],
        size=images.images.shape[2],
        classes=config.data.classes,
        head=method.head or node.head,
        mean=config.data.mean if node.normalize else None,
        std=config.data.std if node.normalize else None,
        seed=config.seed,
    ).to(device)
    if config.runtime.channels_last:
        net = net.to(memory_format=torch.channels_last)
    return net


class RunStore:
    """``engine.Store`` in a run directory."""

    def __init__(self, run: Run, model: str) -> None:
        self._run, self._model = run, model

    def save(self, snapshot: Snapshot) -> None:
        """Make a resumable checkpoint durable."""
        self._run.checkpoints.save(snapshot)

    def load(self) -> Snapshot | None:
        """The newest intact one; says so if it had to fall back."""
        found = self._run.checkpoints.load_latest()
        if found is None:
            return None
        snapshot, warnings = found
        for warning in warnings:
            sys.stderr.write(f"warning: {warning}\n")
        return snapshot

    def keep_weights(
        self, name: str, net: Net, average: torch.nn.Module | None, epoch: int, step: int
    ) -> None:
        """Write ``best_robust``, ``best_clean`` or ``last``."""
        averaged = None if average is None else average.state_dict()
        meta = {"epoch": str(epoch), "step": str(step), "model": self._model}
        self._run.checkpoints.save_weights(name, net.state_dict(), averaged, meta=meta)

    def rewind_metrics(self, epoch: int) -> None:
        """Drop the lines of this epoch and later ones."""
        self._run.truncate_metrics(epoch)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write the line of an epoch."""
        self._run.log_metrics(row)

    def beat(self) -> None:
        """A sign of life."""
        self._run.heartbeat()


def validator(config: Config, images: Images) -> Validate:
    """Clean accuracy on all validation images, PGD accuracy on a fixed set of them."""
    val = images.of("val") if config.data.val_size else None
    node = config.selection
    attack = Pgd(node.attack.steps, node.attack.step_size, node.attack.start, n=node.n)
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
        found = evaluate(net, val.images, val.labels, request)
        return {entry.metric: entry.value for entry in found.entries}

    return validate


def monitor(config: Config, images: Images) -> Monitor | None:
    """What looks at the run's margins at each validation: a fixed subset of the images.

    Of the validation images, or of the training images (as they are, not augmented) where there
    are none.
    """
    node = config.monitor
    if not node.enabled:
        return None

    def some(split: SplitName) -> ImageSet:
        return fixed_subset(images.of(split), node.n, config.data.split_seed)

    split: SplitName = "val" if config.data.val_size else "train"
    measured: tuple[SplitName, ...] = ("train", "test") if node.effective_margin else ()
    return Monitor(some(split), split, config.norm, {name: some(name) for name in measured})


def train(container: Mapping[str, Any]) -> int:
    """Train and evaluate one config, or continue, or show what is there.

    Returns:
        An exit code; see ``ablation.errors``.

    Raises:
        InputError: something the user gave cannot be used.
    """
    config = load(container)
    check_plan(config)
    run = Run(config.run_dir, config.train_id)
    status = run.status()
    if status is not None and status.state == "done" and not missing(config, run):
        if moved(config, run):
            run.check_data(load_images(config, torch.device("cpu")).fingerprint())
        sys.stdout.write(f"{config.run_name} is done\n{result_table(run)}\n")
        return DONE
    if status is not None and status.state == "failed" and not config.retry:
        sys.stderr.write(
            f"{config.run_name} failed before: {status.error}\n"
            f"change the config, or run the same command with retry=true: it goes on from the "
            f"last good checkpoint\n"
        )
        return JOB_FAILED
    problems = check(container)
    if is_trained(run):
        problems += weights_problems(config, run)
    if problems:
        raise ConfigError(problems)
    with run.open(yaml.safe_dump(config.container(), sort_keys=False)):
        finished = status is not None and status.state == "done"
        if config.launch is not None:
            note_launch(run, config.launch)
        return supervised(
            run,
            lambda stop: train_and_evaluate(config, run, stop),
            stand="done" if finished else "interrupted",
        )


def check_plan(config: Config) -> None:
    """Is this the job that the sweeper planned?

    Raises:
        InputError: code or files changed between the plan and the (queued) job.
    """
    planned = config.launch.planned_id if config.launch else config.train_id
    if planned != config.train_id:
        raise InputError(
            f"launch.planned_id={planned}: this job is {config.train_id}; the code or a config "
            f"file changed after the sweep was planned, start the sweep again"
        )


def note_launch(run: Run, launch: Launch) -> None:
    """Keep which table and arms the run serves: reports find runs with overrides by it.

    Raises:
        InputError: the directory cannot be written.
    """
    known = recorded_launches(run)
    entry = {key: value for key, value in asdict(launch).items() if key != "planned_id"}
    if launch.table is not None and entry not in known:
        run.note(launches=[*known, entry])


def recorded_launches(run: Run) -> list[dict[str, Any]]:
    """Tables, arms and overrides that asked for this run."""
    status = run.status()
    return [] if status is None else list(status.facts.get("launches", []))


def moved(config: Config, run: Run) -> bool:
    """Does the command name another data folder than the run was trained from?"""
    saved = yaml.safe_load(run.config_path.read_text()) if run.config_path.is_file() else {}
    before = Path(str(saved.get("data_dir", config.data_dir))).expanduser()
    return before.resolve() != config.data_root.resolve()


def supervised(
    run: Run,
    work: Callable[[Callable[[], bool]], object],
    training: bool = True,
    stand: State = "interrupted",
) -> int:
    """Do the work of a run and record how it ended.

    Args:
        run: its directory, locked.
        work: gets a function that says whether a signal asked to stop.
        training: false leaves the run's status alone: a later evaluation cannot fail a run.
        stand: the state to go back to if something the user gave cannot be used; a run that
            was ``done`` stays so whatever happens to a later evaluation.

    Returns:
        An exit code. A scheduler's signal handler may leave with its own, after the run was saved.
    """

    def record(state: State, **facts: str) -> None:
        if training:
            run.set_status(stand if stand == "done" and state != "running" else state, **facts)

    try:
        with stop_on_signals() as signals:
            record("running")
            work(lambda: signals.requested)
    except InterruptedRunError as error:
        record("interrupted", error=str(error))
        sys.stderr.write(f"{error}\n")
        if signals.hand_on():  # submitit requeues and exits, but lets SIGTERM pass
            return supervised(run, work, training, stand)
        return INTERRUPTED
    except KeyboardInterrupt:
        record("interrupted", error="stopped at once by a second Ctrl-C")
        return INTERRUPTED
    except NonFiniteError as error:
        record("failed", error=str(error), term=error.term)
        sys.stderr.write(f"failed: {error}; this run has no result\n")
        return JOB_FAILED
    except InputError as error:
        record(stand, error=str(error))
        raise
    except Exception as error:
        record("failed", error=f"{type(error).__name__}: {error}")
        sys.stderr.write(traceback.format_exc())
        return JOB_FAILED
    record("done")
    return DONE


def checkpoints(config: Config) -> list[CheckpointName]:
    """The weights that the config asks to evaluate."""
    return config.evaluation.checkpoints or [config.selected]


def chosen_weights(config: Config) -> Weights:
    """Averaged where the run averages, unless the evaluation says otherwise."""
    return config.evaluation.weights or ("average" if config.average is not None else "raw")


def evaluations(config: Config) -> list[EvaluationConfig]:
    """What the config asks for: its evaluation, and the parts of it for images of other splits.

    These are the measures with a split of their own, and what ``val`` lists.
    """
    node = config.evaluation
    parts: dict[SplitName, list[str]] = {node.split: []}
    for name, attack in node.attacks.items():
        own: SplitName | None = getattr(attack, "split", None)
        parts.setdefault(own or node.split, []).append(name)
    found = [_on(config, split, names) for split, names in (*parts.items(), ("val", node.val))]
    return [part for part in found if part.attacks]


def _on(config: Config, split: SplitName, names: Sequence[str]) -> EvaluationConfig:
    """Metrics of the evaluation on the images of a split; all of them if it has no more."""
    node = config.evaluation
    attacks = {name: node.attacks[name] for name in names}
    if split == node.split:
        return replace(node, attacks=attacks)
    size = {"val": config.data.val_size, "train": config.data.train_size}.get(split)
    whole = node.n is None or (size is not None and node.n >= size)
    return replace(node, split=split, attacks=attacks, n=None if whole else node.n)


def missing(config: Config, run: Run) -> list[tuple[CheckpointName, EvaluationConfig]]:
    """Checkpoints and their evaluations that are not on disk."""
    weights = chosen_weights(config)
    return [
        (name, node)
        for node in evaluations(config)
        for name in checkpoints(config)
        if not run.has_evaluation(name, eval_id(node, config.eps, config.norm, weights))
    ]


def train_and_evaluate(config: Config, run: Run, stop: Callable[[], bool]) -> None:
    """The work of a run, from wherever it stands."""
    device = pick_device(config.runtime.device)
    run.set_status("running", device=str(device))
    announce(config, run, device)
    images = load_images(config, device)
    run.check_data(images.fingerprint())
    if run.split_path.is_file():
        check_split(run.split_path, images.split)
    else:
        save_split(run.split_path, images.split)
    tracker = start_tracking(config.tracking, config, run, "train")
    code = JOB_FAILED
    try:
        if not is_trained(run):
            net = build_net(config, images.train, config.phases[-1].method, device)
            with numerics(config.runtime):
                fit(config, run, net, images, stop, tracker)
            run.set_status("running", trained=True)
            del net
        for name, node in missing(config, run):
            evaluate_checkpoint(config, run, name, node, images, device, stop, tracker)
        show_examples(config, run, images, device, tracker)
        code = DONE
    finally:
        tracker.finish(code)
    sys.stdout.write(f"{result_table(run)}\nresults in {run.path}\n")
    if config.tracking.mode == "offline":
        sys.stdout.write(f"to see it in W&B: wandb sync {run.path / 'wandb'}/offline-run-*\n")


def is_trained(run: Run) -> bool:
    """Is the training over? Then its weights are all that is needed."""
    status = run.status()
    return status is not None and bool(status.facts.get("trained"))


def weights_problems(config: Config, run: Run) -> list[str]:
    """What its evaluation lacks; only a run trained to the end stands for its best weights."""
    if not is_trained(run):
        return [f"run={run.path}: it is not trained to the end; finish its training first"]
    return [
        f"run={run.path}: its weights {name} were deleted; move the folder away to train it anew"
        for name in checkpoints(config)
        if not run.checkpoints.has(name)
    ]


def fit(
    config: Config,
    run: Run,
    net: Net,
    images: Images,
    stop: Callable[[], bool],
    tracker: Tracker,
) -> None:
    """Train to the end of the last phase."""
    if config.init_from is not None:  # a checkpoint of this run, if there is one, wins
        start_from(net, Path(config.init_from).expanduser())
    device = next(net.parameters()).device
    if not config.data.drop_last:
        check_last_batch(net, images, config.batch_size)
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
        select_every=config.selection.every,
        compile=config.runtime.compile,
    )

    validate, watch = validator(config, images), monitor(config, images)

    def look(net: torch.nn.Module) -> Mapping[str, float | str]:
        return {**validate(net), **({} if watch is None else watch(net))}

    def on_epoch(row: Mapping[str, Any], model: torch.nn.Module) -> None:
        del model
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
        tracker.log(numbers, epoch=row["epoch"])
        if watch is not None and "margin_split" in row:
            tracker.histogram("margins", watch.margins, epoch=row["epoch"])

    store = RunStore(run, config.model.name)
    Engine(net, loader, recipe, look, store, Progress(), stop, on_epoch).fit()


def check_last_batch(net: Net, images: Images, batch_size: int) -> None:
    """Some networks cannot normalise a batch of one image.

    Raises:
        InputError: the last batch would hold one, and this network is such.
    """
    count = len(images.split.train)
    if count % batch_size != 1:
        return
    saved = buffers(net)
    try:
        with mode(net, training=True), torch.no_grad():
            net(to_float(images.train.images[:1].to(next(net.parameters()).device)))
    except ValueError as error:
        raise InputError(
            f"batch_size={batch_size}: the last batch of {count} images would hold a single one, "
            f"which BatchNorm cannot normalise; set data.drop_last=true"
        ) from error
    finally:
        restore_buffers(net, saved)


def own_normalisation(net: Net) -> dict[str, Tensor]:
    """The constants of a network's input normalisation; empty if it has none."""
    return {name: value for name, value in net.state_dict().items() if name in ("mean", "std")}


def start_from(net: Net, source: Path) -> None:
    """Take another run's last weights (averaged, where it averaged)."""
    folder = source / "checkpoints"
    averaged = folder / "last-average.safetensors"
    path = averaged if averaged.is_file() else folder / "last.safetensors"
    weights, _ = load_weights_file(path)
    # The constants of the normalisation are this config's.
    load_into(net, {**weights, **own_normalisation(net)}, str(path))


def check_split(path: Path, split: Split) -> None:
    """A resumed run must see the same images."""
    before = load_split(path)
    if not (torch.equal(before.train, split.train) and torch.equal(before.val, split.val)):
        raise InputError(f"{path} holds another split: the data changed; set runs_dir=... anew")


@dataclass(frozen=True)
class Subject:
    """What is attacked and how: a named set of weights, the threat, the evaluation.

    Attributes:
        checkpoint: name in the records.
        weights: raw or average.
        eps: radius unless the evaluation has its own.
        norm: likewise.
        evaluation: the attacks.
        scale: full or smoke.
        deviations: what the run's command line changed in its table.
    """

    checkpoint: str
    weights: Weights
    eps: float
    norm: Norm
    evaluation: EvaluationConfig
    scale: str = "full"
    deviations: Sequence[str] = ()

    @property
    def key(self) -> str:
        """``eval_id``."""
        return eval_id(self.evaluation, self.eps, self.norm, self.weights)

    def record(self, run: Run, net: Net, images: ImageSet, stop: Callable[[], bool]) -> Evaluation:
        """Attack and write the result into a run directory."""
        node = self.evaluation
        request = Request(
            attacks=node.attacks,
            eps=self.eps if node.eps is None else node.eps,
            norm=self.norm if node.norm is None else node.norm,
            n=node.n,
            batch_size=node.batch_size,
            seed=node.seed,
            split=node.split,
        )
        partial = run.evaluations / f"{self.checkpoint}-{self.key}.partial"
        found = evaluate(
            net,
            images.images,
            images.labels,
            request,
            progress=report,
            should_stop=stop,
            partial=partial,
        )
        entries = [
            {"checkpoint": self.checkpoint, "weights": self.weights, **asdict(entry)}
            for entry in found.entries
        ]
        meta = {
            "seconds": dict(found.seconds),
            "scale": self.scale,
            "deviations": list(self.deviations),
        }
        subject = {"checkpoint": self.checkpoint, "weights": self.weights, "split": node.split}
        checks = [{**subject, **asdict(check)} for check in found.checks]
        run.add_evaluation(
            self.checkpoint, self.key, entries, found.examples, found.flags, meta, checks
        )
        partial.unlink(missing_ok=True)
        return found


def report(metric: str, done: int, total: int) -> None:
    """One line when an attack has seen all images."""
    if done == total:
        sys.stderr.write(f"  {metric}: {total} images\n")


def evaluate_checkpoint(
    config: Config,
    run: Run,
    name: CheckpointName,
    node: EvaluationConfig,
    images: Images,
    device: torch.device,
    stop: Callable[[], bool],
    tracker: Tracker,
) -> None:
    """Attack one checkpoint of a run and add the result to its records."""
    weights = chosen_weights(config)
    net = build_net(config, images.train, config.phases[-1].method, device)
    load_into(net, run.checkpoints.load_weights(name, weights == "average"), name)
    changed = [text for entry in recorded_launches(run) for text in entry["overrides"]]
    subject = Subject(name, weights, config.eps, config.norm, node, config.scale, changed)
    values = summary_of(subject.record(run, net, images.of(node.split), stop))
    tracker.summary({f"{name}/{_summary_key(k, node.split)}": v for k, v in values.items()})
    flags = (run.result() or {}).get("flags", ())
    tracker.summary({"flags": len(flags), "flags_text": "; ".join(flags)})


def _summary_key(metric: str, split: SplitName) -> str:
    """``val_clean`` is of validation images; ``margin_train`` says its split itself."""
    named = split == "test" or metric.endswith(f"_{split}")
    return metric if named else f"{split}_{metric}"


def summary_of(found: Evaluation) -> dict[str, Any]:
    """An evaluation's numbers by metric, and what its checks found.

    Those not run are left out: another evaluation of the same weights may have run them.
    """
    values: dict[str, Any] = {entry.metric: entry.value for entry in found.entries}
    for check in found.checks:
        if check.outcome != "not run":
            values[f"checks/{check.name}"] = check.outcome
        values |= {f"checks/{check.name}/{key}": value for key, value in check.values.items()}
    return values


def show_examples(
    config: Config, run: Run, images: Images, device: torch.device, tracker: Tracker
) -> None:
    """A few adversarial images of the selected weights, for the dashboard; never test images."""
    count = config.tracking.images
    if config.tracking.mode == "disabled" or count == 0:
        return
    net = build_net(config, images.train, config.phases[-1].method, device)
    averaged = config.average is not None
    load_into(net, run.checkpoints.load_weights(config.selected, averaged), config.selected)
    index = (images.split.val if config.data.val_size else images.split.train)[:count]
    chosen = images.train.subset(index.to(images.train.images.device))
    x, y = to_float(chosen.images.to(device)), chosen.labels.to(device)
    attack = Pgd(20, config.selection.attack.step_size, "uniform")
    with evaluating(net):
        rng = generator(config.seed, "panels", 0, device)
        x_adv = attack(net, x, y, config.eps, config.norm, rng)
        before, after = net(x).argmax(1).tolist(), net(x_adv).argmax(1).tolist()
    panels = [
        Panel(clean.cpu(), adversarial.cpu(), f"label {label}: {was} -> {became}")
        for clean, adversarial, label, was, became in zip(
            x, x_adv, y.tolist(), before, after, strict=True
        )
    ]
    tracker.images("adversarial", panels)


def start_tracking(node: TrackingConfig, config: Config, run: Run, job_type: str) -> Tracker:
    """W&B beside the local files: seeds of one arm form a group."""
    suffix = "" if job_type == "train" else f"-{job_type}"
    launches = recorded_launches(run)
    tables = [f"table:{entry['table']}" for entry in launches if entry["table"]]
    rows = [f"row:{arm}" for entry in launches for arm in entry["arms"]]
    smoke = ["smoke"] if config.scale == "smoke" else []
    return start(
        node,
        run_dir=run.path,
        run_id=config.run_name + suffix,
        name=config.run_name + suffix,
        group=config.arm_id,
        job_type=job_type,
        tags=[*node.tags, *tables, *rows, *smoke],
        settings=config.container(),
    )


def announce(config: Config, run: Run, device: torch.device) -> None:
    """What is about to happen, in a few lines."""
    phases = " + ".join(f"{phase.epochs} {phase.name}" for phase in config.phases)
    switched = [name for name, component in config.component.items() if component is not None]
    smoke = "  SMOKE RUN: its numbers mean nothing" if config.scale == "smoke" else ""
    lines = [
        f"run     {run.path}{smoke}",
        f"method  {config.method.name}" + (f" with {', '.join(switched)}" if switched else ""),
        f"data    {config.data.name}, model {config.model.name}, {phases} epochs on {device}",
        f"threat  {config.norm}, eps {show_fraction(config.eps)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def checks_line(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many checks passed, tripped, or were run by none of a run's evaluations."""
    outcomes: dict[str, set[str]] = {}
    for check in checks:
        outcomes.setdefault(check["name"], set()).add(check["outcome"])
    worst = [
        next(name for name in ("tripped", "passed", "not run") if name in found)
        for found in outcomes.values()
    ]
    counts = (f"{worst.count(name)} {name}" for name in ("passed", "tripped", "not run"))
    return f"checks: {', '.join(counts)}"


def result_table(run: Run) -> str:
    """The entries of a run as aligned text, warnings below."""
    result = run.result()
    if result is None:
        return f"{run.path.name}: nothing is evaluated yet"
    rows = [
        (
            entry["checkpoint"] + ("" if entry["weights"] == "raw" else " (average)"),
            entry["metric"],
            entry["split"],
            "-" if entry["value"] is None else f"{entry['value']:.2f}",
            entry["unit"],
            str(entry["n"]),
            show_fraction(entry["params"]["eps"]) if "eps" in entry["params"] else "",
        )
        for entry in result["entries"]
    ]
    header = ("checkpoint", "metric", "split", "value", "unit", "n", "eps")
    table = summary_table(run.path.name, rows, header)
    marks = ["SMOKE RUN: these numbers mean nothing"] if result["scale"] == "smoke" else []
    marks += [f"differs from its table: {text}" for text in result["deviations"]]
    marks += [checks_line(result["checks"])] if "checks" in result else []
    return "\n".join([table, *marks, *(f"warning: {flag}" for flag in result["flags"])])
