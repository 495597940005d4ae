"""The values that flow through a training step, and the protocols of the parts that act on them.

Shapes: ``N`` samples, ``C`` channels, ``H x W`` pixels, ``K`` classes, ``R <= N`` crafted rows.
Images are raw pixels in [0, 1]; ``eps`` and step sizes are in the same units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Norm = Literal["linf", "l2"]
AttackMode = Literal["eval", "train", "train_frozen"]
Start = Literal["clean", "gaussian", "uniform"]
Statistics = Literal["synchronised", "replica"]
"""Whose statistics BatchNorm takes in training where several processes share a batch: the whole
batch's, or those of each process's own part."""
Fast = Literal["auto", "off"]
"""Whether training attacks are captured as CUDA graphs: on a GPU where they can be, or never."""
Fraction = Annotated[float, "fraction"]
"""A number that may be written as a fraction, ``8/255``; config/parser.py parses it."""
StepSize = Annotated[float, "step_size"]
"""A fraction of eps; may be written ``eps/4``, or as pixels ``2/255`` which are divided by eps."""


@dataclass(frozen=True)
class Batch:
    """One mini-batch.

    Attributes:
        x: images, shape [N, C, H, W], float in [0, 1].
        y: labels, shape [N], int64.
        index: position of each sample in the training set, shape [N], int64.
        place: where several processes share a batch (``ablation.ranks``), the place of the first
            of these samples in it, and its size; ``None``, these are all.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    place: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        """Samples of the whole batch, on all processes."""
        return len(self.y) if self.place is None else self.place[1]


@dataclass(frozen=True)
class Crafted:
    """Result of a crafter.

    Attributes:
        x: points, shape [R, C, H, W], detached.
        rows: the batch's samples they belong to, shape [R]; ``None`` means all, in order.
        aux: further tensors of the search, for example ``{"steps": [R]}``.
        facts: for the log, scalars or a number of each sample [N]: their means, averaged over an
            epoch's steps.
        recorded: a number of each sample of the batch by name, [N], as ``radius``: its distribution
            over an epoch is logged, and kept with the weights of the epochs that are kept.
        counted: samples that count in BatchNorm's statistics of the points' pass, [N], bool;
            ``None`` means all.
        count: points of all processes that share the batch; ``None``, these R are all.
    """

    x: Tensor
    rows: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    counted: Tensor | None = None
    count: int | None = None


@dataclass(frozen=True)
class Clock:
    """Progress of training. Epochs are 0-based and count within the phase; steps never restart.

    Both parts of a phase that was split count as one (``Phase.counts_from``).

    Attributes:
        epoch: of the phase.
        step: of the run.
        phase: its name.
        decay: the learning rate as a share of its peak.
    """

    epoch: int
    step: int
    phase: str = "main"
    decay: float = 1.0


@dataclass(frozen=True)
class Gate:
    """Factor on a coefficient over the epochs of a phase: 0 outside [start, stop), then a ramp.

    Attributes:
        start: first epoch with a factor above 0.
        stop: first epoch with factor 0 again; ``None`` means never.
        ramp: epochs over which the factor rises linearly from 1/ramp to 1; 0 means at once.
    """

    start: int = 0
    stop: int | None = None
    ramp: int = 0

    def __call__(self, clock: Clock) -> float:
        """The factor, in [0, 1]."""
        if clock.epoch < self.start or (self.stop is not None and clock.epoch >= self.stop):
            return 0.0
        return min(1.0, (clock.epoch - self.start + 1) / self.ramp) if self.ramp else 1.0


@dataclass(frozen=True)
class DecayingGate(Gate):
    """A gate whose factor falls with the learning rate: times its share of the peak."""

    def __call__(self, clock: Clock) -> float:
        """The factor, in [0, 1]."""
        return super().__call__(clock) * clock.decay


@dataclass(frozen=True)
class MemorySpec:
    """Declares one tensor that is remembered between steps.

    Attributes:
        scope: a row for each ``example`` of the training set, found by ``Batch.index``; or for
            each ``position`` in the batch, whatever sample stands there.
        shape: of a row; ``classes`` stands for K.
        dtype: kept whatever the run's precision.
        initial: every entry's value until it is written.
    """

    scope: Literal["example", "position"]
    shape: tuple[int | Literal["classes"], ...] = ()
    dtype: torch.dtype = torch.float32
    initial: float = 0.0


@dataclass(frozen=True)
class Output:
    """A forward pass: ``logits`` [N, K], at least fp32, and the ``features`` [N, D] below."""

    logits: Tensor
    features: Tensor


class Classifier(Protocol):
    """A model: owns input normalisation and head, takes raw pixels."""

    def __call__(self, x: Tensor) -> Tensor:
        """Plain logits [N, K] for ``x`` [N, C, H, W] in [0, 1]."""

    def output(self, x: Tensor) -> Output:
        """Logits and features."""

    def loss_logits(self, output: Output, y: Tensor, step: int | None = None) -> Tensor:
        """Logits for classification terms (L-Softmax, HE adjust them), shape [N, K].

        Heads that anneal their margin do so by the ``step``; ``None`` means the whole margin.
        """


@dataclass(frozen=True)
class EvalView:
    """An evaluation-mode forward of a view: the points ``x`` [R, C, H, W] and their output."""

    x: Tensor
    output: Output


class Views(Protocol):
    """A training step as its parts read it."""

    @property
    def batch(self) -> Batch:
        """The mini-batch."""

    @property
    def clock(self) -> Clock:
        """Epoch, step and phase."""

    def x(self, name: str) -> Tensor:
        """Points of a view: the clean images for ``nat``, else the crafted points [R, C, H, W]."""

    def y(self, name: str) -> Tensor:
        """Labels of a view's points, shape [R]."""

    def crafted(self, name: str) -> Crafted:
        """The result of ``craft:<name>``."""

    def logits(self, name: str) -> Tensor:
        """Plain train-mode logits of a pass already done, shape [R, K]."""

    def loss_logits(self, name: str) -> Tensor:
        """The same pass through the head's classification logits, shape [R, K]."""

    def at(self, name: str, layer: str = "") -> Tensor:
        """Activation of the same pass at a layer [R, ...]; "" is its input; ``Differentiates``."""

    def eval(self, name: str, input_grad: bool = False) -> EvalView:
        """Lazy, memoised evaluation-mode forward; it moves no buffer.

        With ``input_grad`` the points require grad, so that terms may differentiate with respect
        to them. Gradients reach the parameters unless the caller is under ``no_grad``.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Logits of arbitrary points in the mode of the running pass, shape [M, K]."""

    def scatter(self, name: str, values: Tensor) -> Tensor:
        """Spread values [R] of a view's points over the batch [N], zero elsewhere."""

    def total(self, values: Tensor) -> Tensor:
        """Sum values [N] over the whole batch, on all processes that share it; a scalar.

        A part that asks for it declares ``Couples``.
        """

    def rng(self, stream: str) -> torch.Generator:
        """Random numbers of a stream: the same whenever the step is computed anew (AWP)."""

    def memory(self, name: str) -> Tensor:
        """The batch's rows [N, ...] of a memory, as they stood before the step."""

    def weights(self) -> Iterable[Tensor]:
        """Weights of the convolutions and linear layers of the network that passes run on."""


class Crafter(Protocol):
    """Searches for points in input space.

    Traits it may declare: ``SearchesExactly``, ``CraftsSubset``, ``Selects``, ``Couples``. It draws
    by ``ablation.random.draw`` alone.
    """

    @property
    def bn(self) -> AttackMode:
        """The model's mode during the search."""

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Find points within ``eps`` [N] of the batch and inside [0, 1]."""


class AttackLoss(Protocol):
    """Objective that a crafter ascends."""

    def bind(self, views: Views) -> Callable[[Tensor], Tensor]:
        """Prepare what is constant in a search; the result maps logits [N, K] to loss [N]."""


class Budget(Protocol):
    """Perturbation radius of each example in training. Trait it may declare: ``Individual``."""

    def __call__(self, views: Views) -> Tensor:
        """Radii [N], detached, in pixel units."""


@runtime_checkable
class Individual(Protocol):
    """A budget whose radii differ between examples."""

    @property
    def individual(self) -> bool:
        """True if they do, and are recorded as ``radius`` over each epoch; the default is False."""


class Term(Protocol):
    """Loss per sample. Traits it may declare: ``NeedsWholeBatch``, ``Couples``, ``RunsEagerly``."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The train-mode views it reads."""

    def __call__(self, views: Views) -> Tensor:
        """Loss per sample, shape [N]."""


@runtime_checkable
class Differentiates(Protocol):
    """A term that takes gradients with respect to activations of a train-mode pass."""

    @property
    def differentiates(self) -> Mapping[str, Sequence[str]]:
        """View -> layers of the network's body to keep the output of; "" is the input."""


@runtime_checkable
class NeedsWholeBatch(Protocol):
    """A term or weight with a say on whether its views must hold every sample of the batch."""

    @property
    def whole(self) -> bool:
        """True if a view of a subset is refused; the default is False."""


@runtime_checkable
class Couples(Protocol):
    """A part with a say on whether its result for one sample depends on others of the batch."""

    @property
    def couples(self) -> bool:
        """True if it does, as by ``Views.total``; the default is False."""


@runtime_checkable
class RunsEagerly(Protocol):
    """A term with a say on torch.compile."""

    @property
    def eager(self) -> str | None:
        """Why the network cannot be compiled, for a message; ``None``, the default, if it can."""


@runtime_checkable
class SearchesExactly(Protocol):
    """A crafter with a say on the precision of its search."""

    @property
    def exact(self) -> bool:
        """True for full precision, whatever the run's; the default is False."""


@runtime_checkable
class CraftsSubset(Protocol):
    """A crafter that may return points for some samples of the batch alone."""

    @property
    def subset(self) -> bool:
        """True if it does; the default is False."""


@runtime_checkable
class Selects(Protocol):
    """A crafter that is a search of all samples, after which it may leave some of them out.

    Calling it does both. On a GPU the search has one size, and is captured; how many samples are
    left only the host can wait for.
    """

    def search_all(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Search a point of every sample of the batch; see ``Crafter``."""

    def select(self, crafted: Crafted) -> Crafted:
        """Leave out what is not to be trained on."""


class Weight(Protocol):
    """Weight of each example in a term. Traits it may declare: ``NeedsWholeBatch``, ``Couples``."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The train-mode views it reads."""

    def __call__(self, views: Views) -> Tensor:
        """Weights, shape [N]."""


@runtime_checkable
class Remembers(Protocol):
    """A part with memory, also one nested in another part, as a loss in a crafter.

    It declares the memory, reads it by ``views.memory(name)`` and hands back new rows once per
    step. The engine owns the tensors, and checkpoints those of all phases by name. Parts that
    declare one name alike share the memory; of several that write it, the last one counts.
    """

    @property
    def memory(self) -> Mapping[str, MemorySpec]:
        """Name -> what is remembered."""

    def commit(self, views: Views) -> Mapping[str, Tensor]:
        """Return new rows [N, ...] of the memories to write.

        Runs once, after the optimiser step and without gradients. It sees the training pass that
        the loss was taken of, and every memory as it stood before the step.
        """


class Closure(Protocol):
    """The view passes and the loss of one step, on any network of the same architecture."""

    def __call__(
        self, net: nn.Module, terms: Sequence[str] | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Total loss and its weighted parts; ``terms`` restricts it to some of them."""


class Ascent(Protocol):
    """Moves the network's weights before the gradient is taken, as AWP does."""

    def __call__(
        self, net: nn.Module, closure: Closure, clock: Clock
    ) -> AbstractContextManager[None]:
        """Enter: perturb ``net``; leave: undo it. Gradient and optimiser step happen inside."""


class Average(Protocol):
    """Averages the weights that are evaluated."""

    count: int
    """Updates so far; checkpointed with ``model``."""

    @property
    def model(self) -> nn.Module:
        """The network to evaluate."""

    def update(self, net: nn.Module, clock: Clock) -> None:
        """Add the weights after a step."""

    def prepare(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Prepare ``model`` for evaluation; ``batches`` yields training images if needed."""


class AverageSpec(Protocol):
    """Hyperparameters of an average."""

    def attach(self, net: nn.Module) -> Average:
        """Start averaging from the network's present weights."""


class Schedule(Protocol):
    """The learning rate as a pure function of the epoch: nothing to checkpoint."""

    def lr(self, peak: float, epoch: float, epochs: int) -> float:
        """Learning rate at ``epoch`` (with the fraction of the epoch done) of ``epochs``."""

    def momentum(self, base: float, epoch: float, epochs: int) -> float:
        """Momentum at the same place; most schedules return ``base``."""


class HeadFactory(Protocol):
    """Builds the layer on top of the features."""

    def __call__(self, features: int, classes: int) -> nn.Module:
        """A head for [N, features] inputs."""
