"""MAIL: the specifications' numbers, roles, warm-up over phases, and steps, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ablation import components
from ablation.errors import ConfigError
from ablation.training.method import Method
from ablation.training.step import total_loss, train_step
from ablation.training.views import StepViews
from ablation.types import Clock
from ablation.weights import ProbabilisticMargin
from tests.support.configs import compose_config
from tests.support.logits import Z_ADV, Y, Z, given
from tests.support.parts import largest_difference, sgd, small_batch, small_net


def at_margins(margins: list[float]) -> StepViews:
    """Two classes, label 0, p_0 - p_1 as given."""
    wanted = torch.tensor(margins, dtype=torch.float64).clamp(-1 + 1e-12, 1 - 1e-12)
    p = (1 + wanted) / 2
    z = torch.stack([p.log(), (1 - p).log()], 1).requires_grad_()
    return given(z, z, torch.zeros(len(z), dtype=torch.int64))


@pytest.mark.parametrize(
    ("slope", "bias", "margins", "expected"),
    [
        # T9.1, MAIL-AT; T9.2, MAIL-TRADES
        (10, -0.5, [-1, -0.5, 0, 0.5, 1], [2.979921, 1.5, 0.020079, 0.000136, 0.000001]),
        (2, 0.0, [-1, -0.5, 0, 0.5, 1], [2.642391, 2.193176, 1.5, 0.806824, 0.357609]),
        # EMR's code states PM with the other sign
        (30, -0.07, [0.3, 0, -0.07, -0.3], [4.5e-5, 0.327290, 1.5, 2.996980]),
        (5, 0.05, [0.3, 0, -0.07, -0.3], [0.668100, 1.686530, 1.936969, 2.555858]),
    ],
)
def test_weights(slope, bias, margins, expected):
    weights = ProbabilisticMargin(slope, bias)(at_margins(margins))
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert not weights.requires_grad


def test_normalized_over_the_batch():
    views = at_margins([-0.5, 0.0, 0.7])
    weights = ProbabilisticMargin(normalize="batch")(views)
    assert weights.mean().item() == pytest.approx(1)
    constant = ProbabilisticMargin()(views)
    torch.testing.assert_close(weights / weights[0], constant / constant[0])


def weighted(method: Method) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss on fixture F1, with the weights."""
    return total_loss(method, given(Z, Z_ADV, Y))


def test_t9_3_mail_at():
    method = composed("method=at", "component/mail=enabled")
    slot = method.terms["ce"]
    assert slot.weight is not None
    weights = slot.weight(given(Z, Z_ADV, Y))
    assert weights.tolist() == pytest.approx([0.000302, 0.141311], abs=1e-6)
    assert weighted(method)[0].item() == pytest.approx(0.083454, abs=1e-6)


def composed(*overrides: str) -> Method:
    config = compose_config("eps=0.1", "attack.steps=2", "epochs=120", *overrides)
    return config.phases[-1].method


@pytest.mark.parametrize(("name", "term"), [("at", "ce"), ("trades", "kl"), ("mart", "bce")])
def test_it_weighs_the_robust_term_alone(name, term):
    mail = composed(f"method={name}", "component/mail=trades")
    parts, plain = weighted(mail)[1], weighted(composed(f"method={name}"))[1]
    changed = [key for key in plain if parts[key] != plain[key]]
    assert changed == [term]


def test_slope_0_counts_every_sample_one_and_a_half_times():
    method = composed("method=at", "component/mail=enabled", "component.mail.slope=0")
    plain = weighted(composed("method=at"))[0]
    assert weighted(method)[0].item() == pytest.approx(1.5 * plain.item())


def test_all_weights_are_1_before_the_start():
    weight = composed("component/mail=enabled").terms["ce"].weight
    assert isinstance(weight, ProbabilisticMargin)
    assert weight.start == 76  # 0-based, of 120: the code compares epoch <= 75
    for epoch, counts in ((75, True), (76, False)):
        weights = weight(given(Z, Z_ADV, Y, Clock(epoch, 0)))
        assert (weights == 1).all() == counts


@pytest.mark.parametrize(
    ("epochs", "start", "wanted"), [(120, 76 / 120, 76), (100, 74 / 100, 74), (30, 76 / 120, 19)]
)
def test_the_start_is_a_share_of_the_epochs(epochs, start, wanted):
    phases = compose_config(f"epochs={epochs}", "component/mail=enabled").phases
    arranged = components.Mail(start=start).arrange(phases)
    weight = arranged[0].method.terms["ce"].weight
    assert isinstance(weight, ProbabilisticMargin)
    assert weight.start == wanted


def test_the_start_counts_over_phases():
    """EMR's TRADES + MAIL: plain AT for 74 epochs, then MAIL-TRADES for 26."""
    (main,) = compose_config("method=trades", "epochs=26", "component/mail=trades").phases
    phases = (replace(main, name="first", epochs=74), main)
    starts = []
    for phase in components.Mail(start=74 / 100).arrange(phases):
        weight = phase.method.terms["kl"].weight
        assert isinstance(weight, ProbabilisticMargin)
        starts.append(weight.start)
    assert starts == [74, 0], "never in the first phase, at once in the second"


@pytest.mark.parametrize("other", ["none", "emr=approximate", "awp=enabled", "hypersphere=enabled"])
@pytest.mark.parametrize("name", ["at", "trades", "mart"])
def test_it_trains_with_others(name, other):
    components = [] if other == "none" else [f"component/{other}"]
    mail = ["component/mail=trades", "component.mail.start=0"]
    if name == "mart" and other == "none":
        mail.append("component.mail.normalize=batch")
    nets = []
    for extra in ([], mail):
        method = composed(f"method={name}", *components, *extra)
        net = small_net(head=method.head(6, 3) if method.head else None)
        optimizer = sgd(net)
        for step in range(2):
            log, _ = train_step(method, net, optimizer, small_batch(step), Clock(0, step), seed=0)
            assert log.loss.isfinite()
            assert log.grad_norm.isfinite()
        nets.append(net)
    assert largest_difference(*nets) > 1e-6 or other == "hypersphere=enabled"


def test_before_the_start_training_is_that_without_it():
    nets = []
    for overrides in ([], ["component/mail=enabled"]):
        net = small_net()
        method = composed("method=trades", *overrides)
        train_step(method, net, sgd(net), small_batch(), Clock(0, 0), seed=0)
        nets.append(net)
    assert largest_difference(*nets) == 0
    assert compose_config("component/mail=disabled").train_id == compose_config().train_id


def test_what_does_not_fit_is_refused_with_its_remedy():
    with pytest.raises(ConfigError, match="set method=at, trades or mart, or component/mail="):
        compose_config("method=standard", "component/mail=enabled")
    with pytest.raises(ConfigError, match="a share of the epochs in"):
        compose_config("component/mail=enabled", "component.mail.start=75")
    method = composed("method=at")
    taken = replace(method.terms["ce"], weight=ProbabilisticMargin())
    with pytest.raises(ValueError, match="has a weight already"):
        components.Mail().apply(replace(method, terms={"ce": taken}))
