"""Whole runs on two ranks: equal to those of one process, and resumed to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.averages import Ema, Swa
from ablation.config.validation import load
from ablation.data.images import ImageSet
from ablation.data.loader import DeviceLoader
from ablation.errors import InterruptedRunError, NonFiniteError
from ablation.random import generator
from ablation.ranks import present
from ablation.runs.checkpoint import Snapshot
from ablation.schedules import Piecewise
from ablation.training.engine import Engine, Recipe
from ablation.training.method import Phase
from ablation.training.optim import AdamW, Optim, Sgd
from ablation.types import AverageSpec, Statistics
from tests.support.configs import compose_plain
from tests.support.parts import small_net
from tests.support.ranks import on_two_ranks

IMAGES, BATCH, EPOCHS = 21, 8, 3
"""The last batch has five images, uneven on two ranks."""
STEPS = 3
MMA = ("method=at", "component/mma=enabled")
LMA = ("method=at", "component/ema_logits=enabled")
AWP = ("method=trades", "component/awp=enabled")
RUNS: dict[str, tuple[tuple[str, ...], AverageSpec | None]] = {
    "trades, ema": (("method=trades",), Ema(0.9)),
    "at, swa": (("method=at",), Swa(1)),
    "mma": (MMA, None),
    "lma": (LMA, Ema(0.9, buffers="average")),
    "awp, adamw": (AWP, Ema(0.9)),
}
OPTIMS: dict[str, Optim] = {"awp, adamw": AdamW(eps=1e-4, clip=0.5)}
COMPOSED: dict[str, dict[str, Any]] = {}
"""Configs by the name of a run; ranks are given them: composing takes longer than training."""
CUTS = ("mma", "lma", "at, swa", "awp, adamw")


@dataclass
class Shelf:
    """A store in memory."""

    snapshot: Snapshot | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: list[tuple[str, int]] = field(default_factory=list)

    def save(self, snapshot: Snapshot) -> None:
        self.snapshot = copy.deepcopy(snapshot)

    def load(self) -> Snapshot | None:
        return copy.deepcopy(self.snapshot)

    def keep_weights(self, name: str, net: Any, average: Any, epoch: int, *rest: Any) -> None:
        self.kept.append((name, epoch))

    def settle(self) -> None: ...

    def rewind_metrics(self, epoch: int) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append({k: v for k, v in row.items() if "second" not in k})


class Silent:
    def start(self, phases: Sequence[int], steps_per_epoch: int, done_steps: int) -> None: ...
    def step(self, n_images: int) -> None: ...
    def epoch_end(self, row: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def loader() -> DeviceLoader:
    rng = generator(0, "test/images")
    images = torch.randint(0, 256, (IMAGES, 2, 5, 5), generator=rng, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(IMAGES) % 3)
    chosen = torch.arange(IMAGES)
    return DeviceLoader(
        data, chosen, BATCH, seed=0, augment="crop_flip", device="cpu", dtype=torch.float64
    )


def validate(net: nn.Module) -> Mapping[str, float]:
    """Something that depends on the weights and the statistics, and that rank 0 alone computes."""
    assert present().first
    x = torch.linspace(0, 1, 100, dtype=torch.float64).view(2, 2, 5, 5)
    net.eval()
    value = float(net(x).square().sum().detach())
    return {"val_clean": value, "val_robust": -value}


def composed() -> dict[str, dict[str, Any]]:
    if not COMPOSED:
        COMPOSED.update({name: compose_plain("eps=0.1", *RUNS[name][0]) for name in RUNS})
    return COMPOSED


def run(
    name: str,
    shelf: Shelf,
    stop: Callable[[], bool] = lambda: False,
    kind: Statistics | None = None,
) -> dict[str, Tensor]:
    """Train to the end, or until ``stop``; returns what is left, to be compared."""
    average = RUNS[name][1]
    method = load(composed()[name]).phases[-1].method
    recipe = Recipe(
        (Phase("main", EPOCHS, method),),
        OPTIMS.get(name, Sgd(clip=0.5)),
        Piecewise([2]),
        *(0.1, average, 0, nullcontext, 3, 1),
        statistics=kind or "synchronised",
    )
    store = shelf if present().first else Shelf()
    engine = Engine(
        *(small_net(), loader(), recipe, validate, store, Silent(), stop), lambda *_: None
    )
    engine.fit()
    found = {f"net/{k}": v for k, v in engine.net.state_dict().items()}
    found |= {f"average/{k}": v for k, v in engine.evaluated.state_dict().items()}
    found |= {f"memory/{k}": v for k, v in engine._memories.state_dict().items()}
    for row in shelf.rows:
        found |= {
            f"row {row['epoch']}/{k}": torch.tensor(float(v))
            for k, v in row.items()
            if isinstance(v, (int, float))
        }
    return {name: value.detach().double().clone() for name, value in found.items()}


def interrupted(name: str, shelf: Shelf, steps: int, rank: int = 0) -> Shelf:
    """Train until a signal comes after so many steps, to one rank."""
    left = iter(range(steps - 1))

    def stop() -> bool:
        return next(left, None) is None and present().rank == rank

    with pytest.raises(InterruptedRunError):
        run(name, shelf, stop)
    return shelf


def shared(shelf: Shelf) -> Shelf:
    """The same shelf on all ranks, as one on a disk."""
    return present().from_first(lambda: shelf)


def all_runs() -> dict[str, dict[str, Tensor]]:
    return {name: run(name, Shelf()) for name in RUNS}


def cut_runs() -> dict[str, dict[str, Tensor]]:
    """Stopped in the middle of an epoch by a signal to the last rank, and resumed."""
    last = present().world - 1
    return {
        name: run(name, shared(interrupted(name, Shelf(), STEPS + 2, rank=last))) for name in CUTS
    }


def first_part(steps: int) -> dict[str, Snapshot | None]:
    return {name: interrupted(name, Shelf(), steps).snapshot for name in CUTS}


def last_part(snapshots: Mapping[str, Snapshot | None]) -> dict[str, dict[str, Tensor]]:
    return {name: run(name, Shelf(snapshot)) for name, snapshot in snapshots.items()}


def replicas() -> dict[str, Tensor]:
    return run("trades, ema", Shelf(), kind="replica")


def everything(
    configs: Mapping[str, dict[str, Any]], begun_alone: Mapping[str, Snapshot | None]
) -> dict[str, Any]:
    """All that two ranks are asked for, in one go: they take seconds to start."""
    COMPOSED.update(configs)
    found: dict[str, Any] = {"whole": all_runs(), "cut": cut_runs(), "first": first_part(2)}
    return {**found, "last": last_part(begun_alone), "replica": replicas(), "bad": first_bad()}


def first_bad() -> str:
    """What a run says that gets a number that is not finite, from the images of one rank alone."""

    class Bad(DeviceLoader):
        def epoch(self, epoch: int, start: int = 0) -> Any:
            for batch in super().epoch(epoch, start):
                if present().rank == present().world - 1:
                    batch.x[0] = torch.nan
                yield batch

    good = loader()
    good.__class__ = Bad
    method = load(composed()["at, swa"]).phases[-1].method
    recipe = Recipe(
        (Phase("main", 1, method),), Sgd(), Piecewise([2]), 0.1, None, 0, nullcontext, 3, 1
    )
    engine = Engine(
        *(small_net(), good, recipe, validate, Shelf(), Silent(), lambda: False), lambda *_: None
    )
    with pytest.raises(NonFiniteError) as error:
        engine.fit()
    return str(error.value)


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    return all_runs()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return on_two_ranks(everything, folder, composed(), first_part(STEPS))


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    unequal = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert unequal == []


def weights(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if not name.startswith("row")}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_two_ranks_is_that_of_one_process(name: str, alone: Any, together: Any) -> None:
    first, second = (found["whole"][name] for found in together)
    assert first.keys() == alone[name].keys()
    for key, value in alone[name].items():
        torch.testing.assert_close(first[key], value, rtol=1e-10, atol=1e-10, msg=key)
    assert_equal(weights(first), weights(second))


@pytest.mark.parametrize("name", CUTS)
def test_a_signal_to_one_rank_stops_all_and_they_resume_to_the_same_bits(
    name: str, together: Any
) -> None:
    for found in together:
        assert_equal(weights(found["cut"][name]), weights(found["whole"][name]))


def test_a_run_goes_on_with_another_number_of_ranks(alone: Any, together: Any) -> None:
    for ended in (together[0]["last"], last_part(together[0]["first"])):
        assert ended.keys() == set(CUTS)
        for name, found in ended.items():
            for key, value in weights(alone[name]).items():
                torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10, msg=key)


def test_replicas_have_statistics_of_their_own(alone: Any, together: Any) -> None:
    first, second = (weights(found["replica"]) for found in together)
    assert_equal(first, second)
    key = "net/body.layers.1.running_mean"
    assert not torch.allclose(first[key], alone["trades, ema"][key], rtol=1e-6, atol=1e-6)


def test_all_ranks_see_a_number_of_one_that_is_not_finite(together: Any) -> None:
    assert together[0]["bad"] == together[1]["bad"]
    assert "first at step 0" in together[0]["bad"]
