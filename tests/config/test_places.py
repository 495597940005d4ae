"""Every part class in every place of a config: it fits, or one line says so."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from typing import Any

import pytest

from ablation.config.experiment import Config
from ablation.config.parser import Parser
from ablation.config.places import ROOMS, is_protocol, keeps
from ablation.evaluation import Evaluation, Request

PARTS = {
    f"{room}.{name}": cls
    for room in ROOMS
    for name, cls in vars(importlib.import_module(room)).items()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls)
}
OTHERS = (
    *("ablation.types.Gate", "ablation.types.Batch", "ablation.types.MemorySpec"),
    *("ablation.training.method.Slot", "ablation.training.method.Method"),
    *("ablation.config.experiment.Config", "ablation.training.optim.Sgd"),
    *("ablation.evaluation.AttackBase", "ablation.evaluation.MeasureBase"),
)
"""Dataclasses that are no part at all."""


RESULTS = (Evaluation, Request)
"""Of the room ``evaluation``: no YAML has them."""


def places(cls: Any, seen: set[Any]) -> dict[str, tuple[type, ...]]:
    """Every field below a class that asks for a part: what it asks for."""
    found: dict[str, tuple[type, ...]] = {}
    if cls in seen or cls in RESULTS:
        return found
    seen.add(cls)
    for name, hint in typing.get_type_hints(cls).items():
        flat = list(arguments(hint))
        if wanted := tuple(each for each in flat if is_protocol(each)):
            found[f"{cls.__name__}.{name}"] = wanted
        for each in flat:
            if isinstance(each, type) and dataclasses.is_dataclass(each):
                found |= places(each, seen)
    return found


def arguments(hint: Any) -> typing.Iterator[Any]:
    yield hint
    for each in typing.get_args(hint):
        yield from arguments(each)


def every_place() -> dict[str, tuple[type, ...]]:
    seen: set[Any] = set()
    found: dict[str, tuple[type, ...]] = {}
    for cls in (Config, *PARTS.values()):
        found |= places(cls, seen)
    return {place: wanted for place, wanted in found.items() if not place.startswith("Phase.")}


PLACES = every_place()


def test_the_places_are_found():
    assert {
        *("Ascended.loss", "Slot.term", "Slot.weight", "Config.schedule", "Config.component"),
        *("EvaluationConfig.attacks", "DataConfig.source", "BoundarySearch.search"),
    } <= set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_a_part_fits_its_place_or_is_refused_in_one_line(place):
    wanted = PLACES[place]
    hint = wanted[0] if len(wanted) == 1 else typing.Union[wanted]  # noqa: UP007
    fitting = 0
    for target in (*PARTS, *OTHERS):
        parser = Parser()
        parser.parse(hint, {"_target_": target}, "x")
        module, _, name = target.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        if any(keeps(cls, protocol) for protocol in wanted):
            fitting += 1
            assert not any("it is no " in problem for problem in parser.problems)
            continue
        kinds = " or ".join(protocol.__name__ for protocol in wanted)
        (problem,) = parser.problems
        assert problem.startswith(f"x._target_='{target}': it is no {kinds}; choose from ablation.")
    assert fitting > 0


def test_terms_weights_and_budgets_are_told_apart():
    parser = Parser()
    node = {"_target_": "ablation.terms.CrossEntropy", "view": "nat"}
    from ablation.types import Budget, Term, Weight

    for hint in (Weight, Budget):
        parser.parse(hint, node, "x")
    assert len(parser.problems) == 2
    assert Parser().parse(Term, node, "x") is not None
