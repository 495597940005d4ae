"""Two processes train as one does: the same weights and measurements up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ablation.config.validation import load
from ablation.models.folding import Folded
from ablation.numerics.modes import Replaced
from ablation.numerics.synchronised import batch_statistics
from ablation.ranks import present
from ablation.terms import CrossEntropy
from ablation.training.memory import remembering
from ablation.training.method import Method, Slot, parse_passes
from ablation.training.searches import Searches
from ablation.training.step import StepLog, train_step
from ablation.types import AttackMode, Batch, Clock, Crafted, Statistics, Views
from tests.support.configs import compose_plain
from tests.support.parts import Told, memories_of, sgd, small_batch, small_net
from tests.support.ranks import on_two_ranks, own_rows

STEPS, UNEVEN = 3, 7
SHRINKING = (8, 8, 5)
"""Batches of captured searches: the last of an epoch is smaller."""
CAPTURED = ("at", "trades", "mart", "l2", "gairat", "mma", "mwpb", "dyart")
REPLICAS = ("trades", "at, awp", "attack in training mode", "elsayed")
MARGINS = ("component/margin_maximization=enabled", "component.margin_maximization.gamma=10")
CASES: dict[str, tuple[str, ...]] = {
    "at": ("method=at",),
    "trades": ("method=trades",),
    "mart": ("method=mart",),
    "attack in training mode": ("method=at", "attack.bn=train", "attack.start=uniform"),
    "l2": ("method=at", "norm=l2", "eps=0.5", "attack.start=uniform"),
    "at, awp": ("method=at", "component/awp=enabled"),
    "trades, awp": ("method=trades", "component/awp=enabled"),
    "mart, mail": ("method=mart", "component/mail=enabled", "component.mail.start=0"),
    "mail to mean 1": (
        *("method=at", "component/mail=enabled", "component.mail.start=0"),
        "component.mail.normalize=batch",
    ),
    "gairat": ("method=at", "component/gairat=enabled", "component.gairat.start=0"),
    "mma": ("method=at", "component/mma=enabled"),
    "squeeze": ("method=at", "component/squeeze=enabled"),
    "lma, averaged logits": ("method=at", "component/ema_logits=enabled"),
    "lma, by sample": (
        *("method=at", "component/ema_logits=enabled", "component.ema_logits.index=sample"),
    ),
    "mwpb": (
        *("method=at", "component/margin_weighted_epsilon=enabled"),
        "component.margin_weighted_epsilon.start=0",
    ),
    "emr, exact": ("method=at", "component/emr=exact"),
    "emr, probed": ("method=at", "component/emr=probe"),
    "emr, as its code": ("method=at", "component/emr=enabled", "component.emr.scale=code"),
    "igr": ("method=at", "component/igr=enabled"),
    "elsayed": ("method=elsayed",),
    "taylor, exact": (
        *("method=standard", *MARGINS, "component.margin_maximization.gradient=exact"),
    ),
    "mean of the correct": ("method=standard", *MARGINS, "component/exponential_loss=enabled"),
    "dyart": ("method=dyart",),
}


@dataclass(frozen=True)
class Darkened:
    """Darker images of the samples whose label is 0: a subset, of which a rank may have none."""

    bn: AttackMode = "eval"

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        rows = torch.nonzero(views.batch.y == 0).squeeze(1)
        return Crafted(0.5 * views.batch.x[rows], rows)


@dataclass(frozen=True)
class OfSubset:
    """Cross-entropy of the darkened images, spread over the batch."""

    needs: tuple[str, ...] = ("dark",)

    def __call__(self, views: Views) -> Tensor:
        z, y = views.loss_logits("dark"), views.y("dark")
        return views.scatter("dark", torch.nn.functional.cross_entropy(z, y, reduction="none"))


def subset_method() -> Method:
    """A pass of a subset beside the clean one; radii are recorded."""
    passes = parse_passes("craft:dark", "dark", "nat", "bn:dark", "step")
    terms = {"ce": Slot(CrossEntropy("nat")), "dark": Slot(OfSubset())}
    return Method({"dark": Darkened()}, Told(0.1), passes, terms)


def measurements(log: StepLog) -> dict[str, Tensor]:
    """Everything a step logs but the largest logits, which are only looked at, by name."""
    groups = {"part": log.parts, "fact": log.facts, "right": log.correct, "of": log.recorded}
    found = {f"{group}/{k}": v for group, named in groups.items() for k, v in named.items()}
    return found | {"loss": log.loss, "gradient": log.grad_norm}


def halves(x: Tensor, mean: Tensor, variance: Tensor, **named: Any) -> Tensor:
    """BatchNorm of both halves of a batch; the first moves the running statistics."""
    first, second = x.tensor_split(2)
    norm = torch.nn.functional.batch_norm
    return torch.cat([norm(first, mean, variance, **named), norm(second, None, None, **named)])


def statistics(kind: Statistics) -> AbstractContextManager[Any]:
    """Those of the ranks; one process computes what two replicas would."""
    if kind == "replica" and present().alone:
        return Replaced(halves)
    return batch_statistics(kind)


def trained(
    method: Method,
    batches: list[Batch],
    clip: float | None = None,
    kind: Statistics = "synchronised",
    searches: Searches | None = None,
) -> dict[str, Tensor]:
    """Weights, buffers, memories and the measurements after a few steps, as one vector each."""
    net = small_net()
    net.train()
    folded, optimizer = Folded(net), sgd(net, 0.05)
    memories, logs = memories_of(method), []
    for step, batch in enumerate(batches):
        with statistics(kind):
            log, views = train_step(
                method,
                net,
                optimizer,
                own_rows(batch),
                Clock(1, step),
                seed=0,
                clip=clip,
                folded=folded,
                searches=searches,
                memories=memories,
            )
        memories.commit(remembering(method), views)
        logs.append(measurements(log))
    kept = {f"memory/{name}": value for name, value in memories.state_dict().items()}
    logged = {f"{step}/{k}": v for step, log in enumerate(logs) for k, v in log.items()}
    state = {f"net/{name}": value.clone() for name, value in net.state_dict().items()}
    return {name: value.detach().double() for name, value in (state | kept | logged).items()}


def labelled(labels: list[int]) -> Batch:
    batch = small_batch(n=len(labels))
    return Batch(batch.x, torch.tensor(labels), batch.index)


SUBSETS = {
    "none on one rank": [0, 0, 0, 2, 2, 2],
    "one of a rank": [0, 1, 2, 0, 0, 1],
    "one in all": [1, 2, 0, 1, 2, 2],
    "none at all": [1, 2, 1, 2, 1, 2],
}


def replayed(method: Method, batches: list[Batch]) -> dict[str, Tensor]:
    """As ``trained``; ranks search by programs, which one process does without."""
    if present().alone:
        return trained(method, batches)
    runs = 0

    def capture(run: Callable[[], Crafted]) -> Callable[[], Crafted]:
        def replay() -> Crafted:
            nonlocal runs
            runs += 1
            return run()

        return replay

    rows = present().rows(len(batches[0].y))
    found = trained(method, batches, searches=Searches(rows.stop - rows.start, capture))
    assert runs == len(batches) * len(method.crafters)
    return found


def composed() -> dict[str, dict[str, Any]]:
    """The configs of all cases, which take longer to compose than to train."""
    return {name: compose_plain("eps=0.1", *overrides) for name, overrides in CASES.items()}


def every_case(configs: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """All cases, by name; on the present ranks."""
    methods = {name: load(config).phases[-1].method for name, config in configs.items()}
    even, uneven = ([small_batch(step, n) for step in range(STEPS)] for n in (8, UNEVEN))
    found = {}
    for name, method in methods.items():
        found[name] = trained(method, even)
    for name in ("at", "trades", "mart", "dyart", "lma, averaged logits"):
        found[f"{name}, uneven"] = trained(methods[name], uneven)
    shrinking = [small_batch(step, n) for step, n in enumerate(SHRINKING)]
    for name in CAPTURED:
        found[f"{name}, captured"] = replayed(methods[name], shrinking)
    found["clipped"] = trained(methods["at"], even, clip=0.01)
    for name in REPLICAS:
        found[f"{name}, replicas"] = trained(methods[name], even, kind="replica")
    for name, labels in SUBSETS.items():
        found[f"subset: {name}"] = trained(subset_method(), [labelled(labels)] * 2)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    return every_case(composed())


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return on_two_ranks(every_case, tmp_path_factory.mktemp("ranks"), composed())


NAMES = [
    *CASES,
    *(f"{name}, uneven" for name in ("at", "trades", "mart", "dyart", "lma, averaged logits")),
    *("clipped", *(f"subset: {name}" for name in SUBSETS)),
    *(f"{name}, captured" for name in CAPTURED),
    *(f"{name}, replicas" for name in REPLICAS),
]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_take_the_steps_of_one_process(name: str, alone: Any, together: Any) -> None:
    first, second = (found[name] for found in together)
    assert first.keys() == second.keys() == alone[name].keys()
    for key, value in alone[name].items():
        torch.testing.assert_close(first[key], value, rtol=1e-10, atol=1e-10)
        assert torch.equal(first[key], second[key]), key
