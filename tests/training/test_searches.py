"""Captured searches: the points of the same search run as it is, in one launch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from ablation.crafters import Pgd
from ablation.models.folding import Folded
from ablation.models.net import Net
from ablation.numerics.graphs import Graphs
from ablation.random import draw, generator
from ablation.training import searches as module
from ablation.training.memory import Memories, remembering
from ablation.training.method import Method
from ablation.training.searches import KEPT, Capture, Searches
from ablation.training.step import train_step
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Crafted, Views
from tests.support.compiling import counted_programs
from tests.support.device_steps import composing
from tests.support.parts import largest_difference, sgd, small_batch, small_net
from tests.support.pretended_cuda import pretending
from tests.support.sampling import some_of

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ()) for name in ("at", "trades", "mart", "dyart", "mma")},
    "l2": ("at", ("norm=l2",)),
    "counted": ("at", ("component/gairat=enabled",)),
    "radii of each sample": ("trades", ("component/margin_weighted_epsilon=enabled",)),
    "weighted": ("at", ("component/wat=enabled",)),
    "masked": ("dyart", ("component.closed_form_gradient.masked=true",)),
}
SIZES = (8, 8, 5, 8, 5)
"""Of the batches: the last of an epoch is smaller."""


@pytest.fixture(scope="module")
def methods() -> Iterator[Callable[[str], Method]]:
    with composing("scale=smoke") as config:
        yield lambda name: config(*METHODS[name]).phases[-1].method


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a person is told."""
    found: list[str] = []
    monkeypatch.setattr(module, "warn", found.append)
    return found


def again(run: Callable[[], Crafted]) -> Callable[[], Crafted]:
    """Records nothing: the same program on the same buffers, run by Python."""
    return run


def trained(
    method: Method,
    capture: Capture | None,
    device: str = "cpu",
    fresh: int | None = None,
    compiled: int | None = None,
) -> Net:
    """The small network after steps of a method; ``fresh`` makes new programs at a step."""
    net = small_net(head=method.head(6, 3) if method.head else None).to(device).train()
    folded, optimizer = Folded(net, compiled), sgd(net)
    rows = {"n_train": 100, "batch_size": 8, "classes": 3}
    memories = Memories([method], **rows, device=torch.device(device))
    searches = None if capture is None else Searches(8, capture)
    for step, size in enumerate(SIZES):
        if step == fresh and capture is not None:
            searches = Searches(8, capture)
        own = small_batch(step, size)
        batch = Batch(own.x.to(device), own.y.to(device), own.index.to(device))
        _, views = train_step(
            *(method, net, optimizer, batch, Clock(1, step)),
            seed=0,
            folded=folded,
            searches=searches,
            memories=memories,
        )
        memories.commit(remembering(method), views)
    return net.to("cpu")


@pytest.mark.parametrize("name", some_of(METHODS, 2))
def test_a_captured_search_has_the_bits_of_the_search_as_it_is(methods, said, name):
    method = methods(name)
    plain = trained(method, None)
    assert largest_difference(plain, trained(method, again)) == 0
    with pretending() as log:
        captured = trained(method, Graphs(), "cuda")
    assert largest_difference(plain, captured) == 0
    assert said == log.refused == []
    assert log.launches["replay"] == len(SIZES) * len(method.crafters)
    assert sum(wait.place.startswith("training/searches") for wait in log.waits) == len(
        method.crafters
    )


@pytest.mark.parametrize("name", ["trades", "mma", "dyart"])
def test_a_run_that_goes_on_at_a_small_batch_has_the_same_bits(methods, name):
    method = methods(name)
    whole = trained(method, again)
    assert largest_difference(whole, trained(method, again, fresh=2)) == 0
    assert largest_difference(whole, small_net(head=method.head(6, 3) if method.head else None)) > 0


@pytest.mark.parametrize("steps", [1, 7])
def test_a_search_is_one_launch_however_long(methods, steps):
    method = methods("trades")
    method = replace(method, crafters={"adv": replace(method.crafters["adv"], steps=steps)})
    with pretending() as log:
        trained(method, Graphs(), "cuda")
        assert log.launches["replay"] == len(SIZES)
        assert log.launches["addcmul"] == 4 * steps  # the first run, and three to warm up


@dataclass(frozen=True)
class Odd:
    """A PGD whose points go through a function of the views, the points and the generator."""

    pgd: Pgd
    act: Callable[[Views, Tensor, torch.Generator], Tensor]
    bn: Literal["eval"] = "eval"

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        return Crafted(self.act(views, self.pgd(views, eps, rng).x, rng))


ODD: dict[str, tuple[Callable[[Views, Tensor, torch.Generator], Tensor], str]] = {
    "time": (lambda views, x, rng: x * (1 + views.clock.step), "it reads views.clock"),
    "a wait": (lambda views, x, rng: x * float(x.mean()), "waits for a value"),
    "own numbers": (
        lambda views, x, rng: x * torch.rand(x.shape[:1], generator=rng, device=x.device)[0],
        "finds other points",
    ),
    "one number": (
        lambda views, x, rng: x * draw(torch.rand, (1,), rng, x),
        "not of one sample each",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_captured_runs_as_it_is_and_is_said_once(methods, said, kind):
    method = methods("at")
    act, reason = ODD[kind]
    method = replace(method, crafters={"adv": Odd(method.crafters["adv"], act)})
    plain = trained(method, None)
    with pretending():
        assert largest_difference(plain, trained(method, Graphs(), "cuda")) == 0
    (line,) = said
    assert line.startswith("warning: craft:adv is not captured")
    assert reason in line


def test_a_search_in_training_mode_is_not_captured(methods, said):
    method = methods("at")
    method = replace(method, crafters={"adv": replace(method.crafters["adv"], bn="train")})
    assert largest_difference(trained(method, None), trained(method, again)) == 0
    (line,) = said
    assert "batch statistics couple its samples" in line


def test_a_program_that_finds_other_points_is_not_used(methods, said):
    def broken(run: Callable[[], Crafted]) -> Callable[[], Crafted]:
        stale = run()
        return lambda: stale

    method = methods("at")
    assert largest_difference(trained(method, None), trained(method, broken)) == 0
    (line,) = said
    assert "finds other points" in line


def test_results_of_the_whole_batch_leave_a_small_one_as_it_is(methods, said):
    """A scalar has no row of each sample: padding would count in it."""
    method, sizes = methods("at"), []

    @dataclass(frozen=True)
    class Total(Odd):
        def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
            sizes.append(len(eps))
            found = super().__call__(views, eps, rng)
            return replace(found, facts={"total": found.x.sum()})

    crafter = Total(method.crafters["adv"], lambda views, x, rng: x)
    trained(replace(method, crafters={"adv": crafter}), again)
    assert [size for size in sizes if size != 8] == [5, 5]
    assert said == []


@pytest.mark.parametrize("name", ["at", "trades"])
@pytest.mark.parametrize("capture", [again, None], ids=["captured", "as it is"])
def test_a_search_is_compiled_once_whatever_the_size_of_the_last_batch(
    methods, monkeypatch, name, capture
):
    with counted_programs(monkeypatch) as programs:
        trained(methods(name), capture, compiled=8)
        assert programs.frame_count == 1


def test_programs_are_few(methods):
    recorded: list[int] = []

    def counting(run: Callable[[], Crafted]) -> Callable[[], Crafted]:
        recorded.append(1)
        return run

    net, own, searches = small_net(), small_batch(), Searches(8, counting)
    views, eps = StepViews(net, own, Clock(0, 0), contextlib.nullcontext), own.x.new_full((8,), 0.1)
    crafters = [replace(methods("at").crafters["adv"], steps=n + 1) for n in range(KEPT + 2)]
    with views.searching("eval", Folded(net)):
        for crafter in (*crafters, *crafters[2:], crafters[0]):
            searches.run("adv", crafter, crafter, views, eps, generator(0, ""))
    assert len(recorded) == KEPT + 3
