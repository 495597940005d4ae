"""Hyperparameters that a paper or its code states are the defaults, whoever edits a YAML file."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.configs import compose_plain

STATED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "the training attack of LMA and MWPB": (
        (),
        {
            "attack.steps": 10,
            "attack.start": "gaussian",
            "attack.bn": "eval",
            "attack.step_size": "eps/4",
        },
    ),
    "TRADES: 1/lambda = 6, the KL attacked and unweighted (Zhang et al., section 5; trades.py)": (
        ("method=trades",),
        {"method.terms.kl.coef": 6.0, "method.terms.ce.coef": 1.0},
    ),
    "MART: lambda = 5 (Wang et al., section 4; train_resnet.py)": (
        ("method=mart",),
        {"method.terms.kl.coef": 5.0, "method.terms.bce.coef": 1.0},
    ),
    "AWP: gamma 0.01 for AT, from the first epoch (Wu et al., section 5)": (
        ("component/awp=enabled",),
        {"component.awp.gamma": 0.01, "component.awp.start": 0},
    ),
    "Elsayed: lambda 25, gamma 16/255 (DOSE, section 4.2)": (
        ("method=elsayed",),
        {
            "component.margin_maximization.coef": 25.0,
            "component.margin_maximization.gamma": 16 / 255,
            "component.margin_maximization.gradient": "detached",
        },
    ),
    "burn-in of 25 epochs (DOSE, section 4.1)": (
        ("method=elsayed", "component/burn_in=enabled"),
        {"component.burn_in.epochs": 25, "component.burn_in.optimizer": "fresh"},
    ),
    "exponential penalty: alpha 3 (DOSE, section 4.2)": (
        ("method=elsayed", "component/exponential_loss=enabled"),
        {"component.exponential_loss.alpha": 3.0},
    ),
    "FAB: 20 steps (DOSE, section 4.2)": (
        ("method=elsayed", "component/fab_margin=enabled"),
        {"component.fab_margin.steps": 20, "component.fab_margin.restarts": 1},
    ),
    "DyART: lambda 1000, alpha 3, beta 5, burn-in 25, clip 0.1 (DOSE, section 4.2; its code)": (
        ("method=dyart",),
        {
            "component.margin_maximization.coef": 1000.0,
            "component.margin_maximization.gamma": 16 / 255,
            "component.exponential_loss.alpha": 3.0,
            "component.exponential_loss.reduction": "batch",
            "component.soft_boundary.beta": 5.0,
            "component.burn_in.epochs": 25,
            "component.closed_form_gradient.filter": "kkt",
            "component.fab_margin.start": "random",
            "optim.clip": 0.1,
        },
    ),
    "approximate EMR: lambda 3 / 128 at t = 40 (EMR, eq. 7; its AT script)": (
        ("component/emr=approximate",),
        {"component.emr.coef": 3 / 128, "component.emr.temperature": 40.0},
    ),
    "L-Softmax: m = 4, annealed as in its authors' MNIST recipe": (
        ("component/large_margin_softmax=annealed",),
        {
            "component.large_margin_softmax.m": 4,
            "component.large_margin_softmax.annealing.base": 1000.0,
            "component.large_margin_softmax.annealing.gamma": 2.5e-5,
            "component.large_margin_softmax.annealing.power": 35.0,
        },
    ),
    "hypersphere embedding: s 10, m 0.2 (Pang et al., section 4)": (
        ("component/hypersphere=enabled",),
        {"component.hypersphere.scale": 10.0, "component.hypersphere.margin": 0.2},
    ),
    "MAIL on AT: 10, -0.5, from epoch 76 of 120, times 3 (Liu et al., section 4; mail_loss.py)": (
        ("component/mail=enabled",),
        {
            "component.mail.slope": 10.0,
            "component.mail.bias": -0.5,
            "component.mail.normalize": "constant",
        },
    ),
    "MAIL on TRADES: 2 and 0 (Liu et al., section 4)": (
        ("method=trades", "component/mail=trades"),
        {"component.mail.slope": 2.0, "component.mail.bias": 0.0},
    ),
    "EMA: 0.995, warmed up, BatchNorm copied (DyART and Rade code)": (
        ("average=ema",),
        {"average.decay": 0.995, "average.warmup": True, "average.buffers": "copy"},
    ),
    "SGD with momentum 0.9 and weight decay on every parameter": (
        (),
        {"optim.momentum": 0.9, "optim.weight_decay": 5e-4, "optim.nesterov": False},
    ),
}


@pytest.mark.parametrize("statement", STATED)
def test_what_a_paper_states_is_the_default(statement):
    overrides, stated = STATED[statement]
    plain = compose_plain(*overrides)
    for key, expected in stated.items():
        value: Any = plain
        for name in key.split("."):
            value = value[name]
        assert number(value) == pytest.approx(expected), key


def number(value: Any) -> Any:
    """Read a fraction, which a config keeps as text."""
    above, slash, below = str(value).partition("/")
    return int(above) / int(below) if slash and above.isdigit() else value
