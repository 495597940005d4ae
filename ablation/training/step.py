"""One training step: craft, forward, loss, backward, in the order the method's passes give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.models.folding import Folded
from ablation.models.net import Net
from ablation.numerics.modes import buffers, restore_buffers
from ablation.numerics.precision import Precision
from ablation.random import generator
from ablation.ranks import present
from ablation.text import did_you_mean
from ablation.training.memory import Memories
from ablation.training.method import ASCENT, CLEAN, Method, Pass, before_views
from ablation.training.micro_batches import MicroBatches, summed
from ablation.training.searches import Searches
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Individual, SearchesExactly, Selects


def check_layers(method: Method, net: Net) -> None:
    """Check that the network has the layers that terms differentiate with respect to.

    Raises:
        InputError: it lacks one.
    """
    known = [name for name, _ in net.body.named_modules() if name]
    for layer in {layer for layers in method.observed().values() for layer in layers if layer}:
        if layer not in known:
            raise InputError(f"layers=[{layer}]: not in the network; {did_you_mean(layer, known)}")


@dataclass(frozen=True)
class StepLog:
    """Measurements of a step: device tensors, never synchronised here.

    Attributes:
        loss: total loss, scalar.
        parts: weighted terms, scalars.
        grad_norm: norm of the whole gradient before clipping, scalar.
        correct: view -> number of correct predictions of the training pass, or of the pass after
            ``step`` where a view has no other.
        facts: ``<crafter>_<fact>`` -> what the crafter reports of its search, scalar.
        logits: view -> largest absolute logit of its forwards, scalar; of several ranks, the sum
            of theirs. One that is not finite can leave a finite loss: -inf for a wrong class.
        recorded: name -> a number of each sample of the batch, [N]: ``radius`` of an individual
            budget, and what crafters record.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    grad_norm: Tensor
    correct: Mapping[str, Tensor]
    facts: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]
    recorded: Mapping[str, Tensor]


def total_loss(
    method: Method, views: StepViews, only: Sequence[str] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the method's terms over the batch: the one place where sum/N is taken.

    N counts the whole batch: with several ranks the results are this rank's share in the loss.

    Args:
        method: whose terms are summed.
        views: with all train-mode passes made.
        only: names of the terms to sum; ``None`` means all.

    Returns:
        The total and each term's share in it, scalars.
    """
    count = views.batch.count
    parts: dict[str, Tensor] = {}
    for name, slot in method.terms.items():
        factor = slot.factor(views.clock)
        if factor == 0 or (only is not None and name not in only):
            continue
        loss = slot.term(views)
        if slot.weight is not None:
            loss = slot.weight(views) * loss
        parts[name] = factor * (loss.sum() / count)
    if not parts:
        return views.nothing(), parts
    return torch.stack(list(parts.values())).sum(), parts


def craft(
    method: Method,
    views: StepViews,
    name: str,
    eps: Tensor,
    seed: int,
    folded: Folded | None,
    searches: Searches | None = None,
) -> None:
    """Run a crafter in its mode and with its own random stream; adds the points to ``views``."""
    crafter, batch = method.crafters[name], views.batch
    rng = generator(seed, f"craft/{name}", views.clock.step, batch.x.device, batch.place)
    exact = isinstance(crafter, SearchesExactly) and crafter.exact
    search = crafter.search_all if isinstance(crafter, Selects) else crafter
    with views.searching(crafter.bn, folded, exact):
        if searches is None:
            crafted = search(views, eps, rng)
        else:
            crafted = searches.run(name, crafter, search, views, eps, rng)
    views.add(name, crafter.select(crafted) if isinstance(crafter, Selects) else crafted)


def train_step(
    method: Method,
    net: Net,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    clock: Clock,
    *,
    seed: int,
    precision: Precision = contextlib.nullcontext,
    clip: float | None = None,
    folded: Folded | None = None,
    searches: Searches | None = None,
    memories: Memories | None = None,
    micro_batches: MicroBatches | None = None,
) -> tuple[StepLog, StepViews]:
    """Run one step of a method; together with all ranks, if there are several.

    Args:
        method: crafters, passes, terms and ascent of the step.
        net: trained in place; in train mode.
        optimizer: of the network's parameters.
        batch: on the network's device.
        clock: epoch, step and phase.
        seed: of the run; every random draw is keyed by it, the crafter's name and the step.
        precision: context of every forward.
        clip: largest norm of the gradient, or ``None``.
        folded: copy of ``net`` for searches in evaluation mode; ``None`` searches on ``net``.
        searches: programs of the crafters, that search on ``folded``, for a batch that is taken
            whole; ``None`` runs crafters as they are.
        memories: what parts remember of earlier steps; read here, committed by the caller.
        micro_batches: in how many parts the batch is taken; ``None`` takes it whole.

    Returns:
        The measurements, and the views that the loss was taken of (of the last part of the batch),
        for ``Memories.commit``.

    Raises:
        ValueError: parts record the same name, or values that are not one of each sample.
    """
    micro_batches = micro_batches or MicroBatches()

    def begin(part: Batch) -> _Part:
        observed = method.observed()
        views = StepViews(net, part, clock, precision, None, observed, seed, memories)
        whole = part is batch  # a program has the size of a whole batch, and its memory
        return _Part(method, views, seed, folded, searches if whole else None)

    with contextlib.ExitStack() as stack:
        while True:
            parts = map(begin, micro_batches.split(batch))
            try:
                done = stack.enter_context(_differentiated(method, net, clock, optimizer, parts))
                break
            except Exception as error:
                if not micro_batches.grow(error, batch):
                    raise
        present().add_up([p.grad for p in net.parameters() if p.grad is not None])
        norm = _grad_norm(net, clip)
        optimizer.step()
    logs = [part.log(done.loss, done.terms, norm) for part in done.parts]
    return _of_all_ranks(_joined(logs, done.parts), batch), done.parts[-1].latest


class _Part:
    """A batch in a step, or a part of it: crafts its points, and then computes its loss.

    Attributes:
        views: at the weights before an ascent.
        latest: those that the loss was taken of.
    """

    def __init__(
        self,
        method: Method,
        views: StepViews,
        seed: int,
        folded: Folded | None,
        searches: Searches | None,
    ) -> None:
        self._method, self.views, self.latest = method, views, views
        self._eps = views.batch.x.new_zeros(len(views.batch.x))
        # a burn-in has no use for radii
        if any(entry.kind == "craft" for entry in method.training_passes):
            with torch.no_grad():
                self._eps = method.budget(views)
        _craft_all(method, views, self._eps, seed, folded, searches)

    def loss(self, net: Net, terms: Sequence[str] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the passes of the loss and compute it; see ``total_loss``."""
        method, passes = self._method, self._method.training_passes
        if method.ascent is None:
            remaining = passes[before_views(passes) :]
        else:  # the weights moved since the passes before: make those of the loss anew
            self.latest, remaining = self.views.on(net), method.loss_passes
        for entry in remaining:
            if entry.kind != "craft":
                _pass(self.latest, entry, passes)
        return total_loss(method, self.latest, terms)

    def log(self, loss: Tensor, terms: Mapping[str, Tensor], norm: Tensor) -> StepLog:
        """Make the passes after the step and measure."""
        method, latest = self._method, self.latest
        after = self.views.on(latest.net)  # fresh: parts that remember see the loss's passes
        with torch.no_grad():
            for entry in method.trailing_passes:
                _pass(after, entry, method.trailing_passes)
        correct = _correct(after) | _correct(latest)
        logits = after.largest_logits() | latest.largest_logits()
        return StepLog(
            *(loss, terms, norm, correct, _facts(self.views), logits),
            _recorded(method, self.views, self._eps),
        )


@dataclass(frozen=True)
class _Differentiated:
    """A batch whose gradient is in the parameters: its parts, loss and terms, detached."""

    parts: list[_Part]
    loss: Tensor
    terms: Mapping[str, Tensor]


@contextlib.contextmanager
def _differentiated(
    method: Method,
    net: Net,
    clock: Clock,
    optimizer: torch.optim.Optimizer,
    parts: Iterable[_Part],
) -> Iterator[_Differentiated]:
    """Craft, move the weights, take the gradient; leave: the weights move back."""
    parts = list(parts)

    def closure(
        net: nn.Module, terms: Sequence[str] | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses = (part.loss(cast(Net, net), terms) for part in parts)
        return next(losses) if len(parts) == 1 else summed(net, losses)

    moved = (
        contextlib.nullcontext() if method.ascent is None else method.ascent(net, closure, clock)
    )
    optimizer.zero_grad(set_to_none=True)
    with moved:
        loss, terms = closure(net)
        loss.backward()  # type: ignore[no-untyped-call]
        yield _Differentiated(parts, loss.detach(), _detached(terms))


def _craft_all(
    method: Method,
    views: StepViews,
    eps: Tensor,
    seed: int,
    folded: Folded | None,
    searches: Searches | None,
) -> None:
    """Run the crafters, and the passes that stand before them."""
    passes = method.training_passes
    counts = ASCENT in passes or method.ascent is None
    for entry in passes[: before_views(passes)]:
        if entry.kind == "craft":
            craft(method, views, entry.view, eps, seed, folded, searches)
        elif counts:
            _pass(views, entry, passes)
        else:  # the crafter needs it now; the closure makes it again, and that one counts
            statistics = buffers(views.net)
            _pass(views, entry, passes)
            restore_buffers(views.net, statistics)


def _pass(views: StepViews, entry: Pass, passes: Sequence[Pass]) -> None:
    if entry.kind == "replay":
        views.replay(entry.view)
    elif entry.kind == "frozen":
        statistics = buffers(views.net)
        views.run(entry.view)
        restore_buffers(views.net, statistics)
    elif entry.kind == "view":
        views.run(entry.view, remember=Pass("replay", entry.view) in passes)


def _grad_norm(net: nn.Module, clip: float | None) -> Tensor:
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(net.parameters(), clip, norm)
    return norm


def _detached(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.detach() for name, part in parts.items()}


def _facts(views: StepViews) -> dict[str, Tensor]:
    return {
        f"{name}_{fact}": value.double().mean()
        for name, crafted in views.all_crafted().items()
        for fact, value in crafted.facts.items()
    }


def _joined(logs: Sequence[StepLog], parts: Sequence[_Part]) -> StepLog:
    """Measurements of the parts of a batch, in order, as of one."""
    first, *others = logs
    if not others:
        return first
    sizes = [len(part.views.batch.y) for part in parts]

    def added(
        values: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> dict[str, Tensor]:
        names = dict.fromkeys(name for each in values for name in each)
        pairs = list(zip(weights, values, strict=True))
        return {
            name: torch.stack([w * each[name] for w, each in pairs if name in each]).sum(0)
            for name in names
        }

    ones = [1.0] * len(logs)
    return StepLog(
        first.loss,
        first.parts,
        first.grad_norm,
        added([log.correct for log in logs], ones),
        added([log.facts for log in logs], [size / sum(sizes) for size in sizes]),
        added([log.logits for log in logs], ones),
        {name: torch.cat([log.recorded[name] for log in logs]) for name in first.recorded},
    )


def _of_all_ranks(log: StepLog, batch: Batch) -> StepLog:
    """Measurements of the whole batch: shares are added up, what is of each sample is joined."""
    if batch.place is None:
        return log
    ranks, share = present(), len(batch.y) / batch.count
    means = {name: share * value for name, value in log.facts.items()}
    groups = (log.parts, log.correct, means, log.logits)
    values = [log.loss, *(value for group in groups for value in group.values())]
    loss, *sums = ranks.sum(torch.stack([value.double() for value in values])).unbind()
    added = iter(sums)
    parts, correct, facts, logits = ({name: next(added) for name in group} for group in groups)
    recorded = {name: ranks.gather(value, batch.place) for name, value in log.recorded.items()}
    return StepLog(loss, parts, log.grad_norm, correct, facts, logits, recorded)


def _recorded(method: Method, views: StepViews, eps: Tensor) -> dict[str, Tensor]:
    """Gather what budget and crafters record of each sample; two may not use one name."""
    budget = method.budget
    attacked = bool(views.all_crafted())  # a burn-in has no radii
    individual = attacked and isinstance(budget, Individual) and budget.individual
    sources = {"the budget": {"radius": eps} if individual else {}}
    sources |= {
        f"the crafter {name}": dict(crafted.recorded)
        for name, crafted in views.all_crafted().items()
    }
    found: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for owner, recorded in sources.items():
        for name, values in recorded.items():
            if name in owners:
                raise ValueError(f"{name} is recorded by {owners[name]} and by {owner}; use one")
            if values.shape != eps.shape:
                raise ValueError(
                    f"{owner} records {name} of shape {list(values.shape)}, not {list(eps.shape)}"
                )
            owners[name], found[name] = owner, values.detach()
    return found


@torch.no_grad()
def _correct(views: StepViews) -> dict[str, Tensor]:
    names = [name for name in (CLEAN, "adv") if views.done(name)]
    return {name: (views.logits(name).argmax(1) == views.y(name)).sum() for name in names}
