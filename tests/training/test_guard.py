"""Whatever is not finite in a step is named, also where the loss does not show it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ablation.errors import JOB_FAILED, NonFiniteError
from ablation.jobs import setup
from ablation.jobs import train as job
from ablation.models.heads import LinearHead
from ablation.training.engine import Guard, Key
from ablation.training.step import train_step
from ablation.types import Batch, Clock
from tests.support.configs import compose_config
from tests.support.jobs import plain, run_of
from tests.support.options import options
from tests.support.parts import memories_of, sgd, small_batch, small_net


class Blind(LinearHead):
    """Logits of -inf for the last class, which no label names: the cross-entropy stays finite."""

    def forward(self, features: Tensor) -> Tensor:
        logits = super().forward(features)
        return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], -torch.inf)], 1)


@pytest.mark.parametrize("method", options("method"))
def test_every_method_reports_a_logit_that_is_not_finite(method):
    composed = compose_config(f"method={method}").phases[-1].method
    seen = small_batch()
    batch = Batch(seen.x, seen.y % 2, seen.index)
    net = small_net(head=Blind(6, 3))
    kept = memories_of(composed)
    log, _ = train_step(composed, net, sgd(net), batch, Clock(0, 0), seed=0, memories=kept)
    assert log.logits["nat" if "nat" in log.logits else "adv"].isinf()
    sound = small_net()
    log, _ = train_step(composed, sound, sgd(sound), batch, Clock(0, 0), seed=0, memories=kept)
    assert all(top.isfinite() for top in log.logits.values())


def test_a_run_whose_loss_stays_finite_fails_by_its_logits(tmp_path, monkeypatch):
    build = setup.build_net

    def blind(*arguments):
        net = build(*arguments)
        assert isinstance(net.head, LinearHead)
        features = net.head.linear.in_features
        net.head = Blind(features, 11)  # one class more than there are labels
        return net

    monkeypatch.setattr(job, "build_net", blind)
    container = plain(tmp_path, "method=standard", "epochs=1", "evaluation=none")
    assert job.train(container) == JOB_FAILED
    status = run_of(container).status()
    assert status is not None
    assert status.error == "logits_nat is not finite (first at step 0)"


def test_the_guard_names_the_first_and_waits_for_nothing_before_it_is_asked():
    keys: list[Key] = [("term", "ce"), ("logits", "nat"), ("craft", "adv_found")]
    guard = Guard(keys, torch.device("cpu"))
    guard.check()
    for step, values in enumerate(([1.0, 2, 3], [1, torch.inf, 3], [torch.nan, 1, 1])):
        guard.add(torch.tensor(values), step)
    with pytest.raises(NonFiniteError, match=r"logits_nat is not finite \(first at step 1\)"):
        guard.check()
    Guard((), torch.device("cpu")).check()


def test_no_layer_of_the_guard_waits_for_the_device():
    """On the meta device there is nothing to wait for: any look at a value fails."""
    with torch.device("meta"):
        guard = Guard([("term", "ce")], torch.device("meta"))
        guard.add(torch.zeros(1), 0)
        with pytest.raises((NotImplementedError, RuntimeError)):
            guard.check()
