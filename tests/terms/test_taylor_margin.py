"""The Taylor margin: the specification's numbers (2.7), modes, several classes, hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.components import (
    MarginMaximization,
)
from ablation.errors import DONE, ConfigError
from ablation.jobs import train as job
from ablation.models.heads import LinearHead
from ablation.models.net import Net
from ablation.numerics.boundary import Soft
from ablation.terms import TaylorMargin
from ablation.types import Batch
from tests.support.configs import compose_config
from tests.support.jobs import metrics, run_of
from tests.support.jobs import plain as run_plain
from tests.support.linear import X0, close
from tests.support.margins import (
    R0,
    along_scaling,
    arm,
    batch_of,
    carrier,
    confident_net,
    costs,
    gradients,
    hard,
    l3,
    margin_batch,
    seen,
    slopes,
    weight_and_bias,
)
from tests.support.parts import small_batch, small_net


@pytest.mark.parametrize(("norm", "margin"), [("linf", 0.0692308), ("l2", 0.1206723), ("l1", 0.15)])
def test_l3_costs_gamma_minus_its_taylor_margin(norm, margin):
    batch = batch_of(X0, [0])
    close(costs(arm(MarginMaximization(gamma=1.0, norm=norm)), l3(), batch), [1 - margin])
    close(costs(arm(MarginMaximization(gamma=margin, norm=norm)), l3(), batch), [0])


def test_the_detached_gradient_of_l3_is_that_of_phi_over_a_constant_and_inflates_logits():
    net = l3()
    margin = 1 - costs(arm(MarginMaximization(gamma=1.0)), net, batch_of(X0, [0])).sum()
    weight, bias = weight_and_bias(margin, net)
    close(weight[0], [0.1153846, 0.0576923, 0.0961538, 0.0769231])
    close(weight[2], (-weight[0]).tolist())
    close(weight[1], [0, 0, 0, 0])
    close(bias, [0.1923077, 0, -0.1923077])
    assert along_scaling(margin, net) == pytest.approx(R0, abs=1e-7)


def test_the_exact_gradient_of_l3_is_that_at_the_boundary_and_ignores_the_scale():
    net = l3()
    method = arm(MarginMaximization(gamma=1.0, gradient="exact"))
    margin = 1 - costs(method, net, batch_of(X0, [0])).sum()
    weight, bias = weight_and_bias(margin, net)
    close(weight[0], [0.1020710, 0.0710059, 0.0828402, 0.0902367])
    close(weight[2], (-weight[0]).tolist())
    close(bias, [0.1923077, 0, -0.1923077])
    assert abs(along_scaling(margin, net)) < 1e-8


def test_a_margin_beyond_gamma_moves_nothing():
    net = l3()
    loss = costs(arm(MarginMaximization()), net, batch_of(X0, [0])).sum()  # 0.0692 > 16/255
    assert loss == 0
    assert all(not grad.any() for grad in gradients(loss, net).values())


def test_a_wrong_label_is_pushed_by_its_negative_margin():
    net = l3()
    loss = costs(arm(MarginMaximization()), net, batch_of(X0, [1]))
    close(loss, [0.2016832])
    weight, _ = weight_and_bias(loss.sum(), net)
    close(weight[1], (-X0[0] / 5.65).tolist())
    close(weight[0], (X0[0] / 5.65).tolist())
    excluded = costs(arm(MarginMaximization(wrong="exclude")), net, batch_of(X0, [1])).sum()
    assert excluded == 0
    assert all(not grad.any() for grad in gradients(excluded, net).values())


def test_the_exact_gradient_of_a_train_mode_pass_differentiates_the_batch_statistics_too():
    net, batch = confident_net(), margin_batch()
    computed = gradients(costs(carrier("exact", gamma=1e3), net, batch).sum(), net)

    def margins() -> Tensor:
        return (hard(net(batch.x), batch.y) / slopes(net, batch.x, batch.y)).sum()

    expected = []
    weight = net.get_parameter("body.layers.0.weight")
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 0, 1, 1] += sign * 1e-6
        expected.append(margins().item())
        with torch.no_grad():
            weight[1, 0, 1, 1] -= sign * 1e-6
    slope = -(expected[0] - expected[1]) / 2e-6
    assert computed["body.layers.0.weight"][1, 0, 1, 1].item() == pytest.approx(slope, rel=1e-5)
    detached = gradients(costs(carrier("detached", gamma=1e3), net, batch).sum(), net)
    assert detached["body.layers.0.weight"][1, 0, 1, 1].item() != pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("bn", ["train", "eval"])
def test_the_margin_is_that_of_the_mode_it_names(bn):
    net, batch = confident_net(), margin_batch()
    taken = 1e3 - costs(arm(MarginMaximization(gamma=1e3, bn=bn)), net, batch)
    net.train(bn == "train")  # ``eval`` comes after the clean pass and sees its statistics
    naive = hard(net(batch.x), batch.y) / slopes(net, batch.x, batch.y)
    torch.testing.assert_close(taken, naive, atol=1e-12, rtol=0)


def test_a_margin_in_evaluation_mode_does_not_couple_the_samples():
    net, batch = confident_net(), margin_batch()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # the clean pass comes first and would move the statistics
    other = replace(batch, x=torch.cat([batch.x[:8], batch.x[8:].flip(0) * 0.5]))
    for bn, couples in (("eval", False), ("train", True)):
        method = arm(MarginMaximization(gamma=1e3, bn=cast(Any, bn)))
        one, other_one = (costs(method, net, b)[:8] for b in (batch, other))
        assert torch.allclose(one, other_one, atol=1e-12, rtol=0) != couples


DUALS: dict[str, Callable[[Tensor], Tensor]] = {
    "linf": lambda g: g.abs().sum(),
    "l2": lambda g: g.square().sum().sqrt(),
    "l1": lambda g: g.abs().max(),
}


def naive_all_classes(net: nn.Module, batch: Batch, term: MarginMaximization) -> Tensor:
    """A loop over samples and classes, in evaluation mode."""
    total = []
    for image, label in zip(batch.x, batch.y.tolist(), strict=True):
        x = image[None].clone().requires_grad_()
        z = net(x)[0]
        rivals = sorted(set(range(len(z))) - {label}, key=lambda j: -z[j].item())
        found = []
        for j in rivals[: term.top_k]:
            gap = z[label] - z[j]
            (grad,) = torch.autograd.grad(gap, x, retain_graph=True)
            cost = F.relu(term.gamma - gap / DUALS[term.norm](grad).clamp_min(1e-8).detach())
            counts = term.wrong == "include" or z[label].item() > z[rivals[0]].item()
            found.append(cost if counts else 0 * cost)
        every = torch.stack(found)
        total.append(every.sum() if term.classes == "sum" else every.max())
    return torch.stack(total)


@pytest.mark.parametrize(
    "part",
    [
        MarginMaximization(classes="max", gamma=0.05),
        MarginMaximization(classes="sum", gamma=0.05),
        MarginMaximization(classes="max", top_k=2, norm="l2", gamma=0.2),
        MarginMaximization(classes="sum", top_k=2, norm="l1", wrong="exclude", gamma=1.0),
        MarginMaximization(classes="sum", top_k=9, wrong="exclude", gamma=0.2),
        MarginMaximization(classes="sum", top_k=1, gamma=0.05),
    ],
    ids=lambda part: f"{part.classes}-{part.top_k}-{part.norm}-{part.wrong}",
)
def test_margins_to_several_classes_are_those_of_a_loop(part):
    net = small_net(head=LinearHead(6, 5)).eval()
    with torch.no_grad():
        mean = net.output(small_batch(n=10).x).features.mean(0)
        weight = net.get_parameter("head.linear.weight")
        net.get_parameter("head.linear.bias").copy_(-weight @ mean)  # every class is near
        y = net(small_batch(n=10).x).argmax(1)
    batch = replace(small_batch(n=10), y=torch.where(torch.arange(10) < 5, y, (y + 1) % 5))
    ours, naive = costs(arm(part), net, batch), naive_all_classes(net, batch, part)
    assert (ours[:5] > 0).any()
    assert (ours[5:] > 0).any() == (part.wrong == "include")
    torch.testing.assert_close(ours, naive, atol=1e-12, rtol=0)
    mine, theirs = gradients(ours.sum(), net), gradients(naive.sum(), net)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
    top = costs(arm(replace(part, classes="top", top_k=None)), net, batch)
    if part.top_k == 1:
        torch.testing.assert_close(ours, top, atol=1e-14, rtol=0)
    elif part.classes == "sum":
        assert (ours - top).max() > 1e-3


def test_only_the_hard_margin_of_the_training_pass_has_several():
    for several in ({"classes": "max"}, {"layers": ("", "1")}):
        TaylorMargin(**several)
        for other in ({"bn": "eval"}, {"surface": Soft()}):
            with pytest.raises(ValueError, match="only the hard Taylor margin of the training"):
                TaylorMargin(**several, **other)


def two_layers() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        body = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh())
        return Net(body, LinearHead(5, 3), mean=None, std=None).double()


@pytest.mark.parametrize("layers", [("",), ("1",), ("2",), ("", "1", "2")])
@pytest.mark.parametrize("gradient", ["detached", "exact"])
def test_margins_at_hidden_layers_are_those_of_the_closed_form(layers, gradient):
    net, x = two_layers(), torch.rand(6, 4, generator=torch.Generator().manual_seed(2)).double()
    batch = batch_of(x, [0, 1, 2, 0, 1, 2])
    method = arm(MarginMaximization(gamma=1.0, layers=layers, gradient=gradient))
    assert method.observed() == {"nat": layers}
    ours = costs(method, net, batch)

    first = cast(nn.Linear, net.body.get_submodule("1"))
    head = net.get_parameter("head.linear.weight")
    hidden = torch.tanh(x @ first.weight.T + first.bias)
    z = hidden @ head.T + net.get_parameter("head.linear.bias")
    others = z.masked_fill(F.one_hot(batch.y, 3).bool(), -torch.inf)
    difference = head[batch.y] - head[others.argmax(1)]
    norms = {"2": difference, "1": difference * (1 - hidden**2)}
    norms[""] = norms["1"] @ first.weight
    naive = torch.zeros(6, dtype=torch.float64)
    for layer in layers:
        length = norms[layer].abs().sum(1)
        length = length.detach() if gradient == "detached" else length
        naive = naive + F.relu(1.0 - hard(z, batch.y) / length)
    torch.testing.assert_close(ours, naive, atol=1e-12, rtol=0)
    mine, theirs = gradients(ours.sum(), net), gradients(naive.sum(), net)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("settings", [{"top_k": 0, "classes": "sum"}, {"top_k": 2}])
def test_a_number_of_classes_needs_several_and_one_at_least(settings):
    with pytest.raises(ValueError, match="top_k="):
        TaylorMargin(**settings)
    assert TaylorMargin(top_k=1, classes="max").top_k == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({}, None), ({"gradient": "exact"}, "twice"), ({"layers": ("", "1")}, "hooks")],
)
def test_what_a_compiled_network_cannot_have_is_said(settings, reason):
    eager = TaylorMargin(**settings).eager
    assert eager is None if reason is None else reason in (eager or "")


def test_hooks_into_the_network_are_gone_after_a_pass():
    net = two_layers()
    seen(arm(MarginMaximization(layers=("1",))), net, batch_of(X0, [0]))
    assert all(not module._forward_hooks for module in net.modules())


def test_an_unknown_layer_is_told_before_a_run_starts():
    layers = "component.margin_maximization.layers"
    message = r"layers=\[layers.stage4\]: not in the network; did you mean layers.stage"
    with pytest.raises(ConfigError, match=message):
        compose_config("method=elsayed", f'{layers}=["",layers.stage4]')
    compose_config("method=elsayed", f'{layers}=["",layers.stage2]')


@pytest.mark.slow
def test_a_compiled_taylor_margin_trains_as_an_eager_one(tmp_path):
    """Two backward passes through one compiled forward."""
    rows = []
    for compiled in ("false", "true"):
        container = run_plain(
            tmp_path,
            *("method=elsayed", "epochs=1", "data.train_size=128", "batch_size=64"),
            *("evaluation=none", "selection.n=16", "monitor.enabled=false", "lr=0.01"),
            f"runtime.compile={compiled}",
        )
        assert job.train(container) == DONE
        rows += metrics(run_of(container))
    assert rows[0]["loss_margin"] > 0
    for name in ("loss", "loss_margin", "grad_norm"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-3)
