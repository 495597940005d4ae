"""Attacking what is trained already: a run directory, or a bare file of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ablation.config import experiment as configuration
from ablation.config import validation
from ablation.config.experiment import Config, DataConfig, EvaluationConfig, ModelConfig
from ablation.config.parser import Parser
from ablation.config.surroundings import device_problems
from ablation.data import check_labels
from ablation.errors import DONE, ConfigError, InputError
from ablation.jobs.attack import Subject, evaluate_checkpoint
from ablation.jobs.setup import load_images, own_normalisation, pick_device, start_tracking
from ablation.jobs.state import missing, weights_problems
from ablation.jobs.summary import result_table
from ablation.jobs.supervise import supervised
from ablation.models import build_model
from ablation.output import say
from ablation.runs.directory import Run
from ablation.runs.state_dicts import load_into, load_weights_file
from ablation.runs.tracking import TrackingConfig
from ablation.types import Fraction, Norm


@dataclass(frozen=True)
class AssessConfig:
    """The keys of ``conf/evaluate.yaml``; see there."""

    data: DataConfig | None
    model: ModelConfig | None
    evaluation: EvaluationConfig
    run: str | None
    checkpoint: str | None
    norm: Norm | None
    eps: Fraction | None
    device: str
    data_dir: str | None
    runs_dir: str
    tracking: TrackingConfig


def parse(container: Mapping[str, Any]) -> tuple[AssessConfig | None, list[str]]:
    """The typed request and every problem in it."""
    values = {"data": None, "model": None, **container}
    parser = Parser()
    eps = _radius(values)
    found = parser.parse(AssessConfig, values, "", eps)
    if not isinstance(found, AssessConfig):
        return None, parser.problems
    problems = device_problems(found.device)
    if (found.run is None) == (found.checkpoint is None):
        problems.append("give either run=runs/<name> or checkpoint=<file>, not both")
    elif found.run is not None:
        if found.data is not None or found.model is not None:
            problems.append("run= knows its data and model: remove data= and model=")
        if not (Path(found.run) / "config.yaml").is_file():
            problems.append(f"run={found.run}: no run there (config.yaml is missing)")
    else:
        problems += _checkpoint_problems(found)
    return found, problems


def _radius(values: Mapping[str, Any]) -> float:
    """Choose the radius by which pixel step sizes are divided: the request's, run's or data's."""
    sources = [values.get("eps"), (values.get("data") or {}).get("eps")]
    if values.get("run"):
        path = Path(str(values["run"])) / "config.yaml"
        if path.is_file():
            with suppress(InputError):  # said when the run is opened
                sources.insert(1, Run.at(path.parent).config().get("eps"))
    given = next((value for value in sources if value is not None), 0.0)
    found = Parser().parse(Fraction, given, "eps")
    return found if isinstance(found, float) else 0.0


def _checkpoint_problems(config: AssessConfig) -> list[str]:
    problems = [
        f"checkpoint= needs {key}=<name>: the weights do not say what they were trained on"
        for key, node in (("data", config.data), ("model", config.model))
        if node is None
    ]
    if not Path(str(config.checkpoint)).is_file():
        problems.append(f"checkpoint={config.checkpoint}: no such file")
    if config.data is not None:
        problems += config.data.source.check(Path(config.data_dir or "data").expanduser())
    if config.evaluation.split != "test":
        problems.append("evaluation.split: a bare checkpoint has no split of its own; use test")
    return problems


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return parse(container)[1]


def run(container: Mapping[str, Any]) -> int:
    """Evaluate; returns an exit code.

    Raises:
        InputError: something the user gave cannot be used.
    """
    request, problems = parse(container)
    if problems or request is None:
        raise ConfigError(problems)
    return _run(request) if request.run is not None else _checkpoint(request)


def _run(request: AssessConfig) -> int:
    """Evaluate a run's weights; its own config says what it is."""
    path = Path(str(request.run))
    config = validation.load(Run.at(path).config())
    evaluation = replace(
        request.evaluation,
        eps=request.eps if request.evaluation.eps is None else request.evaluation.eps,
        norm=request.norm if request.evaluation.norm is None else request.evaluation.norm,
    )
    config = replace(
        config,
        evaluation=evaluation,
        data_dir=request.data_dir or config.data_dir,
        runs_dir=str(path.parent),
    )
    # The name, not the config: an id that this version would compute differently stays valid.
    trained = Run.at(path)
    problems = config.data.source.check(config.data_root) + weights_problems(config, trained)
    if problems:
        raise ConfigError(problems)
    names = missing(config, trained)
    if names:
        with trained.reopen():
            code = supervised(trained, lambda stop: _assess(config, trained, request, stop), False)
        if code != DONE:
            return code
    say(f"{result_table(trained)}\nresults in {path}")
    return DONE


def _assess(config: Config, run: Run, request: AssessConfig, stop: Callable[[], bool]) -> None:
    device = pick_device(request.device)
    images = load_images(config, device)
    run.check_data(images.fingerprint())
    tracker = start_tracking(request.tracking, config, run, "eval")
    try:
        for name, node in missing(config, run):
            evaluate_checkpoint(config, run, name, node, images, device, stop, tracker)
    finally:
        tracker.finish(DONE)


def _checkpoint(request: AssessConfig) -> int:
    """Evaluate a bare file of weights; the result gets a folder of its own."""
    assert request.data is not None  # noqa: S101  parse has checked both
    assert request.model is not None  # noqa: S101
    path, data, model = Path(str(request.checkpoint)), request.data, request.model
    weights, _ = load_weights_file(path)
    device = pick_device(request.device)
    _, test = data.source.load(Path(request.data_dir or "data").expanduser())
    check_labels(test, data.classes, "data.classes")
    net = build_model(
        model.spec,
        channels=test.images.shape[1],
        size=test.images.shape[2],
        classes=data.classes,
        head=model.head,
        mean=data.mean if model.normalize else None,
        std=data.std if model.normalize else None,
    ).to(device)
    # Published weights rarely hold the constants of the input normalisation.
    load_into(net, {**own_normalisation(net), **weights}, str(path))
    facts = {"weights": hashlib.sha256(path.read_bytes()).hexdigest(), "data": test.fingerprint()}
    digest = configuration.digest(facts)
    folder = Run(Path(request.runs_dir) / f"{data.name}-{model.name}-{path.stem}-{digest}", digest)
    eps = data.eps if request.eps is None else request.eps
    subject = Subject(path.stem, "raw", eps, request.norm or "linf", request.evaluation)
    if not folder.has_evaluation(path.stem, subject.key):
        with folder.open(yaml.safe_dump(facts)):
            code = supervised(folder, lambda stop: subject.record(folder, net, test, stop))
        if code != DONE:
            return code
    say(f"{result_table(folder)}\nresults in {folder.path}")
    return DONE
