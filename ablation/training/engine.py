"""The one training loop: phases, epochs, steps, selection, checkpoints, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ablation.data.loader import DeviceLoader
from ablation.errors import InterruptedRunError, LostRankError, NonFiniteError
from ablation.models.folding import Folded
from ablation.models.net import Net
from ablation.numerics.compiled import compile_passes
from ablation.numerics.graphs import Graphs
from ablation.numerics.precision import Precision
from ablation.numerics.synchronised import batch_statistics
from ablation.ranks import present
from ablation.runs.checkpoint import Snapshot
from ablation.runs.state_dicts import load_into
from ablation.training.memory import Memories, remembering
from ablation.training.method import Phase
from ablation.training.micro_batches import Accumulate, MicroBatches
from ablation.training.optim import Optim, peak, rates
from ablation.training.recorded import EpochRecord
from ablation.training.searches import Searches
from ablation.training.step import StepLog, train_step
from ablation.types import Average, AverageSpec, Batch, Clock, Fast, Schedule, Statistics

SYNC_EVERY = 50
"""Steps between two looks at the finite flags on an accelerator: a look waits for the device."""


@dataclass(frozen=True)
class Recipe:
    """How a run trains.

    Attributes:
        phases: in order; at least one.
        optim: the optimiser.
        schedule: learning rate over a phase (over all phases while ``optim`` is kept).
        lr: its peak.
        average: which weights are evaluated; ``None`` means the raw ones.
        seed: keys every random draw.
        precision: context of every training forward.
        classes: K, for memories of logits.
        select_every: epochs between two validations; the last epoch is always validated.
        compile: torch.compile the body, and its folded copy that attacks search on, for whole
            batches (``numerics.compiled``).
        statistics: BatchNorm's, where several ranks train.
        accumulate: in how many parts each batch is taken, one after the other.
        fast: searches are captured as CUDA graphs where they can be (``auto``), or not (``off``).
    """

    phases: Sequence[Phase]
    optim: Optim
    schedule: Schedule
    lr: float
    average: AverageSpec | None
    seed: int
    precision: Precision
    classes: int
    select_every: int
    compile: bool = False
    statistics: Statistics = "synchronised"
    accumulate: Accumulate = 1
    fast: Fast = "auto"


Validate = Callable[[torch.nn.Module], Mapping[str, float | str]]
"""Evaluates a network after an epoch: ``val_clean`` and ``val_robust``, accuracies on validation
images in percent, choose the best epochs; further entries are only logged."""


class Store(Protocol):
    """Where a run keeps checkpoints, weights and metrics: ``ablation.runs.directory.Run``."""

    def save(self, snapshot: Snapshot) -> None:
        """Begin to write a resumable checkpoint; the tensors may change after the call."""

    def settle(self) -> None:
        """Wait until all that was saved and kept is durable."""

    def load(self) -> Snapshot | None:
        """Read the newest intact checkpoint; ``None`` if there is none."""

    def keep_weights(
        self,
        name: str,
        net: Net,
        average: torch.nn.Module | None,
        epoch: int,
        step: int,
        recorded: Mapping[str, Tensor],
    ) -> None:
        """Begin to write ``best_robust``, ``best_clean`` or ``last``, with ``EpochRecord.columns``.

        As in ``save``, the tensors may change after the call.
        """

    def rewind_metrics(self, epoch: int) -> None:
        """Drop the metrics of this epoch and later ones."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Append an epoch's metrics."""


class Reporter(Protocol):
    """Progress display."""

    def start(self, phases: Sequence[int], steps_per_epoch: int, done_steps: int) -> None:
        """Open the display before the first step; ``phases`` are the epochs of each."""

    def step(self, n_images: int) -> None:
        """Count a step of ``n_images``; must not touch the device."""

    def epoch_end(self, row: Mapping[str, float]) -> None:
        """Show an epoch's metrics."""

    def close(self) -> None:
        """Close the display, after the last epoch or an error."""


@dataclass
class Position:
    """Progress of a run, stored in its checkpoints.

    Attributes:
        phase: number of the present phase, from 0.
        epoch: finished epochs of the phase.
        step_in_epoch: finished steps of the epoch.
        step: finished steps of the run.
        best: checkpoint name -> [accuracy it was selected by, the other accuracy], in percent.
    """

    phase: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best: dict[str, list[float]] = field(default_factory=dict)


Group = Literal["term", "step", "correct", "craft", "logits", "recorded"]
"""What a step logs: weighted terms; loss, gradient norm and counts; correct predictions of views;
facts of crafters; the largest logits of views and what is recorded of each sample, which are
watched but not summed."""

Key = tuple[Group, str]


class Guard:
    """Watches values on the device for the first step at which one is not finite.

    Args:
        keys: group and name of each value.
        device: of the values.
    """

    def __init__(self, keys: Iterable[Key], device: torch.device) -> None:
        self.keys = tuple(keys)
        self._bad_at = torch.full((len(self.keys),), torch.inf, device=device)

    def add(self, values: Tensor, step: int) -> None:
        """Look at a step's values in the order of ``keys``, without synchronisation."""
        now = torch.where(values.isfinite(), torch.inf, float(step))
        self._bad_at = torch.minimum(self._bad_at, now)

    def check(self) -> None:
        """Wait for the device and check that every value was finite.

        Raises:
            NonFiniteError: with the name and step of the first value that was not.
        """
        bad_at = self._bad_at.tolist() if self.keys else []
        first = min(bad_at, default=math.inf)
        if math.isfinite(first):
            group, name = self.keys[bad_at.index(first)]
            offender = name if group in ("term", "step") else f"{group}_{name}"
            raise NonFiniteError(offender, f"first at step {int(first)}")


class EpochSums:
    """Sums over an epoch, on the device.

    Args:
        keys: group and name of each sum.
        device: of the sums.
    """

    def __init__(self, keys: Iterable[Key], device: torch.device) -> None:
        self.keys = tuple(keys)
        self.total = torch.zeros(len(self.keys), dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Add one step's values in the order of ``keys``."""
        self.total += values

    def fetch(self) -> dict[Group, dict[str, float]]:
        """The sums by group and name; a device is read once."""
        found: dict[Group, dict[str, float]] = {group: {} for group in get_args(Group)}
        for (group, name), total in zip(self.keys, self.total.tolist(), strict=True):
            found[group][name] = total
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return keys and sums, for a checkpoint."""
        return {"names": [list(key) for key in self.keys], "total": self.total}

    @staticmethod
    def restored(state: Mapping[str, Any], device: torch.device) -> EpochSums:
        """Rebuild the sums of a checkpoint, also of older ones that had prefixed names."""
        names = state["names"]
        keys = [older_key(name) if isinstance(name, str) else (name[0], name[1]) for name in names]
        sums = EpochSums(keys, device)
        sums.total += state["total"].to(device)
        return sums


def older_key(name: str) -> Key:
    """Read a prefixed name: ``correct_nat``, ``craft_adv_found``, ``images``, or a term."""
    group, _, rest = name.partition("_")
    if rest and group == "correct":
        return "correct", rest
    if rest and group == "craft":
        return "craft", rest
    return ("step" if name in ("gradient", "loss", "images", "clipped") else "term"), name


class Engine:
    """Trains a network; the same inputs give the same bits on a CPU, interrupted or not.

    Several ranks each have one, and train the same network. Only rank 0 loads a checkpoint and
    validates, and the others take over what it found; what they are given to store and report with
    may do nothing.

    Args:
        net: on its device.
        loader: training batches.
        recipe: how to train.
        validate: evaluates the network after selected epochs.
        store: of checkpoints and metrics.
        reporter: progress display.
        stop: returns true once a signal asked to stop.
        on_epoch: called with each epoch's row (tracking).
    """

    def __init__(
        self,
        net: Net,
        loader: DeviceLoader,
        recipe: Recipe,
        validate: Validate,
        store: Store,
        reporter: Reporter,
        stop: Callable[[], bool],
        on_epoch: Callable[[Mapping[str, Any], torch.nn.Module], None],
    ) -> None:
        self.net, self.loader, self.recipe = net, loader, recipe
        self._ranks = present()
        self._validate, self._store, self._reporter = validate, store, reporter
        self._stop, self._on_epoch = stop, on_epoch
        self.average: Average | None = recipe.average.attach(net) if recipe.average else None
        self.position = Position()
        self._optimizer = recipe.optim.build(net, recipe.lr)
        self._sums: EpochSums | None = None
        self._record = EpochRecord()
        self._device = next(net.parameters()).device
        self._searches: Searches | None = None
        if recipe.fast == "auto" and self._device.type == "cuda":
            rows = self._ranks.rows(loader.batch_size)
            self._searches = Searches(rows.stop - rows.start, Graphs())
        self._guard = Guard((), self._device)
        methods = [phase.method for phase in recipe.phases]
        self._micro_batches = MicroBatches.of(recipe.accumulate, net, methods)
        self._folded = Folded(net, self._compile())
        self._memories = Memories(
            methods,
            n_train=loader.n_train,
            batch_size=loader.batch_size,
            classes=recipe.classes,
            device=self._device,
        )

    def _compile(self) -> int | None:
        """Compile the network if that is asked for; its rows, for the copies to search on."""
        if not self.recipe.compile:
            return None
        rows = math.ceil(self.loader.batch_size / self._micro_batches.number)
        compile_passes(self.net.body, rows, training=True)
        return rows

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network that is validated: averaged if the recipe averages."""
        return self.net if self.average is None else self.average.model

    @property
    def _phase(self) -> Phase:
        return self.recipe.phases[self.position.phase]

    @property
    def _total_epoch(self) -> int:
        before = sum(phase.epochs for phase in self.recipe.phases[: self.position.phase])
        return before + self.position.epoch

    def fit(self) -> None:
        """Train to the end, resuming from the newest checkpoint in the store.

        Raises:
            InterruptedRunError: a signal arrived; everything is saved.
            NonFiniteError: a term or the gradient is NaN or infinite.
        """
        self._resume()
        phases = [phase.epochs for phase in self.recipe.phases]
        self._reporter.start(phases, len(self.loader), self.position.step)
        try:
            with batch_statistics(self.recipe.statistics):
                self._train()
        finally:
            self._reporter.close()
            self._store.settle()

    def _train(self) -> None:
        while self.position.phase < len(self.recipe.phases):
            while self.position.epoch < self._phase.epochs:
                self._epoch()
            self._next_phase()

    def _next_phase(self) -> None:
        self.position.phase += 1
        self.position.epoch = 0
        if self.position.phase < len(self.recipe.phases) and self._phase.optim == "fresh":
            self._optimizer = self.recipe.optim.build(self.net, self.recipe.lr)

    def _rates(self, step_in_epoch: int) -> tuple[float, float]:
        """Compute learning rate and momentum of a step of the present epoch."""
        recipe, place = self.recipe, self.position
        epoch = place.epoch + step_in_epoch / len(self.loader)
        momentum = recipe.optim.momentum
        return rates(recipe.phases, place.phase, epoch, recipe.schedule, recipe.lr, momentum)

    @property
    def _clip(self) -> float | None:
        """The present phase's largest gradient norm."""
        own = self._phase.clip
        return self.recipe.optim.clip if own is None else None if math.isinf(own) else own

    def _epoch(self) -> None:
        started, first = time.perf_counter(), self.position.step_in_epoch
        phase, place = self._phase, self.position
        parts = remembering(phase.method)
        self.net.train()
        for batch in self.loader.epoch(self._total_epoch, start=first):
            lr, momentum = self._rates(place.step_in_epoch)
            self.recipe.optim.set_rates(self._optimizer, lr, momentum)
            epoch, decay = phase.counts_from + place.epoch, lr / peak(phase, self.recipe.lr)
            clock = Clock(epoch, place.step, phase.name, decay)
            log, views = train_step(
                phase.method,
                self.net,
                self._optimizer,
                batch,
                clock,
                seed=self.recipe.seed,
                precision=self.recipe.precision,
                clip=self._clip,
                folded=self._folded,
                searches=self._searches,
                memories=self._memories,
                micro_batches=self._micro_batches,
            )
            self._memories.commit(parts, views)
            self._after_step(log, clock, batch)
        self._end_of_epoch(started, first)

    def _after_step(self, log: StepLog, clock: Clock, batch: Batch) -> None:
        if self.average is not None:
            self.average.update(self.net, clock)
        values = self._measured(log, batch.count)
        if self._sums is None or self._sums.keys != tuple(values):
            self._sums = EpochSums(values, self._device)
        self._record.add(self._ranks.gather(batch.index, batch.place), log.recorded)
        # A radius that is not finite makes a loss that is not: the cause is watched first.
        causes: dict[Key, Tensor] = {
            ("recorded", name): each.abs().amax() for name, each in log.recorded.items()
        }
        watched = {**causes, **values, **{("logits", view): t for view, t in log.logits.items()}}
        vector = torch.stack([value.double() for value in watched.values()])
        if self._guard.keys != tuple(watched):
            self._guard.check()
            self._guard = Guard(watched, self._device)
        self._guard.add(vector, clock.step)
        self._sums.add(vector[len(causes) :][: len(values)])
        self.position.step += 1
        self.position.step_in_epoch += 1
        if self._device.type == "cpu" or self.position.step % SYNC_EVERY == 0:
            self._guard.check()
        self._reporter.step(batch.count)
        if self._ranks.any(self._stop()):
            self._interrupt()

    def _measured(self, log: StepLog, count: int) -> dict[Key, Tensor]:
        """Gather what is summed over an epoch of a step on ``count`` images."""
        values: dict[Key, Tensor] = {("term", name): part for name, part in log.parts.items()}
        values |= {("step", "gradient"): log.grad_norm, ("step", "loss"): log.loss}
        values |= {("correct", view): number for view, number in log.correct.items()}
        values["step", "images"] = torch.full_like(log.loss, float(count))
        values |= {("craft", name): fact for name, fact in log.facts.items()}
        if self._clip is not None:
            values["step", "clipped"] = log.grad_norm > self._clip
        return values

    def _interrupt(self) -> None:
        self._guard.check()
        self._save()
        raise InterruptedRunError(
            f"stopped after step {self.position.step} and saved; run the same command to resume"
        )

    def _end_of_epoch(self, started: float, first: int) -> None:
        assert self._sums is not None  # noqa: S101  an epoch has at least one step
        self._guard.check()
        trained = time.perf_counter() - started
        sums = self._sums.fetch()
        row = self._row(sums)
        done = self._total_epoch + 1
        last = done == sum(phase.epochs for phase in self.recipe.phases)
        ends = self._phase.selectable and self.position.epoch + 1 == self._phase.epochs
        if done % self.recipe.select_every == 0 or last or ends:
            try:
                self._prepare_average()
                row |= self._ranks.from_first(lambda: self._validate(self.evaluated))
            except LostRankError:
                raise
            except InterruptedRunError:  # the epoch's steps are kept; its validation starts anew
                self._interrupt()
        self._select(row)
        steps = self.position.step_in_epoch - first
        images = steps * sums["step"]["images"] / self.position.step_in_epoch
        row["seconds"] = round(time.perf_counter() - started, 3)
        row["images_per_second"] = round(images / trained, 1)
        self._store.log(row)
        self._on_epoch(row, self.evaluated)
        self._reporter.epoch_end({k: v for k, v in row.items() if isinstance(v, (int, float))})
        if last:
            self._check_weights()
            self._keep("last")
        self.position.epoch += 1
        self.position.step_in_epoch = 0
        self._sums, self._record = None, EpochRecord()
        self._save()
        if self._ranks.any(self._stop()) and not last:
            self._interrupt()

    def _row(self, sums: Mapping[Group, Mapping[str, float]]) -> dict[str, Any]:
        """Average over the epoch: losses per step, accuracies in percent of its images."""
        steps, totals = self.position.step_in_epoch, sums["step"]
        row: dict[str, Any] = {
            "epoch": self._total_epoch,
            "phase": self._phase.name,
            "step": self.position.step,
            "lr": self._rates(steps - 1)[0],
            "loss": totals["loss"] / steps,
            "grad_norm": totals["gradient"] / steps,
        }
        columns = {"nat": "train_clean", "adv": "train_robust"}
        row |= {f"loss_{name}": total / steps for name, total in sums["term"].items()}
        for view, total in sums["correct"].items():
            row[columns[view]] = 100 * total / totals["images"]
        row |= {name: total / steps for name, total in sums["craft"].items()}
        if "clipped" in totals:
            row["clipped"] = totals["clipped"] / steps
        return row | self._record.row()

    def _select(self, row: Mapping[str, Any]) -> None:
        """Save the weights of the best epoch so far; ties go to the higher other accuracy."""
        clean, robust = row.get("val_clean"), row.get("val_robust")
        if not self._phase.selectable:
            return
        scores = {}
        if robust is not None:
            scores["best_robust"] = [robust, clean or 0.0]
        if clean is not None:
            scores["best_clean"] = [clean, robust or 0.0]
        for name, score in scores.items():
            if score > self.position.best.get(name, [-1.0]):
                self.position.best[name] = score
                self._keep(name)

    def _prepare_average(self) -> None:
        if self.average is not None:
            self.average.prepare(self._training_images)

    def _training_images(self) -> Iterator[Tensor]:
        for batch in self.loader.epoch(self._total_epoch):
            yield batch.x

    def _keep(self, name: str) -> None:
        """Keep the weights of the present epoch, and what was recorded in it."""
        average = None if self.average is None else self.average.model
        recorded = self._record.columns()
        place = (self._total_epoch, self.position.step)
        self._store.keep_weights(name, self.net, average, *place, recorded)

    def _check_weights(self) -> None:
        """Check that weights and buffers are finite: a step may spoil them after a finite loss.

        Raises:
            NonFiniteError: with the name of the first that is not.
        """
        state = self.net.state_dict()
        finite = torch.stack([value.isfinite().all() for value in state.values()])
        for name, fine in zip(state, finite.tolist(), strict=True):
            if not fine:
                raise NonFiniteError("weights", f"{name} after step {self.position.step}")

    def _save(self) -> None:
        place = self.position
        self._check_weights()
        average = None if self.average is None else self.average.model.state_dict()
        sums = self._sums
        train = {
            "optimizer": self._optimizer.state_dict(),
            "memory": self._memories.state_dict(),
            "average_count": 0 if self.average is None else self.average.count,
            "position": {
                "phase": place.phase,
                "epoch": place.epoch,
                "step_in_epoch": place.step_in_epoch,
                "step": place.step,
                "best": place.best,
            },
            "sums": None if sums is None else sums.state_dict(),
            "recorded": self._record.columns(),
        }
        self._store.save(
            Snapshot(place.step, self._total_epoch, self.net.state_dict(), average, train)
        )

    def _resume(self) -> None:
        snapshot = self._ranks.from_first(self._store.load)
        if snapshot is None:
            self._store.rewind_metrics(0)
            return
        state = snapshot.train
        load_into(self.net, snapshot.weights, "the run's checkpoint")
        if self.average is not None and snapshot.average is not None:
            load_into(self.average.model, snapshot.average, "the run's checkpoint")
            self.average.count = state["average_count"]
        self.position = Position(**state["position"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._memories.load_state_dict(state["memory"])
        if state["sums"] is not None:
            self._sums = EpochSums.restored(state["sums"], self._device)
        # Checkpoints older than the record lack it.
        self._record = EpochRecord.restored(state.get("recorded", {}), self._device)
        self._store.rewind_metrics(self._total_epoch)
