"""Memory: declared by parts wherever they are nested, owned, shared and checkpointed by name."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ablation.ascents import AdversarialWeightPerturbation
from ablation.config.validation import load
from ablation.crafters import Ascended, AttackCrossEntropy, Pgd
from ablation.errors import DONE, InputError
from ablation.jobs import train as job
from ablation.runs.checkpoint import Snapshot
from ablation.runs.directory import Run
from ablation.terms import CrossEntropy
from ablation.training.engine import Engine
from ablation.training.memory import Memories, memory_problems, remembering
from ablation.training.method import Method, Phase, Slot, parse_passes
from ablation.training.step import total_loss, train_step
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, MemorySpec, Views
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, weights
from tests.support.parts import LogitMemory, sgd, small_batch, small_net


@dataclass(frozen=True)
class Radii:
    """A budget whose radius grows by a tenth whenever its example was seen: after MMA."""

    eps: float = 0.1

    @property
    def memory(self) -> dict[str, MemorySpec]:
        return {"radii": MemorySpec("example", dtype=torch.float64, initial=self.eps)}

    def __call__(self, views: Views) -> Tensor:
        return views.memory("radii").to(views.batch.x.dtype)

    def commit(self, views: Views) -> dict[str, Tensor]:
        return {"radii": views.memory("radii") * 1.1}


@dataclass(frozen=True)
class RememberingLoss(AttackCrossEntropy):
    """An attack loss, nested in a crafter, that remembers labels by position."""

    @property
    def memory(self) -> dict[str, MemorySpec]:
        return {"labels": MemorySpec("position", dtype=torch.int64, initial=-1)}

    def commit(self, views: Views) -> dict[str, Tensor]:
        return {"labels": views.batch.y}


@dataclass(frozen=True)
class RememberingWeight:
    """A weight that reads a memory of its own: how often an example was seen."""

    @property
    def memory(self) -> dict[str, MemorySpec]:
        return {"seen": MemorySpec("example")}

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def __call__(self, views: Views) -> Tensor:
        return 1 / (1 + views.memory("seen"))

    def commit(self, views: Views) -> dict[str, Tensor]:
        return {"seen": views.memory("seen") + 1}


def method(**changes: Any) -> Method:
    """Parts that remember in every place: budget, attack loss, term and weight."""
    losses = {"ce": Ascended(RememberingLoss())}
    whole = Method(
        {"adv": Pgd(losses, steps=1, step_size=0.5)},
        Radii(),
        parse_passes("craft:adv", "nat", "adv", "step"),
        {
            "ce": Slot(CrossEntropy("adv"), weight=RememberingWeight()),
            "m": Slot(LogitMemory(), coef=0.1),
        },
    )
    return replace(whole, **changes)


def memories(*methods: Method, n_train: int = 20, batch_size: int = 8) -> Memories:
    return Memories(
        methods,
        n_train=n_train,
        batch_size=batch_size,
        classes=3,
        device=torch.device("cpu"),
    )


def views_of(owner: Memories, batch: Batch) -> StepViews:
    return StepViews(small_net(), batch, Clock(0, 0), nullcontext, memories=owner)


def stepped(owner: Memories, at: Method, batch: Batch, step: int = 0) -> tuple[Any, StepViews]:
    net = small_net()
    log, views = train_step(at, net, sgd(net), batch, Clock(0, step), seed=0, memories=owner)
    owner.commit(remembering(at), views)
    return log, views


def test_parts_are_found_wherever_they_are_nested():
    kinds = [type(part).__name__ for part in remembering(method())]
    assert kinds == ["RememberingLoss", "Radii", "RememberingWeight", "LogitMemory"]


def test_a_part_in_two_places_commits_once():
    part = LogitMemory()
    twice = method(
        terms={"a": Slot(part), "b": Slot(part)}, crafters={}, passes=parse_passes("nat", "step")
    )
    stepped(memories(twice), twice, small_batch())
    assert part.calls == [0]


def test_every_place_writes_its_memory():
    at = method()
    owner, batch = memories(at), small_batch(1)
    _, views = stepped(owner, at, batch)
    state = owner.state_dict()
    assert state["labels"].tolist() == batch.y.tolist()
    assert torch.equal(state["z"], views.logits("nat").detach())
    assert state["seen"].tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 4
    assert state["radii"][8:16].tolist() == pytest.approx([0.11] * 8)
    assert state["radii"][:8].tolist() == [0.1] * 8
    assert not any(tensor.requires_grad for tensor in state.values())


def test_radii_of_the_step_before_bound_the_search():
    at = method()
    owner, batch = memories(at), small_batch()
    for step, radius in enumerate((0.1, 0.11, 0.121)):
        _, views = stepped(owner, at, batch, step)
        moved = (views.x("adv") - batch.x).abs().amax().item()
        assert radius * 0.5 <= moved <= radius + 1e-12
        assert views.memory("radii").tolist() == pytest.approx([radius * 1.1] * 8)


def test_example_memory_follows_the_index_and_position_memory_the_batch():
    at = method()
    owner, batch = memories(at), small_batch()
    stepped(owner, at, batch)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = views_of(owner, replace(batch, index=order + 4))
    assert shuffled.memory("seen").tolist() == [float(i + 4 < 8) for i in order.tolist()]
    assert shuffled.memory("labels").tolist() == batch.y.tolist()


def test_a_short_last_batch_reads_and_writes_its_first_rows():
    at = method()
    owner = memories(at)
    stepped(owner, at, small_batch(0))
    before = {name: value.clone() for name, value in owner.state_dict().items()}
    short = small_batch(1, n=3)
    assert torch.equal(views_of(owner, short).memory("z"), before["z"][:3])
    stepped(owner, at, short)
    assert owner.state_dict()["labels"].tolist() == [*short.y.tolist(), *before["labels"][3:]]
    assert owner.state_dict()["seen"].sum() == 11


def test_memory_is_allocated_when_it_is_used_and_holds_its_initial_value_before():
    owner = memories(method())
    assert owner.state_dict() == {}
    assert views_of(owner, small_batch()).memory("radii").tolist() == [0.1] * 8
    assert list(owner.state_dict()) == ["radii"]


def test_memory_is_single_precision_whatever_is_committed():
    part = LogitMemory(dtype=torch.float32)
    at = method(terms={"m": Slot(part)})
    owner = memories(at)
    stepped(owner, at, small_batch())
    assert owner.state_dict()["z"].dtype == torch.float32


@pytest.mark.parametrize("start", [0, 1])
def test_awp_reads_old_values_and_commits_the_training_pass_once(start):
    """With ``start`` 1 the ascent sleeps in the first epoch."""
    part = LogitMemory()
    ascent = AdversarialWeightPerturbation(0.05, start)
    at = method(terms={"m": Slot(part)}, ascent=ascent)
    owner = memories(at)
    for step in range(2):
        old = owner.read("z", small_batch())
        log, views = stepped(owner, at, small_batch(), step)
        z = views.logits("nat").detach()
        expected = (z - old).square().sum() / 8
        assert log.parts["m"].item() == pytest.approx(expected.item(), rel=1e-12)
        assert torch.equal(owner.read("z", small_batch()), z)
    assert part.calls == [0, 1]


def test_what_one_part_writes_another_does_not_see_before_the_next_step():
    @dataclass(frozen=True)
    class Copy(LogitMemory):
        @property
        def memory(self) -> dict[str, MemorySpec]:
            spec = MemorySpec("position", ("classes",), torch.float64)
            return {"z": spec, "older": spec}

        def commit(self, views: Views) -> dict[str, Tensor]:
            return {"older": views.memory("z")}

    at = method(terms={"a": Slot(LogitMemory()), "b": Slot(Copy())})
    owner = memories(at)
    _, first = stepped(owner, at, small_batch(0))
    stepped(owner, at, small_batch(1))
    assert torch.equal(owner.state_dict()["older"], first.logits("nat").detach())


def test_one_name_is_shared_if_it_is_declared_alike():
    alike = method(terms={"a": Slot(LogitMemory()), "b": Slot(LogitMemory())})
    assert alike.problems() == []
    stepped(owner := memories(alike), alike, small_batch())
    assert list(owner.state_dict()).count("z") == 1


def test_one_name_declared_differently_is_one_clear_problem():
    other = LogitMemory("example")
    mixed = method(terms={"a": Slot(LogitMemory()), "b": Slot(other), "c": Slot(other)})
    assert mixed.problems() == [
        "memory.z: LogitMemory declares it per position, [classes] float64 from 0, but LogitMemory "
        "per example, [classes] float64 from 0; declare both alike, or give one another name"
    ]


def test_phases_that_declare_one_name_differently_are_a_problem_too():
    phases = [method(terms={"m": Slot(LogitMemory(scope))}) for scope in ("example", "position")]
    assert [phase.problems() for phase in phases] == [[], []]
    assert len(memory_problems(phases)) == 1


@dataclass(frozen=True)
class Careless(LogitMemory):
    """Writes what it does not declare, or rows of the wrong shape."""

    writes: str = "z"

    def commit(self, views: Views) -> dict[str, Tensor]:
        return {self.writes: views.logits("nat")[:, :2]}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Careless(writes="zz"), r"Careless writes undeclared memory \['zz'\]"),
        (Careless(), r"memory z: rows of shape \[8, 2\], not \[8, 3\]"),
    ],
)
def test_a_careless_part_is_named(part, message):
    at = method(terms={"m": Slot(part)})
    with pytest.raises(ValueError, match=message):
        stepped(memories(at), at, small_batch())


def test_reading_what_nobody_declares_is_an_error():
    with pytest.raises(ValueError, match="memory zz: no part declares it; declared: labels"):
        views_of(memories(method()), small_batch()).memory("zz")
    alone = StepViews(small_net(), small_batch(), Clock(0, 0), nullcontext)
    with pytest.raises(ValueError, match="given no memories"):
        alone.memory("z")


def test_a_checkpoint_of_another_shape_is_refused_and_an_older_ones_list_is_read():
    owner = memories(method())
    owner.load_state_dict([{}, {}])
    assert owner.state_dict() == {}
    for state in ({"z": torch.zeros(4, 3)}, {"gone": torch.zeros(8)}):
        with pytest.raises(InputError, match="does not declare"):
            owner.load_state_dict(state)


# Whole jobs -----------------------------------------------------------------------------------

TINY = (
    *("data.train_size=100", "batch_size=32", "evaluation=none", "monitor.enabled=false"),
    *("attack.steps=1", "selection.attack.steps=1", "selection.n=16", "epochs=2"),
)
"""A short last batch in every epoch."""


def with_memories(container: Any) -> Any:
    """Two phases: the memory ``z`` of the first is written in it alone, and read in the second."""

    @dataclass(frozen=True)
    class Reading(LogitMemory):
        def commit(self, views: Views) -> dict[str, Tensor]:
            return {}

    config = load(container)
    (phase,) = config.phases
    by_example = LogitMemory("example", torch.float32)
    (crafter,) = phase.method.crafters.values()
    assert isinstance(crafter, Pgd)
    losses = {**crafter.losses, "remembering": Ascended(RememberingLoss(), 0.0)}
    crafters = {"adv": replace(crafter, losses=losses)}
    main = replace(phase.method, crafters=crafters, budget=Radii(0.02))
    main = main.with_term("m", Slot(Reading("example", torch.float32), coef=0.1))
    first = phase.method.with_term("m", Slot(by_example, coef=0.1))
    first = first.with_weight("robust", RememberingWeight())
    return replace(config, phases=(Phase("first", 1, first), replace(phase, method=main)))


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_has_the_bits_of_a_whole_one(tmp_path, monkeypatch, step):
    """Interrupted in the first phase, at its end and in the second."""
    monkeypatch.setattr(job, "load", with_memories)
    whole, broken = plain(tmp_path / "whole", *TINY), plain(tmp_path / "broken", *TINY)
    assert job.train(whole) == DONE
    one, other = run_of(whole), finish_interrupted(monkeypatch, broken, step)
    assert metrics(one) == metrics(other)
    assert weights(one) == weights(other)
    assert all(row["loss_m"] > 0 for row in metrics(one))


def test_memories_of_all_phases_are_in_the_checkpoint(tmp_path, monkeypatch):
    saved: list[Snapshot] = []
    original = Run.save

    def save(self: Any, snapshot: Snapshot) -> None:
        saved.append(snapshot)
        original(self, snapshot)

    monkeypatch.setattr(Run, "save", save)
    monkeypatch.setattr(job, "load", with_memories)
    assert job.train(plain(tmp_path, *TINY)) == DONE
    memory = saved[-1].train["memory"]
    assert sorted(memory) == ["labels", "radii", "seen", "z"]
    assert (memory["seen"].sum(), memory["seen"].max()) == (100, 1)
    assert memory["z"].dtype == torch.float32


def test_an_older_checkpoint_whose_memory_is_a_list_still_resumes(tmp_path, monkeypatch):
    original = Engine._save

    def save(self: Engine) -> None:
        store = self._store.save

        def older(snapshot: Snapshot) -> None:
            store(replace(snapshot, train={**snapshot.train, "memory": []}))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._store, "save", older)
            original(self)

    whole, broken = plain(tmp_path / "whole", *TINY), plain(tmp_path / "broken", *TINY)
    assert job.train(whole) == DONE
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_save", save)
        other = finish_interrupted(patch, broken, 2)
    assert weights(run_of(whole)) == weights(other)


def test_the_loss_of_a_part_reads_the_memory_of_its_step():
    at = method(terms={"m": Slot(LogitMemory())})
    owner = memories(at)
    log, views = stepped(owner, at, small_batch())
    fresh = views_of(memories(at), small_batch())
    fresh._outputs = views._outputs
    assert total_loss(at, fresh)[0].item() == log.loss.item()


def test_a_memory_is_no_view_of_the_checkpoint_it_came_from():
    owner, state = memories(method()), {"z": torch.zeros(8, 3, dtype=torch.float64)}
    owner.load_state_dict(state)
    state["z"] += 1
    assert not owner.state_dict()["z"].any()
