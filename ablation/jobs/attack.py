"""Attack a set of weights and record the result in its run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ablation.config.evaluations import chosen_weights, eval_id
from ablation.config.experiment import CheckpointName, Config, EvaluationConfig, Weights
from ablation.data import ImageSet, to_float
from ablation.errors import InterruptedRunError
from ablation.evaluation import Evaluation, Pgd, Request, Source, evaluate
from ablation.jobs.pictures import Adversarial, sheet
from ablation.jobs.setup import Images, build_net
from ablation.jobs.transfer import Origin, transfer_check
from ablation.models import Net
from ablation.numerics.modes import evaluating
from ablation.output import say
from ablation.random import generator
from ablation.runs.columns import Column, named
from ablation.runs.directory import Run
from ablation.runs.files import atomic_write_bytes, discard
from ablation.runs.launches import recorded_launches
from ablation.runs.progress import AttackProgress
from ablation.runs.state_dicts import load_into
from ablation.runs.tracking import Panel, Tracker
from ablation.types import Norm

WORKER_PATIENCE = 60.0
"""Seconds that a worker waits for another one to write its results."""
PICTURED = 8
"""Images in ``adversarial.png``."""


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature."""

    temperature: Tensor

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net = net
        parameter = next(net.parameters())
        self.register_buffer("temperature", parameter.new_tensor(temperature))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of points [N, C, H, W]."""
        logits: Tensor = self.net(x)
        return logits / self.temperature


@dataclass(frozen=True)
class Subject:
    """An attack job: a named set of weights, the threat model, the evaluation.

    Attributes:
        checkpoint: name in the records.
        weights: raw or average.
        eps: radius unless the evaluation has its own.
        norm: of the perturbation, unless the evaluation has its own.
        evaluation: the attacks.
        scale: full or smoke.
        deviations: what the run's command line changed in its table.
        notes: what its components have every number say.
        origin: the run on whose network the attacks search; ``None`` means the weights' own.
    """

    checkpoint: str
    weights: Weights
    eps: float
    norm: Norm
    evaluation: EvaluationConfig
    scale: str = "full"
    deviations: Sequence[str] = ()
    notes: Sequence[str] = ()
    origin: Origin | None = None

    @property
    def key(self) -> str:
        """``eval_id``."""
        source = None if self.origin is None else self.origin.key
        return eval_id(self.evaluation, self.eps, self.norm, self.weights, source)

    @property
    def threat(self) -> tuple[float, Norm]:
        """Radius and norm in effect."""
        node = self.evaluation
        eps = self.eps if node.eps is None else node.eps
        return eps, self.norm if node.norm is None else node.norm

    def record(
        self,
        run: Run,
        net: Net,
        images: ImageSet,
        stop: Callable[[], bool],
        source: Source | None = None,
        *,
        shared: bool = False,
    ) -> Evaluation | None:
        """Attack and write the result into a run directory.

        Args:
            run: the directory.
            net: the network.
            images: of the evaluation's split.
            stop: whether a signal asked to stop.
            source: the network of ``origin``.
            shared: other processes do the same and share the batches; the caller holds no lock.

        Returns:
            The result; ``None`` if another process wrote it.
        """
        node = self.evaluation
        eps, norm = self.threat
        request = Request(
            attacks=node.attacks,
            eps=eps,
            norm=norm,
            n=node.n,
            batch_size=node.batch_size,
            seed=node.seed,
            split=node.split,
        )
        partial = run.evaluations / f"{self.checkpoint}-{self.key}.partial"
        count = len(images) if node.n is None else node.n
        by = f" by examples of {source.name}" if source else ""
        say(f"attack  {self.checkpoint} weights on {count} {node.split} images{by}")
        progress = AttackProgress()
        try:
            found = evaluate(
                self._tempered(net),
                images.images,
                images.labels,
                request,
                progress=progress,
                should_stop=lambda: stop() or (shared and self._is_in(run)),
                partial=partial,
                shared=shared,
                source=source and replace(source, net=self._tempered(source.net)),
            )
        except InterruptedRunError:
            if shared and self._is_in(run):
                return None
            raise
        finally:
            progress.close()
        with run.reopen(WORKER_PATIENCE) if shared else nullcontext():
            if not (shared and self._is_in(run)):
                found = self._add(run, found, source)
            discard(partial)
        return found

    def _is_in(self, run: Run) -> bool:
        return run.has_evaluation(self.checkpoint, self.key)

    def _add(self, run: Run, found: Evaluation, source: Source | None) -> Evaluation:
        """Write a result into the run's records; returns it with what the transfer check says."""
        node = self.evaluation
        entries = [
            {
                "checkpoint": self.checkpoint,
                "weights": self.weights,
                **asdict(entry),
                "params": {**entry.params, **node.facts},
            }
            for entry in found.entries
        ]
        meta = {
            "seconds": dict(found.seconds),
            "scale": self.scale,
            "deviations": list(self.deviations),
        }
        if source is not None:
            check = transfer_check(run, (self.checkpoint, self.weights), found, node.facts)
            warned = [f"{source.name}: {check.text}"] if check.outcome == "tripped" else []
            found = replace(found, checks=(check,), flags=(*found.flags, *warned))
        subject = {"checkpoint": self.checkpoint, "weights": self.weights, "split": node.split}
        checks = [{**subject, **asdict(check)} for check in found.checks]
        flags = [*self.notes, *found.flags]
        run.add_evaluation(self.checkpoint, self.key, entries, found.examples, flags, meta, checks)
        return found

    def _tempered(self, net: nn.Module) -> nn.Module:
        temperature = self.evaluation.temperature
        return net if temperature == 1 else Tempered(net, temperature)


def evaluate_checkpoint(
    config: Config,
    run: Run,
    name: CheckpointName,
    node: EvaluationConfig,
    images: Images,
    device: torch.device,
    stop: Callable[[], bool],
    tracker: Tracker,
    origin: Origin | None = None,
    *,
    shared: bool = False,
) -> None:
    """Attack one checkpoint of a run (by examples of ``origin``) and add to its records.

    With ``shared`` other processes do the same and share the batches.
    """
    weights = chosen_weights(config)
    net = build_net(config, images.train, config.phases[-1].method, device)
    load_into(net, run.checkpoints.load_weights(name, weights == "average"), name)
    changed = changed_overrides(run)
    subject = Subject(
        *(name, weights, config.eps, config.norm, node, config.scale, changed, config.notes),
        origin=origin,
    )
    source = None if origin is None else origin.source(images, device)
    found = subject.record(run, net, images.of(node.split), stop, source, shared=shared)
    if found is not None:
        values = summary_of(found)
        tracker.summary({f"{name}/{Column(k, node.split).name}": v for k, v in values.items()})
    flags = (run.result() or {}).get("flags", ())
    tracker.summary({"flags": len(flags), "flags_text": "; ".join(flags)})


def changed_overrides(run: Run) -> list[str]:
    """What the command lines of a run changed in its tables."""
    return [text for entry in recorded_launches(run) for text in entry["overrides"]]


def summary_of(found: Evaluation) -> dict[str, Any]:
    """An evaluation's numbers by metric, and what its checks found.

    Those not run are left out: another evaluation of the same weights may have run them.
    """
    values: dict[str, Any] = {
        named(entry.metric, entry.params): entry.value for entry in found.entries
    }
    for check in found.checks:
        if check.outcome != "not run":
            values[f"checks/{check.name}"] = check.outcome
        values |= {f"checks/{check.name}/{key}": value for key, value in check.values.items()}
    return values


def show_examples(
    config: Config, run: Run, images: Images, device: torch.device, tracker: Tracker
) -> None:
    """A few adversarial images of the selected weights, never test images.

    As ``adversarial.png`` in the run's folder, unless that is there, and for the dashboard.
    """
    tracked = 0 if config.tracking.mode == "disabled" else config.tracking.images
    drawn = run.picture_path.is_file()
    if drawn and tracked == 0:
        return
    found = _adversarial(config, run, images, device, max(tracked, PICTURED))
    if not drawn:
        extent = config.data.source.extent(config.data_root)
        names = extent.names if extent else ()
        atomic_write_bytes(run.picture_path, sheet(found[:PICTURED], names))
    panels = [
        Panel(each.clean, each.adversarial, f"label {each.label}: {each.before} -> {each.after}")
        for each in found[:tracked]
    ]
    tracker.images("adversarial", panels)


def _adversarial(
    config: Config, run: Run, images: Images, device: torch.device, count: int
) -> list[Adversarial]:
    """The first validation (or training) images under PGD-20: the same at every call."""
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
    return [
        Adversarial(*values)
        for values in zip(x.cpu(), x_adv.cpu(), y.tolist(), before, after, strict=True)
    ]
