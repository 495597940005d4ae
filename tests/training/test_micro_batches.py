"""A batch in parts is the batch whole, up to rounding; and more parts where memory runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ablation.config.experiment import Config
from ablation.config.validation import check
from ablation.errors import InputError
from ablation.models import build_model
from ablation.models.folding import Folded
from ablation.models.net import Net
from ablation.training.micro_batches import MicroBatches, couplings
from ablation.training.step import StepLog, train_step
from ablation.types import Clock
from tests.support.configs import compose_config, compose_plain
from tests.support.parts import small_batch, small_net

NETS = {
    "mlp": ("model.spec.hidden=2", "model.spec.width=16"),
    "cnn": ("model.spec.width=4", "model.spec.dense=8"),
}
METHODS: dict[str, tuple[str, ...]] = {
    "at": ("method=at",),
    "trades": ("method=trades", "average=ema"),
    "mart": ("method=mart",),
    "at_awp": ("method=at", "component/awp=enabled", "optim=adamw", "optim.eps=1e-4"),
    "trades_awp": ("method=trades", "component/awp=enabled", "optim.clip=0.1"),
    "emr": ("method=at", "component/emr=probe"),
    "mwpb": ("method=trades", "component/margin_weighted_epsilon=enabled", "optim.nesterov=true"),
}
PARTS = (2, 3, 7)


def config_of(method: str, model: str) -> Config:
    return compose_config(f"model={model}", *NETS[model], "eps=0.1", *METHODS[method])


def net_of(config: Config) -> Net:
    net = build_model(config.model.spec, channels=2, size=(5, 5), classes=3, seed=0)
    return net.double().train()


def trained(config: Config, micro: MicroBatches, net: Net | None = None) -> tuple[Net, StepLog]:
    """Three steps in double precision; the last one's measurements."""
    net = net or net_of(config)
    optimizer, folded = config.optim.build(net, 0.05), Folded(net)
    for step in range(3):
        log, _ = train_step(
            *(config.phases[-1].method, net, optimizer, small_batch(step, 7), Clock(0, step)),
            seed=0,
            clip=config.optim.clip,
            folded=folded,
            micro_batches=micro,
        )
    return net, log


def numbers(net: Net, log: StepLog) -> dict[str, torch.Tensor]:
    found = {f"net/{name}": value for name, value in net.state_dict().items()}
    found |= {"loss": log.loss, "norm": log.grad_norm}
    for group in ("parts", "correct", "facts", "recorded"):
        found |= {f"{group}/{name}": value for name, value in getattr(log, group).items()}
    return {name: value.double() for name, value in found.items()}


def assert_same(found: tuple[Net, StepLog], wanted: tuple[Net, StepLog]) -> None:
    ours, theirs = numbers(*found), numbers(*wanted)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("model", NETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_is_the_batch_whole(method, model):
    config = config_of(method, model)
    whole = trained(config, MicroBatches())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(whole[0].parameters(), net_of(config).parameters(), strict=True)
    )
    for number in PARTS:
        assert_same(trained(config, MicroBatches(number)), whole)


class Narrow(Net):
    """A network that takes so many images at once."""

    most = 100
    failed = 0

    def output(self, x: torch.Tensor) -> Any:
        if len(x) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().output(x)


def narrow(config: Config, most: int) -> Narrow:
    net = net_of(config)
    net.__class__ = Narrow
    assert isinstance(net, Narrow)
    net.most = most
    return net


@pytest.mark.parametrize("method", ["at", "trades_awp"])
@pytest.mark.parametrize(("most", "parts"), [(4, 2), (2, 4), (1, 8)])
def test_where_memory_runs_out_the_parts_become_smaller_and_the_numbers_stay(
    method, most, parts, capsys
):
    config = config_of(method, "mlp")
    micro = MicroBatches(grows=True)
    net = narrow(config, most)
    found = trained(config, micro, net)
    assert micro.number == parts
    assert net.failed == {2: 1, 4: 2, 8: 3}[parts]
    assert_same(found, trained(config, MicroBatches()))
    said = capsys.readouterr().err
    assert said.count("out of memory (OutOfMemoryError: CUDA out of memory.") == net.failed
    assert f"each batch is now taken in {parts} parts, one after the other" in said


@pytest.mark.parametrize(
    ("micro", "error"),
    [
        (MicroBatches(), torch.OutOfMemoryError("no")),
        (MicroBatches(8, grows=True), torch.OutOfMemoryError("no")),
        (MicroBatches(grows=True), RuntimeError("another one")),
    ],
)
def test_what_smaller_parts_do_not_cure_stays_an_error(micro, error):
    number = micro.number
    assert not micro.grow(error, small_batch())
    assert micro.number == number


def test_an_error_of_the_optimiser_is_none_of_the_parts():
    """It may have moved some weights already."""
    config = config_of("at", "mlp")
    net = net_of(config)

    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise torch.OutOfMemoryError("no room for momentum")

    micro = MicroBatches(grows=True)
    with pytest.raises(torch.OutOfMemoryError):
        train_step(
            *(config.phases[-1].method, net, Broken(net.parameters()), small_batch(), Clock(0, 0)),
            seed=0,
            micro_batches=micro,
        )
    assert micro.number == 1


def test_parts_are_in_order_and_even():
    batch = small_batch(0, 7)
    parts = MicroBatches(3).split(batch)
    assert [part.place for part in parts] == [(0, 7), (2, 7), (4, 7)]
    assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
    assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
    assert [len(part.y) for part in MicroBatches(9).split(batch)] == [1] * 7
    assert MicroBatches(1).split(batch) == [batch]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("model=resnet18",), "BatchNorm in the network would take its statistics of a part"),
        (("method=gairat",), "Geometry looks at all samples of the batch at once"),
        (("component/mail=enabled",), ""),
        (
            ("component/mail=enabled", "component.mail.normalize=batch"),
            "ProbabilisticMargin looks at all samples",
        ),
        (
            ("component/margin_maximization=enabled", "component/exponential_loss=enabled"),
            "TaylorMargin looks at all samples",
        ),
        (("method=dyart",), "BoundarySearch looks at all"),
        (("component/ema_logits=enabled",), "remembers the whole batch"),
        (("runtime.devices=2",), "devices share a batch already"),
        (("runtime.accumulate=300",), "between 1 and batch_size=128, or auto"),
        (("runtime.accumulate=0",), "between 1 and batch_size=128, or auto"),
    ],
)
def test_what_needs_the_whole_batch_is_refused_by_name(overrides, reason):
    _, problems = check(compose_plain("model=mlp", "runtime.accumulate=4", *overrides))
    found = [problem for problem in problems if problem.startswith("runtime.accumulate=")]
    assert any(reason in problem for problem in found) if reason else not problems


def test_auto_leaves_whole_what_must_be_whole():
    method = compose_config().phases[-1].method
    assert MicroBatches.of("auto", small_net(), [method]) == MicroBatches(1, grows=False)
    assert MicroBatches.of("auto", net_of(config_of("at", "mlp")), [method]).grows
    with pytest.raises(InputError, match=r"runtime\.accumulate=2: BatchNorm"):
        MicroBatches.of(2, small_net(), [method])


def test_a_part_that_does_not_say_that_it_sums_over_the_batch_is_found_out():
    config = compose_config("model=mlp", "method=gairat")
    assert list(couplings(net_of(config_of("at", "mlp")), [config.phases[-1].method]))
    net = net_of(config_of("at", "mlp"))
    with pytest.raises(ValueError, match="must declare it: Couples"):
        train_step(
            *(config.phases[-1].method, net, config.optim.build(net, 0.1)),
            *(small_batch(), Clock(10**6, 0)),
            seed=0,
            micro_batches=MicroBatches(2),
        )


def test_the_number_of_parts_is_no_part_of_the_identity():
    ids = {
        compose_config("model=mlp", f"runtime.accumulate={parts}").train_id
        for parts in (1, 4, "auto")
    }
    assert len(ids) == 1
