"""Parsing: every mistake at once, fractions, parts, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ablation.config.parser import Parser, fraction, plain, relative_step
from ablation.text import show_fraction
from ablation.training.optim import AdamW, Optim, Sgd
from ablation.types import Budget, Fraction, StepSize


@dataclass(frozen=True)
class Inner:
    steps: int
    step_size: StepSize = 0.25
    eps: Fraction | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    eps: Fraction
    inner: Inner
    mode: Literal["a", "b"] = "a"
    rates: list[float] = field(default_factory=list)
    parts: Mapping[str, Budget | None] = field(default_factory=dict)
    limit: int | None = None
    flag: bool = False
    order: Sequence[str] = ()


GOOD: dict[str, Any] = {
    "name": "x",
    "eps": "8/255",
    "inner": {"steps": 3, "step_size": "2/255"},
    "rates": [1, 0.5],
    "parts": {"b": {"_target_": "ablation.budgets.Fixed", "eps": "1/4"}, "none": None},
}


def parse(values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    parser = Parser()
    return parser.parse(Outer, values, ""), parser.problems


def test_values_are_converted():
    found, problems = parse(GOOD)
    assert problems == []
    assert found.eps == 8 / 255
    assert found.inner.step_size == 0.25
    assert found.rates == [1.0, 0.5]
    assert found.parts["b"].eps == 0.25
    assert found.parts["none"] is None


@dataclass(frozen=True)
class Choosing:
    optim: Optim


@pytest.mark.parametrize("optim", [Sgd(momentum=0.5), AdamW(betas=(0.5, 0.9), clip=1.0)])
def test_the_first_of_several_classes_goes_without_saying_and_another_is_named(optim):
    container = plain(Choosing(optim))
    named = {} if isinstance(optim, Sgd) else {"_target_": "ablation.training.optim.AdamW"}
    assert {k: v for k, v in container["optim"].items() if k == "_target_"} == named
    parser = Parser()
    assert parser.parse(Choosing, container, "") == Choosing(optim)
    assert parser.problems == []


def test_a_nodes_own_eps_scales_its_steps():
    found, _ = parse({**GOOD, "inner": {"steps": 1, "eps": "4/255", "step_size": "1/255"}})
    assert found.inner.step_size == 0.25


def test_plain_is_complete_canonical_and_a_fixed_point():
    found, _ = parse(GOOD)
    container = plain(found)
    assert container["parts"]["b"] == {
        "_target_": "ablation.budgets.Fixed",
        "eps": 0.25,
        "scale": 1.0,
    }
    assert container["limit"] is None
    assert container["inner"]["step_size"] == "eps*0.25"
    assert plain(parse(container)[0]) == container


def test_every_mistake_is_reported_at_once_with_key_value_and_remedy():
    _, problems = parse(
        {
            "eps": "8/0",
            "inner": {"steps": "many", "stepsize": 1},
            "mode": "c",
            "rates": 3,
            "parts": {
                "a": {"_target_": "os.system", "command": "true"},
                "b": {"_target_": "ablation.budgets.Fixd"},
                "c": {"_target_": "ablation.budgets.Fixed", "eps": 1, "scal": 2},
            },
            "limit": 1.5,
            "flag": "perhaps",
        }
    )
    text = "\n".join(problems)
    for expected in (
        "name is missing: set name=...",
        "eps='8/0': not a number; write for example 8/255 or 0.03",
        "inner.steps='many': expected a whole number",
        "inner.stepsize=1: unknown key; did you mean step_size?",
        "mode='c': choose from a, b",
        "rates=3: expected a list",
        "parts.a._target_='os.system': only classes under ablation. may be named",
        "parts.b._target_='ablation.budgets.Fixd': there is no such class",
        "parts.c.scal=2: unknown key; did you mean scale?",
        "limit=1.5: expected a whole number",
        "flag='perhaps': expected true or false",
    ):
        assert expected in text
    assert len(problems) == 11


def test_a_part_that_refuses_its_values_names_its_key():
    node = {"_target_": "ablation.budgets.Fixed", "eps": -1}
    _, problems = parse({**GOOD, "parts": {"b": node}})
    assert problems == ["parts.b: eps=-1 and scale=1 must not be negative"]


@pytest.mark.parametrize("text", ["nan", "inf", "1/0", "1/2/3", "abc", True, None, [1]])
def test_what_is_no_number_is_refused(text):
    with pytest.raises((ValueError, TypeError)):
        fraction(text)


def test_numbers_are_written_in_many_ways():
    assert fraction("8/255") == fraction(8 / 255) == 8 / 255
    assert fraction("1e-3") == 0.001
    assert [relative_step(t, 0.1) for t in ("eps", "eps/4", "eps*2", "eps * 0.5")] == [
        1,
        0.25,
        2,
        0.5,
    ]
    assert relative_step(0.01, 0.1) == pytest.approx(0.1)
    assert relative_step(0.01, 0.0) == 0.0
    assert show_fraction(8 / 255) == "8/255 = 0.0314"
    assert show_fraction(0.1) == "0.1"
    assert show_fraction(0.0) == "0"
