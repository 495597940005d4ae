"""A training method as data: crafters, budget, passes, terms, ascent; no code of its own.

``passes`` is an ordered list from a closed vocabulary. Its order and number of train-mode forwards
move BatchNorm's statistics and so belong to the published method:

    craft:<name>   run a crafter; the points become the view <name>
    <view>         a train-mode forward of ``nat`` (the clean images) or of a crafted view
    frozen:<view>  the same, but BatchNorm's running statistics stay as they are
    bn:<view>      feed that view's batch statistics into the running ones again, without a forward
    ascent         the weights move here (AWP); passes before it are at the unmoved weights, for
                   BatchNorm alone. Without it they move before all passes; nothing moves them in a
                   method that has no ascent
    step           loss, backward, optimiser step; views after it are forwards for BatchNorm alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

from ablation.training.memory import memory_problems
from ablation.types import (
    Ascent,
    Budget,
    Clock,
    Crafter,
    CraftsSubset,
    Differentiates,
    Gate,
    HeadFactory,
    NeedsWholeBatch,
    Schedule,
    Term,
    Weight,
)

CLEAN = "nat"
"""The view of the clean images."""


Kind = Literal["craft", "view", "frozen", "replay", "ascent", "step"]
PREFIXES: Mapping[Kind, str] = {"craft": "craft:", "frozen": "frozen:", "replay": "bn:", "view": ""}
"""How entries with a view are written in YAML."""
FORWARDS = ("view", "frozen")
"""Kinds that make the forward which terms read."""


@dataclass(frozen=True)
class Pass:
    """One entry of ``passes``; ``str`` gives it as it is written in YAML.

    Attributes:
        kind: ``craft`` runs a crafter, ``view`` is a train-mode forward, ``frozen`` one that leaves
            BatchNorm's running statistics alone, ``replay`` feeds a view's batch statistics again,
            ``ascent`` moves the weights, ``step`` is loss, backward and optimiser step.
        view: crafted, forwarded or replayed; "" for ``ascent`` and ``step``.
    """

    kind: Kind
    view: str = ""

    @staticmethod
    def parse(text: str) -> Pass:
        """Read an entry as it is written in YAML: ``craft:adv``, ``adv``, ``bn:adv``, ``step``."""
        for single in (ASCENT, STEP):
            if text == single.kind:
                return single
        for kind, prefix in PREFIXES.items():
            if prefix and text.startswith(prefix):
                return Pass(kind, text.removeprefix(prefix))
        return Pass("view", text)

    def __str__(self) -> str:
        return PREFIXES.get(self.kind, self.kind) + self.view


ASCENT = Pass("ascent")
STEP = Pass("step")


def parse_passes(*texts: str) -> tuple[Pass, ...]:
    """Read the entries of ``passes`` as they are written in YAML."""
    return tuple(Pass.parse(text) for text in texts)


@dataclass(frozen=True)
class Slot:
    """One term of the loss: coef * gate(epoch) * sum_i(weight_i * term_i) / N.

    Attributes:
        term: loss per sample.
        coef: coefficient.
        weight: weight per sample; ``None`` counts every sample once.
        gate: when the coefficient applies.
    """

    term: Term
    coef: float = 1.0
    weight: Weight | None = None
    gate: Gate = field(default_factory=Gate)

    def factor(self, clock: Clock) -> float:
        """Compute the coefficient at an epoch; a term with 0 is not evaluated."""
        return self.coef * self.gate(clock)


@dataclass(frozen=True)
class Method:
    """Composition of one training step.

    Attributes:
        crafters: name -> crafter; the name is also that of its view.
        budget: radius of each example.
        passes: in order; see the module.
        terms: name -> slot; the loss is their sum.
        roles: ``robust`` and ``classify`` name the terms that play these parts, so that a
            component can put a weight on "the robust term" of any method.
        ascent: moves the weights before the gradient is taken.
        head: replaces the model's head.
        added: views that terms have brought, and that may leave with them.
    """

    crafters: Mapping[str, Crafter]
    budget: Budget
    passes: tuple[Pass, ...]
    terms: Mapping[str, Slot]
    roles: Mapping[str, str] = field(default_factory=dict)
    ascent: Ascent | None = None
    head: HeadFactory | None = None
    added: frozenset[str] = frozenset()

    @property
    def training_passes(self) -> tuple[Pass, ...]:
        """The passes before ``step``, or all if there is none."""
        return self.passes[: self.passes.index(STEP)] if STEP in self.passes else self.passes

    @property
    def loss_passes(self) -> tuple[Pass, ...]:
        """The training passes that the loss is taken of: those after ``ascent``, or all."""
        passes = self.training_passes
        return passes[passes.index(ASCENT) + 1 :] if ASCENT in passes else passes

    @property
    def trailing_passes(self) -> tuple[Pass, ...]:
        """The passes after ``step``: forwards for BatchNorm alone."""
        return self.passes[len(self.training_passes) + 1 :]

    def with_crafter(self, name: str, crafter: Crafter) -> Method:
        """Add a crafter; its pass goes after the last one, or first."""
        passes = self._inserted(Pass("craft", name), after_crafts(self.passes))
        return replace(self, crafters={**self.crafters, name: crafter}, passes=passes)

    def _inserted(self, new: Pass, place: int) -> tuple[Pass, ...]:
        return (*self.passes[:place], new, *self.passes[place:])

    def with_view(self, name: str) -> Method:
        """Add the train-mode pass of a view unless there is one.

        A missing ``nat`` goes before the other views, after the last craft and ``ascent``; a
        crafted view goes right before ``step``.
        """
        view = Pass("view", name)
        if name in forwarded(self.loss_passes):
            return self
        place = before_views(self.passes) if name == CLEAN else self.passes.index(STEP)
        return replace(self, passes=self._inserted(view, place), added=self.added | {name})

    def with_term(self, name: str, slot: Slot) -> Method:
        """Add a term and the views it needs.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.terms:
            raise ValueError(f"term {name} exists already")
        method = replace(self, terms={**self.terms, name: slot})
        for view in _needs(slot):
            method = method.with_view(view)
        return method

    def with_changed_term(self, name: str, term: Term) -> Method:
        """Put another term into a slot, and add the views it needs."""
        slot = replace(self.terms[name], term=term)
        method = replace(self, terms={**self.terms, name: slot})
        for view in _needs(slot):
            method = method.with_view(view)
        return method

    def with_weight(self, role: str, weight: Weight) -> Method:
        """Put a weight on the term that plays a role.

        Raises:
            ValueError: nothing plays it, or another weight is there already.
        """
        name = self.roles.get(role)
        if name is None or name not in self.terms:
            raise ValueError(f"no term in the role {role} to weigh; set method=at, trades or mart")
        slot = self.terms[name]
        if slot.weight is not None:
            raise ValueError(f"term {name} has a weight already")
        return replace(self, terms={**self.terms, name: replace(slot, weight=weight)})

    def with_ascent(self, ascent: Ascent) -> Method:
        """Set the ascent.

        Raises:
            ValueError: there is one already.
        """
        if self.ascent is not None:
            raise ValueError("another component moves the weights already")
        return replace(self, ascent=ascent)

    def observed(self) -> dict[str, tuple[str, ...]]:
        """Collect the views that terms differentiate with respect to.

        Returns:
            View -> layers of the network's body; "" is the input.
        """
        layers_of: dict[str, dict[str, None]] = {}
        for slot in self.terms.values():
            if isinstance(slot.term, Differentiates):
                for view, layers in slot.term.differentiates.items():
                    layers_of.setdefault(view, {}).update(dict.fromkeys(layers))
        return {view: tuple(layers) for view, layers in layers_of.items()}

    def problems(self) -> list[str]:
        """List the contradictions, one line each; empty if the method can train."""
        problems = (
            []
            if self.passes.count(STEP) == 1
            else [f"passes={[str(entry) for entry in self.passes]}: exactly one {STEP} is needed"]
        )
        problems += self._pass_problems()
        if not self.terms:
            problems.append("terms is empty: there is nothing to minimise")
        for name, slot in self.terms.items():
            problems += self._term_problems(name, slot)
        problems += [
            f"roles.{role}={name}: there is no such term; choose from {', '.join(self.terms)}"
            for role, name in self.roles.items()
            if name not in self.terms
        ]
        return problems + memory_problems(self)

    def _pass_problems(self) -> Iterator[str]:
        """Yield the passes that name no view or stand in the wrong order."""
        known = {CLEAN, *self.crafters}
        done: set[Pass] = set()
        for entry in self.passes:
            kind, view = entry.kind, entry.view
            if kind not in ("ascent", "step") and (
                view not in known or entry == Pass("craft", CLEAN)
            ):
                yield f"passes: {entry} names no view; choose from {', '.join(sorted(known))}"
            if kind == "replay" and Pass("view", view) not in done:
                yield f"passes: {entry} comes before the pass {view}"
            if kind == "replay" and STEP in done:
                yield f"passes: {entry} comes after {STEP}; put {view} there instead"
            if kind == "craft" and STEP in done:
                yield f"passes: {entry} comes after {STEP}, where no term sees its points"
            if kind == "craft" and ASCENT in done:
                yield f"passes: {entry} comes after {ASCENT}; attacks are at the unmoved weights"
            if kind == "ascent" and STEP in done:
                yield f"passes: {entry} comes after {STEP}; put it before"
            if kind == "ascent" and ASCENT in done:
                yield f"passes: {entry} is there twice"
            if kind == "ascent":
                # other weights: other views
                done = {each for each in done if each.kind not in FORWARDS}
            crafted = kind in FORWARDS and view != CLEAN and view in self.crafters
            if crafted and Pass("craft", view) not in done:
                yield f"passes: {entry} comes before {Pass('craft', view)}"
            done.add(entry)

    def _term_problems(self, name: str, slot: Slot) -> Iterator[str]:
        """Yield the views that a term or its weight lacks, or that hold too few samples."""
        for view in _needs(slot):
            if view not in forwarded(self.loss_passes):
                yield f"terms.{name} needs the view {view}: add it to passes, or remove the term"
        for part in (slot.term, slot.weight):
            if part and _needs_whole_batch(part):
                for view in part.needs:
                    if _crafts_subset(self.crafters.get(view)):
                        yield (
                            f"terms.{name} needs every sample, but the view {view} holds those "
                            f"only whose point was found; choose another view"
                        )


def _needs_whole_batch(part: object) -> bool:
    return isinstance(part, NeedsWholeBatch) and part.whole


def _crafts_subset(crafter: object) -> bool:
    return isinstance(crafter, CraftsSubset) and crafter.subset


def _needs(slot: Slot) -> tuple[str, ...]:
    return slot.term.needs + (slot.weight.needs if slot.weight else ())


def forwarded(passes: Sequence[Pass]) -> set[str]:
    """Collect the views that have a train-mode forward among the passes."""
    return {entry.view for entry in passes if entry.kind in FORWARDS}


def after_crafts(passes: Sequence[Pass]) -> int:
    """Find the place behind the last ``craft``; 0 if there is none."""
    return max((i + 1 for i, entry in enumerate(passes) if entry.kind == "craft"), default=0)


def before_views(passes: Sequence[Pass]) -> int:
    """Find the first place for views of the loss: behind ``ascent``, or the last ``craft``."""
    return passes.index(ASCENT) + 1 if ASCENT in passes else after_crafts(passes)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one method.

    Attributes:
        name: ``main`` for the phase that ``epochs`` counts.
        epochs: its length.
        method: what a step does.
        optim: ``keep`` the optimiser's state and go on along the schedule, or start ``fresh``.
        selectable: may its epochs be chosen as best?
        lr: its own peak learning rate; ``None`` means the run's.
        schedule: its own schedule; ``None`` means the run's.
        clip: its own largest gradient norm, inf for none; ``None`` means the run's.
        counts_from: number of its first epoch on the clock: the second part of a phase that was
            split goes on counting.
    """

    name: str
    epochs: int
    method: Method
    optim: Literal["keep", "fresh"] = "keep"
    selectable: bool = True
    lr: float | None = None
    schedule: Schedule | None = None
    clip: float | None = None
    counts_from: int = 0


class Component(Protocol):
    """What a user switches: a dataclass of hyperparameters, derived from this class.

    Components are applied in alphabetical order, but each after those in ``requires`` and
    ``after``; then each may arrange the phases.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Components that must be enabled."""
    after: ClassVar[tuple[str, ...]] = ()
    """Components that are applied earlier if they are enabled."""
    note: ClassVar[str] = ""
    """What every number of a run with it must say, or nothing."""

    def apply(self, method: Method) -> Method:
        """The method with the component in it.

        Raises:
            ValueError: it does not fit; the message says why.
        """

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Add or change phases, once all components are applied to each phase's method.

        Raises:
            ValueError: it does not fit; the message says why.
        """
        return phases
