"""Views of a training step: clean and crafted points, and the forwards made on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.models.folding import Folded
from ablation.models.net import Net
from ablation.numerics.double_backward import TwiceDifferentiable
from ablation.numerics.modes import BatchNormReplay, MaskedBatchNorm, crafting, mode
from ablation.numerics.precision import Precision, full_precision, product_type
from ablation.random import generator
from ablation.ranks import present
from ablation.training.memory import Memories
from ablation.training.method import CLEAN
from ablation.types import AttackMode, Batch, Clock, Crafted, EvalView, Output


class StepViews:
    """The views of one step on one network; implements ``types.Views``.

    Args:
        net: the network that passes run on.
        batch: the mini-batch.
        clock: epoch, step and phase.
        precision: context of every forward, for autocast.
        crafted: crafted points by name, shared between the networks of a step.
        observed: views to differentiate with respect to, and their layers (``Method.observed``).
        seed: of the run; keys what terms draw.
        memories: tensors that parts remember between steps.
    """

    def __init__(
        self,
        net: Net,
        batch: Batch,
        clock: Clock,
        precision: Precision,
        crafted: dict[str, Crafted] | None = None,
        observed: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        memories: Memories | None = None,
    ) -> None:
        self.net, self.batch, self.clock = net, batch, clock
        self._observed, self._seed = observed or {}, seed
        self._memories = memories
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._precision = precision
        self._searched = net
        self._crafted = {} if crafted is None else crafted
        self._outputs: dict[str, Output] = {}
        self._evaluated: dict[tuple[str, bool, bool], EvalView] = {}
        self._replays: dict[str, BatchNormReplay] = {}

    def on(self, net: Net) -> StepViews:
        """Make views of the same points on a network, without the forwards made so far."""
        return StepViews(
            net,
            self.batch,
            self.clock,
            self._precision,
            self._crafted,
            self._observed,
            self._seed,
            self._memories,
        )

    def add(self, name: str, crafted: Crafted) -> None:
        """Store the result of a crafter."""
        if crafted.rows is not None and self.batch.place is not None:
            crafted = replace(crafted, count=present().total(len(crafted.x)))
        self._crafted[name] = crafted

    def crafted(self, name: str) -> Crafted:
        """The result of ``craft:<name>``."""
        return self._crafted[name]

    def all_crafted(self) -> Mapping[str, Crafted]:
        """The results of all crafters so far, by name."""
        return self._crafted

    def x(self, name: str) -> Tensor:
        """Points of a view [R, C, H, W]."""
        return self.batch.x if name == CLEAN else self._crafted[name].x

    def _rows(self, name: str) -> Tensor | None:
        return None if name == CLEAN else self._crafted[name].rows

    def _empty(self, name: str) -> bool:
        """Tell whether a view has no points, on any rank."""
        if name == CLEAN or (count := self._crafted[name].count) is None:
            return len(self.x(name)) == 0
        return count == 0

    def y(self, name: str) -> Tensor:
        """Labels of a view's points [R]."""
        rows = self._rows(name)
        return self.batch.y if rows is None else self.batch.y[rows]

    def scatter(self, name: str, values: Tensor) -> Tensor:
        """Spread values [R] of a view's points over the batch [N], zero elsewhere."""
        rows = self._rows(name)
        if rows is None:
            return values
        return values.new_zeros(len(self.batch.y)).index_put((rows,), values)

    def run(self, name: str, remember: bool = False) -> None:
        """Make the train-mode forward of a view; ``remember`` prepares a later ``bn:<view>``.

        An empty set of points has no forward, since BatchNorm has no statistics of it. But a rank
        without points takes part in a forward of others, which wait for its share in them.
        """
        x = self.x(name)
        if self._empty(name):
            classes = self.eval(CLEAN).output.logits.shape[1]
            self._outputs[name] = Output(x.new_zeros(0, classes), x.new_zeros(0, 1))
            return
        if remember:
            self._replays[name] = BatchNormReplay(self.net)
        counted = None if name == CLEAN else self._crafted[name].counted
        masked = contextlib.nullcontext() if counted is None else MaskedBatchNorm(counted)
        with (
            _not_alone(x, f"pass {name}"),
            self._precision(),
            self._observing(name, x) as x,
            masked,
        ):
            self._outputs[name] = self.net.output(x)
        if remember:
            self._replays[name].mark()

    @contextlib.contextmanager
    def _observing(self, name: str, x: Tensor) -> Iterator[Tensor]:
        """Record the layers that terms differentiate with respect to; yields the pass's input."""
        layers = self._observed.get(name, ())
        if "" in layers:
            x = self._seen[name, ""] = x.detach().requires_grad_(True)
        with contextlib.ExitStack() as hooks:
            for layer in filter(None, layers):
                module = self.net.body.get_submodule(layer)
                hooks.enter_context(_keeping(module, self._seen, (name, layer)))
            yield x

    def at(self, name: str, layer: str = "") -> Tensor:
        """Recorded activation of a pass at a layer of the body [R, ...]; "" is its input."""
        return self._seen[name, layer]

    def replay(self, name: str) -> None:
        """Feed a view's batch statistics into BatchNorm's running ones again (``bn:<view>``)."""
        if not self._empty(name):
            self._replays[name].replay()

    def done(self, name: str) -> bool:
        """Tell whether the train-mode forward of a view was made."""
        return name in self._outputs

    def logits(self, name: str) -> Tensor:
        """Plain train-mode logits [R, K]."""
        return self._outputs[name].logits

    def loss_logits(self, name: str) -> Tensor:
        """Train-mode logits for classification terms [R, K]."""
        output = self._outputs[name]
        if len(output.logits) == 0:
            return output.logits
        return self.net.loss_logits(output, self.y(name), self.clock.step)

    @torch.no_grad()
    def largest_logits(self) -> dict[str, Tensor]:
        """Largest absolute logit of each forward: ``nat``, ``adv``, or ``eval_nat``; scalars."""
        evaluated = {
            f"eval_{key[0]}": seen.output
            for key, seen in self._evaluated.items()
            if not self._empty(key[0])
        }
        outputs = {name: out for name, out in self._outputs.items() if not self._empty(name)}
        return {name: _largest(out.logits) for name, out in (evaluated | outputs).items()}

    def total(self, values: Tensor) -> Tensor:
        """Sum values [N] over the whole batch, on all ranks; a scalar.

        Raises:
            ValueError: these samples are a part of it, and the others are computed later.
        """
        if self.batch.place is not None and present().alone:
            raise ValueError("a part that takes sums over the batch must declare it: Couples")
        return present().sum(values.sum())

    def rng(self, stream: str) -> torch.Generator:
        """Random numbers of a stream, keyed by seed and step."""
        batch = self.batch
        return generator(self._seed, stream, self.clock.step, batch.x.device, batch.place)

    def memory(self, name: str) -> Tensor:
        """The batch's rows [N, ...] of a memory, as they stood before the step.

        Raises:
            ValueError: no part declares it, or nobody keeps memories for these views.
        """
        if self._memories is None:
            raise ValueError(f"memory {name}: this step was given no memories")
        return self._memories.read(name, self.batch)

    def weights(self) -> Iterator[Tensor]:
        """Weights of the network's convolutions and linear layers."""
        for module in self.net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                yield module.weight

    def nothing(self) -> Tensor:
        """Build a loss of 0 that reaches the parameters, for steps whose gates are all closed."""
        return sum((out.logits.sum() * 0.0 for out in self._outputs.values()), torch.zeros(()))

    def eval(self, name: str, input_grad: bool = False) -> EvalView:
        """Evaluation-mode forward, memoised per view and gradient mode.

        With ``input_grad`` the forward is in full precision, for it is differentiated twice.
        """
        key = (name, input_grad, torch.is_grad_enabled())
        if key not in self._evaluated:
            x = self.x(name).detach()
            if input_grad:
                x.requires_grad_(True)
            manner = self._twice if input_grad else self._precision
            with mode(self.net, training=False), manner():
                self._evaluated[key] = EvalView(x, self.net.output(x))
        return self._evaluated[key]

    @contextlib.contextmanager
    def _twice(self) -> Iterator[None]:
        with self._exactly(), TwiceDifferentiable():
            yield

    def _exactly(self) -> AbstractContextManager[None]:
        return full_precision(self.batch.x.device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of arbitrary points in the mode of the running pass."""
        with _not_alone(x, "attack in training mode"), self._precision():
            logits: Tensor = self._searched(x)
        return logits

    @contextlib.contextmanager
    def searching(
        self, bn: AttackMode, folded: Folded | None, exact: bool = False
    ) -> Iterator[None]:
        """Switch ``forward`` to the mode of a search; evaluation mode uses ``folded`` if given.

        An ``exact`` search is in full precision whatever the run's.
        """
        precision = self._precision
        with contextlib.ExitStack() as stack:
            if exact:  # backward passes of the search, too
                stack.enter_context(self._exactly())
                self._precision = contextlib.nullcontext
            if bn == "eval" and folded is not None:
                low = product_type(self._precision, self.batch.x.device)
                self._searched = folded.refresh(low)
            else:
                stack.enter_context(crafting(self.net, bn))
            yield
        self._searched, self._precision = self.net, precision


def _largest(logits: Tensor) -> Tensor:
    """Largest absolute value, a scalar; 0 of a rank's empty share."""
    return logits.abs().amax() if len(logits) else logits.new_zeros(())


@contextlib.contextmanager
def _not_alone(x: Tensor, what: str) -> Iterator[None]:
    """Say why BatchNorm refuses a single image [1, C, H, W], of a batch of which no more is left.

    Raises:
        InputError: it does.
    """
    try:
        yield
    except ValueError as error:
        if len(x) != 1:
            raise
        raise InputError(
            f"{what}: a single image of the batch takes part in it, which BatchNorm cannot "
            f"normalise where the last feature map is one pixel; set a larger batch_size, or a "
            f"model with fewer stages"
        ) from error


@contextlib.contextmanager
def _keeping(
    module: nn.Module, store: dict[tuple[str, str], Tensor], key: tuple[str, str]
) -> Iterator[None]:
    """Store the module's output."""

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store[key] = output

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
