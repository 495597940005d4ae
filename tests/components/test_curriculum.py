"""What is no paper's of the four: a curriculum of radii, and smoothed labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ablation.budgets import Fixed, Ramped
from ablation.config.validation import check
from ablation.errors import DONE
from ablation.jobs import train as job
from ablation.numerics.functional import lp_norm
from ablation.terms import CrossEntropy, SmoothedCrossEntropy
from ablation.training.method import Phase
from ablation.training.step import craft
from ablation.training.views import StepViews
from ablation.types import Clock
from tests.support.configs import compose_config, compose_plain
from tests.support.jobs import metrics, plain, run_of
from tests.support.logits import Y, Z, given
from tests.support.parts import largest_difference, small_batch, small_net, train_steps

RAMP, SMOOTH = "component/eps_ramp=enabled", "component/label_smoothing=enabled"
MWPB = ("component/margin_weighted_epsilon=enabled", "component.margin_weighted_epsilon.alpha=0")


def radius(phase: Phase, epoch: int) -> float:
    """The first example's radius at an epoch on the phase's clock."""
    clock = Clock(epoch, 0)
    views = StepViews(small_net(), small_batch(), clock, torch.enable_grad)
    return float(phase.method.budget(views)[0])


def each_radius(*overrides: str) -> list[float]:
    """The radius of each epoch that attacks, phase by phase."""
    config = compose_config("eps=0.1", "method=at", *overrides)
    return [
        radius(phase, phase.counts_from + epoch)
        for phase in config.phases
        if phase.method.crafters
        for epoch in range(phase.epochs)
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["epochs=4"], [0.05, 0.1, 0.1, 0.1]),
        (["epochs=4", "component.eps_ramp.over=1"], [0.025, 0.05, 0.075, 0.1]),
        (["epochs=4", "component.eps_ramp.over=1", "component.eps_ramp.begin=0.5"],
         [0.0625, 0.075, 0.0875, 0.1]),
        (["epochs=4", "component.eps_ramp.over=1e-3"], [0.1] * 4),
    ],
)  # fmt: skip
def test_radii_rise_linearly_and_stay(overrides, expected):
    assert each_radius(RAMP, *overrides) == pytest.approx(expected)


def test_epochs_of_a_burn_in_count():
    burn_in = ("component/burn_in=enabled", "component.burn_in.epochs=2")
    found = each_radius(RAMP, "epochs=4", "component.eps_ramp.over=4/6", *burn_in)
    assert found == pytest.approx([0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("before", ["own", "at"])
def test_it_multiplies_radii_of_two_phases(before):
    more = (*MWPB, "component.margin_weighted_epsilon.start=2/4",
            f"component.margin_weighted_epsilon.before={before}")  # fmt: skip
    found = each_radius(RAMP, "epochs=4", "component.eps_ramp.over=1", *more)
    assert found == pytest.approx([0.05 / 4, 0.05 / 2, 0.1 * 3 / 4, 0.1])


@pytest.mark.parametrize("method", ["at", "trades", "mart", "st_at"])
def test_crafted_points_keep_to_the_ramped_radius(method):
    config = compose_config(f"method={method}", RAMP, "eps=0.3", "epochs=10")
    composed, batch = config.phases[-1].method, small_batch()
    for epoch in (0, 4):
        views = StepViews(small_net(), batch, Clock(epoch, 0), torch.enable_grad)
        eps = composed.budget(views)
        assert eps.tolist() == pytest.approx([0.3 * (epoch + 1) / 5] * len(eps))
        craft(composed, views, "adv", eps, 0, None)
        far = lp_norm(views.x("adv") - batch.x, "linf")
        assert (far <= eps + 1e-12).all()
        assert float(far.max()) > 0.9 * float(eps[0])


@pytest.mark.parametrize(
    "overrides",
    [
        (RAMP, "component.eps_ramp.begin=1"),
        (SMOOTH, "component.label_smoothing.smoothing=0"),
    ],
)
def test_switched_to_nothing_it_is_the_method_itself(overrides):
    nets = []
    for more in ((), overrides):
        net = small_net()
        train_steps(compose_config("method=trades", *more).phases[-1].method, net, 3)
        nets.append(net)
    assert largest_difference(*nets) < 1e-15


def test_a_run_records_the_radii_of_its_epochs(tmp_path):
    container = plain(tmp_path, "method=at", RAMP, "epochs=4", "eps=0.1")
    assert job.train(container) == DONE
    found = [row["radius_mean"] for row in metrics(run_of(container))]
    assert found == pytest.approx([0.05, 0.1, 0.1, 0.1])


def test_smoothing_is_torchs():
    views = given(Z, Z, Y)
    for smoothing in (0.0, 0.1, 0.7):
        found = SmoothedCrossEntropy("adv", smoothing)(views)
        wanted = F.cross_entropy(
            views.logits("adv"), Y, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_every_phase_has_smoothed_labels_and_the_attack_has_none():
    burn_in = "component/burn_in=enabled"
    smooth, hard = (
        compose_config("method=trades", burn_in, "epochs=9", *more).phases
        for more in ((SMOOTH, "component.label_smoothing.smoothing=0.2"), ())
    )
    assert len(smooth) == 2
    for phase, plain_one in zip(smooth, hard, strict=True):
        terms = [slot.term for slot in phase.method.terms.values()]
        assert not any(isinstance(term, CrossEntropy) for term in terms)
        assert [t.smoothing for t in terms if isinstance(t, SmoothedCrossEntropy)] == [0.2]
        assert phase.method.crafters == plain_one.method.crafters


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=standard", RAMP), "no radius of its own to ramp"),
        (("method=mma", RAMP), "no radius of its own to ramp"),
        (("method=at", RAMP, "component.eps_ramp.over=0"), "over=0: a share of the epochs in"),
        (("method=at", RAMP, "component.eps_ramp.begin=2"), "begin=2: a share of the radius"),
        (("method=mart", SMOOTH), "no cross-entropy to smooth"),
        (("method=at", SMOOTH, "component.label_smoothing.smoothing=1"), "must lie in"),
    ],
)
def test_what_has_no_meaning_is_refused(overrides, message):
    _, problems = check(compose_plain(*overrides))
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize("value", [-1.0, 2.0])
def test_a_ramp_of_its_own_is_checked(value):
    with pytest.raises(ValueError, match="begin="):
        Ramped(Fixed(0.1), 2, begin=value)
