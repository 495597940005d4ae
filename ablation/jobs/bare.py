"""Attacking networks without a run: a file of weights for one of our models, or any module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from ablation.config import experiment as configuration
from ablation.config.experiment import DataConfig, EvaluationConfig, ModelConfig
from ablation.config.folders import has_file
from ablation.config.parser import plain
from ablation.config.phases import head_problems
from ablation.config.rules import data_problems, model_problems, name_problems
from ablation.config.surroundings import count_problems
from ablation.data import ImageSet, check_labels, to_float
from ablation.errors import DONE, InputError
from ablation.evaluation import Measure
from ablation.jobs.attack import Subject
from ablation.jobs.request import AssessConfig, ModuleConfig
from ablation.jobs.robustbench import Facts, write_record
from ablation.jobs.setup import own_normalisation, pick_device
from ablation.jobs.summary import result_table
from ablation.jobs.supervise import supervised
from ablation.models import Net, build_model
from ablation.models.foreign import fitted, translate
from ablation.models.outside import build_outside, check_logits, in_pixels, locate
from ablation.numerics.modes import evaluating
from ablation.output import say, warn
from ablation.runs.directory import Run
from ablation.runs.state_dicts import load_into, load_weights_file, weights_digest

AS_BUILT = "as_built"
"""Name of the weights of a module that brings its own."""
PROBED = 2
"""Images that a network from outside must take before anything is written."""
TRIED, CLEARLY = 256, 2
"""Images that tell whether the normalisation is the weights', and the deviations of a sign test."""


def bare_problems(config: AssessConfig) -> list[str]:
    """What is wrong with a request that names no run."""
    problems = [
        f"checkpoint= needs {key}=<name>: the weights do not say what they were trained on"
        for key, node in (("data", config.data), ("model", config.model))
        if node is None
    ]
    problems += name_problems(config.data, config.model)
    if config.checkpoint and not has_file(Path(config.checkpoint).expanduser()):
        problems.append(f"checkpoint={config.checkpoint}: no such file")
    if config.data is not None:
        root = Path(config.data_dir or "data").expanduser()
        problems += data_problems(config.data)
        problems += config.data.source.check(root) or count_problems(
            [config.evaluation], config.data, config.data.source.extent(root)
        )
    problems += _model_problems(config)
    return [*problems, *_of_a_run(config.evaluation)]


def _model_problems(config: AssessConfig) -> Iterator[str]:
    node = config.model
    if isinstance(node, ModuleConfig):
        try:
            locate(node.target)
        except InputError as error:
            yield str(error)
    elif node is not None:
        yield from model_problems(node.spec)
        yield from head_problems(node.head, ())


def _of_a_run(node: EvaluationConfig) -> Iterator[str]:
    """What only a run has: splits, several checkpoints, averaged weights."""
    own = {m.split for m in node.attacks.values() if isinstance(m, Measure)} | {node.split}
    if own - {None, "test"}:
        yield "evaluation: a bare checkpoint has no train or val images; use split: test"
    if node.checkpoints is not None:
        yield f"evaluation.checkpoints={node.checkpoints}: a bare checkpoint is one"
    if node.weights == "average":
        yield "evaluation.weights=average: a bare checkpoint holds one set of weights"


def assess_bare(request: AssessConfig) -> int:
    """Evaluate a network without a run; the result gets a folder of its own.

    Raises:
        InputError: something the user gave cannot be used; nothing was written.
    """
    assert request.data is not None  # noqa: S101  the problems say so
    assert request.model is not None  # noqa: S101
    data, model = request.data, request.model
    device = pick_device(request.device)
    _, test = data.source.load(Path(request.data_dir or "data").expanduser())
    check_labels(test, data.classes)
    path = None if request.checkpoint is None else Path(request.checkpoint).expanduser()
    facts: dict[str, Any]
    if isinstance(model, ModuleConfig):
        net, facts = _outside(model, data, path, test, device)
        architecture, passes = type(net.body).__name__, None
    else:
        assert path is not None  # noqa: S101
        net, facts = _one_of_ours(request, path, test)
        architecture, passes = model.name, 1
    net = net.to(device)
    _warn_of_normalisation(net, data, test)
    weights = _digest_of(net) if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"weights": weights, "data": test.fingerprint(), **facts}
    digest = configuration.digest(configuration.stamped(facts))
    stem = AS_BUILT if path is None else path.stem
    folder = Run(Path(request.runs_dir) / f"{data.name}-{model.name}-{stem}-{digest}", digest)
    eps = data.eps if request.eps is None else request.eps
    subject = Subject(stem, "raw", eps, request.norm or "linf", request.evaluation)
    if not folder.has_evaluation(stem, subject.key):
        with folder.open(yaml.safe_dump(facts)):
            code = supervised(folder, lambda stop: subject.record(folder, net, test, stop))
        if code != DONE:
            return code
    known = Facts(data.name, architecture, subject.threat, len(test), passes)
    write_record(folder, stem, "raw", known)
    say(f"{result_table(folder, [(stem, subject.key)])}\nresults in {folder.path}")
    return DONE


def _one_of_ours(request: AssessConfig, path: Path, test: ImageSet) -> tuple[Net, dict[str, Any]]:
    """A network of the package with these weights, and what tells it apart."""
    data, model = request.data, request.model
    assert data is not None  # noqa: S101  the problems say so
    assert isinstance(model, ModelConfig)  # noqa: S101
    weights, _ = load_weights_file(path)
    net = build_model(
        model.spec,
        channels=test.images.shape[1],
        size=(test.images.shape[2], test.images.shape[3]),
        classes=data.classes,
        head=model.head,
        mean=data.mean if model.normalize else None,
        std=data.std if model.normalize else None,
    )
    # Published weights rarely hold the constants of the input normalisation.
    renamed = translate(weights, net, model.spec)
    load_into(net, {**own_normalisation(net), **renamed}, str(path))
    return net, {"network": {**plain(model), "normalize": _constants(model, data)}}


def _constants(model: ModelConfig | ModuleConfig, data: DataConfig) -> Any:
    """What tells the input normalisation of a network apart."""
    return {"mean": list(data.mean), "std": list(data.std)} if model.normalize else False


def _warn_of_normalisation(net: Net, data: DataConfig, test: ImageSet) -> None:
    """Warn if a network gets clearly more images right with its normalisation the other way."""
    x = to_float(test.images[:TRIED].to(next(net.parameters()).device))
    y = test.labels[:TRIED].to(x.device)
    if net.mean is not None and net.std is not None:
        other = x * net.std + net.mean
    else:
        mean, std = (x.new_tensor(each).view(1, -1, 1, 1) for each in (data.mean, data.std))
        other = (x - mean) / std
    with evaluating(net), torch.no_grad():
        own, turned = ((net(each).argmax(1) == y).double() for each in (x, other))
    gain = turned - own  # +1 and -1 where only one of them is right
    if gain.sum() > CLEARLY * gain.abs().sum().sqrt():
        now, then = ("true", "false") if net.mean is not None else ("false", "true")
        warn(
            f"warning: model.normalize={now} gets {100 * own.mean():.0f}% of {len(x)} clean test "
            f"images right, model.normalize={then} {100 * turned.mean():.0f}%: set what the "
            f"weights were trained with"
        )


def _outside(
    model: ModuleConfig, data: DataConfig, path: Path | None, test: ImageSet, device: torch.device
) -> tuple[Net, dict[str, Any]]:
    """A network from outside with its weights, tried on a few images; and what tells it apart."""
    built = build_outside(model.target, model.kwargs)
    constants = (data.mean, data.std) if model.normalize else (None, None)
    net = in_pixels(built, *constants)
    if path is None:
        say(f"model.target={model.target}: no checkpoint=, so it is attacked as it is built")
    else:
        weights, _ = load_weights_file(path)
        layers, own = fitted(weights, net)
        remedy = "set model.target and model.kwargs to the network that the weights are of"
        load_into(built, layers, str(path), remedy)
        for name, value in own.items():
            net.get_buffer(name).copy_(value)
    net = net.to(device)
    check_logits(net, to_float(test.images[:PROBED].to(device)), data.classes, model.target)
    told = {
        "target": model.target,
        "kwargs": dict(model.kwargs),
        "normalize": _constants(model, data),
    }
    return net, {"network": told}


def _digest_of(net: Net) -> str:
    return weights_digest({name: value.cpu() for name, value in net.state_dict().items()}, {})
