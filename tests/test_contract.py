"""Every YAML option composes, validates and trains; every part keeps the contract of its kind."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import ablation
from ablation.crafters import Bisection, BoundarySearch
from ablation.errors import ConfigError
from ablation.models import Net
from ablation.numerics.functional import lp_norm
from ablation.numerics.modes import buffers
from ablation.training.method import Method
from ablation.training.step import craft
from ablation.training.views import StepViews
from ablation.types import Batch, Clock, Crafted
from tests.support.configs import compose_config
from tests.support.options import COMPONENTS, CONF, completed, options, refused
from tests.support.parts import (
    largest_difference,
    memories_of,
    small_batch,
    small_net,
    train_steps,
)
from tests.support.sampling import some_of, some_pairs

METHODS = options("method")
TOYS = {  # what lets a preset find points on toy images, in any norm, whatever the batch's order
    "dyart": [
        "component.closed_form_gradient.filter=none",
        "component.fab_margin.start=clean",
        "component/soft_boundary=disabled",
    ]
}
KNOWN = ("data.classes=3", "data.mean=[0.5]", "data.std=[0.5]")
"""What the images of these options would say."""
REASON = "=disabled|has a weight already|no term in the role"


ALONE = [
    *(
        f"{g}={o}"
        for g in ("model", "optim", "schedule", "average", "evaluation")
        for o in options(g)
    ),
    *COMPONENTS,
]


@pytest.mark.parametrize("override", some_of(ALONE, 3))
def test_every_option_composes_and_validates(override):
    compose_config(*completed(override), "epochs=110")


@pytest.mark.parametrize("name", options("data"))
def test_every_data_option_validates(name):
    known = () if name not in ("image_folder", "parquet") else KNOWN
    config = compose_config(f"data={name}", "selection.n=null", *known)
    assert config.data.name == name


@pytest.mark.parametrize(("method", "component"), some_pairs(METHODS, ["none", *COMPONENTS], 4))
def test_every_method_trains_with_every_component_and_repeats_its_bits(method, component):
    overrides = [f"method={method}", *([] if component == "none" else completed(component))]
    if refused(method, component):
        with pytest.raises(ConfigError, match=REASON):
            compose_config(*overrides)
        return
    composed = compose_config(*overrides).phases[-1].method
    nets = []
    for _ in range(2):
        net = net_for(composed)
        logs, _ = train_steps(composed, net, 2)
        assert all(log.loss.isfinite() for log in logs)
        nets.append(net)
    assert largest_difference(*nets) == 0
    assert largest_difference(nets[0], net_for(composed)) > 0


def net_for(method: Method) -> Net:
    """The small network with the method's head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small_net(head=method.head(6, 3) if method.head else None)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", METHODS)
def test_crafted_points_stay_in_the_ball_and_leave_no_trace(method, norm):
    more = TOYS.get(method, [])
    config = compose_config(f"method={method}", f"norm={norm}", "eps=0.3", *more)
    composed = config.phases[-1].method
    net, batch = small_net(), small_batch()
    memories = memories_of(composed)
    views = StepViews(net, batch, Clock(0, 0), torch.enable_grad, memories=memories)
    eps = composed.budget(views)
    before = buffers(net)
    for kind, name in ((entry.kind, entry.view) for entry in composed.training_passes):
        if kind != "craft":  # a crafter may read the passes before it
            views.run(name) if kind == "view" else None
            before = buffers(net)
            continue
        craft(composed, views, name, eps, 0, None)
        x = views.x(name)
        far = (BoundarySearch, Bisection)  # they go as far as they must
        if not isinstance(composed.crafters[name], far):
            assert (lp_norm(x - batch.x, norm) <= eps + 1e-12).all()
        assert ((x >= 0) & (x <= 1)).all()
        assert not x.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_terms_and_weights_are_per_sample_and_permute_with_the_batch(method):
    composed = compose_config(f"method={method}", *TOYS.get(method, [])).phases[-1].method
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    values = []
    for permute in (False, True):
        batch = small_batch()
        if permute:
            batch = dataclasses.replace(batch, x=batch.x[order], y=batch.y[order])
        views = _views(composed, batch)
        values.append(
            {
                f"{name}{kind}": part(views)
                for name, slot in composed.terms.items()
                for kind, part in (("", slot.term), ("_weight", slot.weight))
                if part is not None
            }
        )
    for name, value in values[0].items():
        assert value.shape == (8,)
        assert value.requires_grad or name.endswith("_weight")
        torch.testing.assert_close(values[1][name], value[order], atol=1e-12, rtol=0)


def _views(method: Method, batch: Batch) -> StepViews:
    """Adversarial points are the clean ones moved by a fixed shift, so that they permute too."""
    observed = method.observed()
    net, clock, memories = small_net().eval(), Clock(0, 0), memories_of(method)
    views = StepViews(
        net,
        batch,
        clock,
        torch.enable_grad,
        observed=observed,
        memories=memories,
    )
    for name, crafter in method.crafters.items():
        if isinstance(crafter, BoundarySearch):
            craft(method, views, name, method.budget(views), 0, None)
        else:
            share = views.batch.x.flatten(1).mean(1)  # stands for what a search tells of each
            aux = {"survived": share, "counted": share > 0.5}
            views.add(name, Crafted((views.batch.x + 0.02).clamp(0, 1), aux=aux))
    for name in ("nat", *method.crafters):
        views.run(name)
    return views


def test_presets_explain_themselves():
    for name in METHODS:
        text = (CONF / "method" / f"{name}.yaml").read_text()
        assert text.startswith("# "), name
    for path in CONF.glob("*/**/*.yaml"):
        if "hydra" not in path.parts:
            assert path.read_text().startswith("#"), f"{path} has no comment"


def test_no_option_is_named_like_a_boolean():
    for path in CONF.glob("**/*.yaml"):
        assert path.stem not in ("on", "off", "yes", "no", "true", "false"), path


def test_everything_public_has_a_docstring():
    for module in pkgutil.walk_packages([str(Path(ablation.__file__).parent)], "ablation."):
        found = importlib.import_module(module.name)
        assert found.__doc__, module.name
