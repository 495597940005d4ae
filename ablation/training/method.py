"""A training method as data: crafters, budget, passes, terms, ascent; no code of its own.

``passes`` is an ordered list from a closed vocabulary. Its order and number of train-mode forwards
move BatchNorm's statistics and so belong to the published method:

    craft:<name>   run a crafter; the points become the view <name>
    <view>         a train-mode forward of ``nat`` (the clean images) or of a crafted view
    bn:<view>      feed that view's batch statistics into the running ones again, without a forward
    step           loss, backward, optimiser step; views after it are forwards for BatchNorm alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ablation.training.memory import memory_problems
from ablation.types import (
    Ascent,
    Budget,
    Clock,
    Crafter,
    Differentiates,
    Gate,
    HeadFactory,
    Schedule,
    Term,
    Weight,
)

CRAFT, REPLAY, STEP, CLEAN = "craft:", "bn:", "step", "nat"


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
        """The coefficient at a moment; 0 means the term is not even computed."""
        return self.coef * self.gate(clock)


@dataclass(frozen=True)
class Method:
    """What one training step does.

    Attributes:
        crafters: name -> crafter; the name is also that of its view.
        budget: radius of each example.
        passes: see the module.
        terms: name -> slot; the loss is their sum.
        roles: ``robust`` and ``classify`` name the terms that play these parts, so that a
            component can put a weight on "the robust term" of any method.
        ascent: moves the weights before the gradient is taken.
        head: replaces the model's head.
        added: views that terms have brought, and that may leave with them.
    """

    crafters: Mapping[str, Crafter]
    budget: Budget
    passes: Sequence[str]
    terms: Mapping[str, Slot]
    roles: Mapping[str, str] = field(default_factory=dict)
    ascent: Ascent | None = None
    head: HeadFactory | None = None
    added: frozenset[str] = frozenset()

    def with_crafter(self, name: str, crafter: Crafter) -> Method:
        """Add a crafter; its pass goes after the last one, or first."""
        crafts = [i for i, token in enumerate(self.passes) if token.startswith(CRAFT)]
        place = crafts[-1] + 1 if crafts else 0
        passes = [*self.passes[:place], CRAFT + name, *self.passes[place:]]
        return replace(self, crafters={**self.crafters, name: crafter}, passes=tuple(passes))

    def with_view(self, name: str) -> Method:
        """Make sure that a train-mode pass of a view exists.

        A missing ``nat`` goes after the last craft, before the other views; a crafted view goes
        right before ``step``.
        """
        if name in self.passes:
            return self
        crafts = [i for i, token in enumerate(self.passes) if token.startswith(CRAFT)]
        after_craft = crafts[-1] + 1 if crafts else 0
        place = after_craft if name == CLEAN else list(self.passes).index(STEP)
        passes = (*self.passes[:place], name, *self.passes[place:])
        return replace(self, passes=passes, added=self.added | {name})

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
            raise ValueError(f"this method has no term in the role {role}")
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
        """Views that terms differentiate with respect to, and the layers of each; "" is input."""
        found: dict[str, dict[str, None]] = {}
        for slot in self.terms.values():
            if isinstance(slot.term, Differentiates):
                for view, layers in slot.term.differentiates.items():
                    found.setdefault(view, {}).update(dict.fromkeys(layers))
        return {view: tuple(layers) for view, layers in found.items()}

    def problems(self) -> list[str]:
        """What does not fit together, one line each; empty if it can train."""
        found = []
        known = {CLEAN, *self.crafters}
        passes = list(self.passes)
        if passes.count(STEP) != 1:
            found.append(f"passes={passes}: exactly one {STEP} is needed")
        done: set[str] = set()
        found += [
            f"terms.{name}: the name is taken by the log; choose another"
            for name in self.terms
            if name in ("loss", "gradient", "images") or name.startswith(("correct_", "craft_"))
        ]
        before = passes[: passes.index(STEP)] if STEP in passes else passes
        for token in passes:
            view = token.removeprefix(CRAFT).removeprefix(REPLAY)
            if token != STEP and (view not in known or token == CRAFT + CLEAN):
                found.append(
                    f"passes: {token} names no view; choose from {', '.join(sorted(known))}"
                )
            if token.startswith(REPLAY) and view not in done:
                found.append(f"passes: {token} comes before the pass {view}")
            if token.startswith(REPLAY) and STEP in done:
                found.append(f"passes: {token} comes after {STEP}; put {view} there instead")
            if view != CLEAN and token in self.crafters and CRAFT + view not in done:
                found.append(f"passes: {token} comes before {CRAFT}{view}")
            done.add(token)
        if not self.terms:
            found.append("terms is empty: there is nothing to minimise")
        for name, slot in self.terms.items():
            found += [
                f"terms.{name} needs the view {view}: add it to passes, or remove the term"
                for view in _needs(slot)
                if view not in before
            ]
            found += [
                f"terms.{name} needs every sample, but the view {view} holds those only whose "
                f"point was found; choose another view"
                for part in (slot.term, slot.weight)
                if part and getattr(part, "whole", False)
                for view in part.needs
                if getattr(self.crafters.get(view), "subset", False)
            ]
        found += [
            f"roles.{role}={name}: there is no such term; choose from {', '.join(self.terms)}"
            for role, name in self.roles.items()
            if name not in self.terms
        ]
        return found + memory_problems(self)


def _needs(slot: Slot) -> tuple[str, ...]:
    return slot.term.needs + (slot.weight.needs if slot.weight else ())


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
    """

    name: str
    epochs: int
    method: Method
    optim: Literal["keep", "fresh"] = "keep"
    selectable: bool = True
    lr: float | None = None
    schedule: Schedule | None = None
    clip: float | None = None


class Component(Protocol):
    """What a user switches: a dataclass of hyperparameters with one pure function.

    A component that adds phases also has ``arrange(phases) -> phases``, called once all are
    applied. ``requires`` names components that must be enabled, ``after`` others that are applied
    earlier if they are enabled (those it requires are, anyway); else the order is alphabetical.
    """

    def apply(self, method: Method) -> Method:
        """The method with the component in it.

        Raises:
            ValueError: it does not fit; the message says why.
        """
