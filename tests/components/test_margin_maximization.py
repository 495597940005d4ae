"""The switches of the margin family: what each changes, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import Any, cast

import pytest

from ablation.components import (
    ClosedFormGradient,
    ExponentialLoss,
    FabMargin,
    MarginMaximization,
    SoftBoundary,
)
from ablation.config import validation
from ablation.config.experiment import Config
from ablation.config.validation import load
from ablation.crafters import BoundarySearch, FabSearch
from ablation.numerics.boundary import Hard, Soft
from ablation.terms import BoundaryPointMargin, Exponential, Hinge, SearchedMargin, TaylorMargin
from ablation.training.method import Pass, parse_passes
from ablation.training.step import train_step
from tests.support.linear import GAMMA
from tests.support.margins import (
    CLOCK,
    arm,
    composed,
    confident_net,
    margin_batch,
    plain,
    trainer,
)

SWITCHES = ("burn_in", "closed_form_gradient", "exponential_loss", "fab_margin", "soft_boundary")


@cache
def everything() -> dict[str, Any]:
    return plain("method=elsayed", *(f"component/{name}=enabled" for name in SWITCHES))


def switched(*names: str, **keys: Any) -> dict[str, Any]:
    """method=elsayed with these components alone; keys have __ for dots, from ``component`` on."""
    container = copy.deepcopy(everything())
    for name in container["component"]:
        if name not in names:
            container["component"][name] = {"enabled": False}
    for key, value in keys.items():
        *folders, last = key.split("__")
        node = container if folders[0] in container else container["component"]
        for folder in folders:
            node = node[folder]
        node[last] = value
    return container


def problem_of(container: dict[str, Any]) -> str:
    _, problems = validation.check(container)
    assert len(problems) == 1, problems
    return problems[0]


MARGIN = "margin_maximization"
HARD_TAYLOR = "only the hard Taylor margin of the training pass has several; disable fab_margin"


@pytest.mark.parametrize(
    "name", ["closed_form_gradient", "exponential_loss", "fab_margin", "soft_boundary"]
)
def test_a_switch_of_the_margin_needs_the_margin(name):
    assert problem_of(switched(name)) == (
        f"component.{name}: has nothing to change without margin_maximization; set "
        f"component/margin_maximization=enabled or component/{name}=disabled"
    )
    assert validation.check(switched(MARGIN, name))[1] == []


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        ((), {"coef": 0}, "coef=0 must be positive; without the term: component/margin_max"),
        ((), {"gamma": 0}, "gamma=0 must be positive"),
        ((), {"gamma": "16/0"}, "component.margin_maximization.gamma"),
        ((), {"view": "adv"}, "component.margin_maximization: view=adv: the method has nat"),
        ((), {"reduction": "correct"}, "reduction=correct: divides by the correct samples; set w"),
        ((), {"layers": []}, "layers=[]: name at least the input"),
        ((), {"top_k": 2}, "top_k=2: at least 1, and of classes=max or sum"),
        ((), {"top_k": 0, "classes": "sum"}, "top_k=0: at least 1"),
        ((), {"classes": "max", "bn": "eval"}, HARD_TAYLOR),
        (("soft_boundary",), {"classes": "max"}, HARD_TAYLOR),
        (("fab_margin",), {"classes": "sum"}, HARD_TAYLOR),
        (("closed_form_gradient",), {"classes": "max"}, HARD_TAYLOR),
        (("fab_margin",), {"layers": ["", "layers.stage1"]}, HARD_TAYLOR),
        (
            ("fab_margin",),
            {"norm": "l1"},
            "component.margin_maximization.norm=l1: the search has linf and l2",
        ),
        (
            ("closed_form_gradient",),
            {"norm": "l1"},
            "component.margin_maximization.norm=l1: the search has linf and l2",
        ),
        (
            ("fab_margin",),
            {"gradient": "exact"},
            "component.margin_maximization.gradient=exact: a Taylor margin's; leave it at detached,"
            " or set component/fab_margin=disabled",
        ),
        (
            ("closed_form_gradient",),
            {"gradient": "exact"},
            "component.margin_maximization.gradient=exact: one gradient at a time; leave it at "
            "detached, or set component/closed_form_gradient=disabled",
        ),
    ],
)
def test_a_margin_that_contradicts_itself_is_named_with_a_remedy(names, keys, message):
    keys = {f"{MARGIN}__{key}": value for key, value in keys.items()}
    problem = problem_of(switched(MARGIN, *names, **keys))
    assert problem.startswith("component.")
    assert message in problem


@pytest.mark.parametrize(
    ("names", "keys", "messages"),
    [
        (
            ("fab_margin",),
            {"fab_margin__steps": 0},
            ("component.fab_margin: steps=0", "component/fab_margin=disabled"),
        ),
        (("fab_margin",), {"fab_margin__restarts": 0}, ("component.fab_margin", "restarts=0")),
        (("burn_in",), {"burn_in__epochs": 0}, ("epochs=0: at least 1", "burn_in=disabled")),
        (("burn_in",), {"burn_in__lr": 0}, ("component.burn_in: lr=0 must be positive",)),
        (
            ("burn_in",),
            {"burn_in__lr": 0.1, "burn_in__optimizer": "keep"},
            ("component.burn_in: lr=0.1, clip=None: optimizer=keep", "set both to null"),
        ),
        (("exponential_loss",), {"exponential_loss__alpha": 0}, ("exponential_loss: alpha=0",)),
        (("soft_boundary",), {"soft_boundary__beta": 0}, ("component.soft_boundary: beta=0",)),
        (
            ("closed_form_gradient",),
            {"margin_maximization__norm": "l2", "closed_form_gradient__filter": "kkt"},
            ("component.closed_form_gradient: filter=kkt", "linf, not l2"),
        ),
        (
            ("exponential_loss", "fab_margin"),
            {"fab_margin__wrong": "include"},
            ("component.fab_margin: wrong=include", "set wrong=exclude"),
        ),
        (
            ("fab_margin",),
            {"fab_margin__gradient": "last_projection", "fab_margin__wrong": "include"},
            ("component.fab_margin: wrong=include: a misclassified sample has no boundary point",),
        ),
        (
            ("fab_margin",),
            {"fab_margin__gradient": "last_projection", "margin_maximization__bn": "eval"},
            ("component.fab_margin: bn=eval: the gradient is that of the points' training pass",),
        ),
        (
            ("closed_form_gradient",),
            {"margin_maximization__bn": "eval"},
            ("component.closed_form_gradient: bn=eval: the gradient is that of the points'",),
        ),
        (
            ("fab_margin", "closed_form_gradient"),
            {"margin_maximization__bn": "eval"},
            ("component.closed_form_gradient: bn=eval: the gradient is that of the points'",),
        ),
        ((), {"fab_margin__steps": 5}, ("component.fab_margin.steps=5: no effect", "=enabled")),
        (
            (),
            {"runtime__compile": True, "margin_maximization__gradient": "exact"},
            ("runtime.compile=true: terms.margin differentiates twice", "set runtime.compile=fal"),
        ),
        (
            (),
            {"runtime__compile": True, "margin_maximization__layers": ["", "layers.stage1"]},
            ("runtime.compile=true: terms.margin hooks into the network (layers)",),
        ),
    ],
)
def test_what_a_switch_cannot_do_is_named_with_a_remedy(names, keys, messages):
    problem = problem_of(switched(MARGIN, *names, **keys))
    for message in messages:
        assert message in problem


def test_a_broken_part_is_named_once_and_not_by_those_that_build_on_it():
    keys = {f"{MARGIN}__reduction": "correct"}
    for name in ("closed_form_gradient", "exponential_loss", "fab_margin"):
        problem = problem_of(switched(MARGIN, name, **keys))
        assert problem.startswith("component.margin_maximization: reduction=correct")


@pytest.mark.parametrize(
    ("key", "value"),
    [("wrong", "include"), ("gradient", "straight_through"), ("gradient", "last_projection")],
)
def test_the_closed_form_does_not_overrule_what_was_asked_of_the_search(key, value):
    container = switched(
        MARGIN, "fab_margin", "closed_form_gradient", **{f"fab_margin__{key}": value}
    )
    assert "component.closed_form_gradient: replaces the gradient" in problem_of(container)


def test_an_exponential_does_not_overrule_the_reduction_that_was_asked_for():
    keys = {f"{MARGIN}__reduction": "correct", f"{MARGIN}__wrong": "exclude"}
    keys["exponential_loss__reduction"] = "batch"
    problem = problem_of(switched(MARGIN, "exponential_loss", **keys))
    assert problem.startswith("component.exponential_loss: reduction=batch")


def test_what_changes_a_taylor_margin_comes_before_what_exchanges_it():
    for later in (FabMargin(), ClosedFormGradient()):
        for part in (ExponentialLoss(), SoftBoundary(), FabMargin()):
            with pytest.raises(ValueError, match="is applied before fab_margin and closed_form"):
                arm(MarginMaximization(), later, part)


@pytest.mark.parametrize("part", [FabMargin(), ClosedFormGradient()])
def test_a_search_is_around_the_clean_images(part):
    at = composed("method=at").phases[-1].method
    with pytest.raises(ValueError, match="view=adv: the search is around the clean images"):
        arm(MarginMaximization(view="adv"), part, method=at)


def test_a_clean_pass_of_the_method_itself_stays_when_the_margin_leaves_it():
    at = composed("method=at").phases[-1].method
    own = replace(at, passes=parse_passes("craft:adv", "nat", "adv", "step"))
    for method, clean in ((at, 0), (own, 1)):
        changed = arm(MarginMaximization(), ClosedFormGradient(), method=method)
        assert changed.passes.count(Pass("view", "nat")) == clean


def test_fab_starts_at_the_image_except_in_dyart():
    starts = []
    for overrides in (("method=elsayed", "component/fab_margin=enabled"), ("method=dyart",)):
        crafter = cast(BoundarySearch, composed(*overrides).phases[-1].method.crafters["boundary"])
        starts.append(cast(FabSearch, crafter.search).start)
    assert starts == ["clean", "random"]


@pytest.mark.parametrize("name", [MARGIN, *SWITCHES])
def test_each_part_of_dyart_can_be_disabled_or_is_refused_with_a_remedy(name):
    off = f"component/{name}=disabled"
    config, problems = validation.check(plain("method=dyart", off))
    if name == MARGIN:
        assert len(problems) == 4
        assert all(f"component/{MARGIN}=enabled" in problem for problem in problems)
        return
    if name == "fab_margin":  # the filter is for searched points
        assert "set component.closed_form_gradient.filter=none" in problems[0]
        unfiltered = plain("method=dyart", off, "component.closed_form_gradient.filter=none")
        config, problems = validation.check(unfiltered)
    assert problems == []
    assert config is not None
    net, method = confident_net(), config.phases[-1].method
    log, _ = train_step(method, net, trainer(net, 1e-4), margin_batch(), CLOCK, seed=0)
    assert log.facts["boundary_found"] > 0
    assert log.parts["margin"] > 0
    assert len(config.phases) == (1 if name == "burn_in" else 2)


def test_elsayed_without_its_margin_is_standard_training():
    method = composed("method=elsayed", f"component/{MARGIN}=disabled").phases[-1].method
    assert method == composed("method=standard").phases[-1].method


def test_the_order_of_switches_is_not_that_of_the_command_line():
    container = switched(MARGIN, *SWITCHES)
    first = load(container)
    nodes = container["component"]
    for order in [*permutations((MARGIN, *SWITCHES))][::71]:
        rest = {name: node for name, node in nodes.items() if name not in order}
        again = load({**container, "component": {**{n: nodes[n] for n in order}, **rest}})
        assert again.phases == first.phases
        assert again.train_id == first.train_id
    assert _term(first).surface == Soft(5.0)
    assert isinstance(_term(first), BoundaryPointMargin)


def _term(config: Config) -> Any:
    return config.phases[-1].method.terms["margin"].term


def test_switches_change_only_what_they_say():
    plainly = _term(load(switched(MARGIN)))
    assert plainly.surface == Hard()
    assert isinstance(plainly, TaylorMargin)
    assert (plainly.gradient, plainly.wrong) == ("detached", "include")
    exponential_ = _term(load(switched(MARGIN, "exponential_loss")))
    changed = {"penalty", "wrong", "reduction"}
    kept = set(plainly.__dataclass_fields__) - changed
    assert all(getattr(exponential_, name) == getattr(plainly, name) for name in kept)
    assert plainly.penalty == Hinge(GAMMA)
    assert exponential_.penalty.gamma == GAMMA
    searched = _term(load(switched(MARGIN, "fab_margin")))
    assert searched == SearchedMargin(Hinge(GAMMA))
    closed = _term(load(switched(MARGIN, "exponential_loss", "closed_form_gradient")))
    assert closed == BoundaryPointMargin(Exponential(3.0, GAMMA), reduction="correct")
    soft_ = _term(load(switched(MARGIN, "soft_boundary")))
    assert replace(soft_, surface=Hard()) == plainly
