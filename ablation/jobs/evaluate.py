"""Attacking what is trained already: a run directory, or a bare file of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from ablation.config import experiment as configuration
from ablation.config import validation
from ablation.config.evaluations import evaluations
from ablation.config.experiment import Config, DataConfig, EvaluationConfig, ModelConfig
from ablation.config.folders import has_file, read_saved_config
from ablation.config.from_data import completed
from ablation.config.parser import Parser
from ablation.config.phases import head_problems
from ablation.config.rules import (
    availability_problems,
    data_problems,
    evaluation_problems,
    model_problems,
    name_problems,
    radius_problems,
)
from ablation.config.surroundings import count_problems, device_problems
from ablation.data import check_labels
from ablation.errors import DONE, INTERRUPTED, ConfigError
from ablation.evaluation import Measure
from ablation.jobs.attack import Subject, evaluate_checkpoint
from ablation.jobs.setup import load_images, own_normalisation, pick_device, start_tracking
from ablation.jobs.state import asked_keys, missing, weights_problems
from ablation.jobs.summary import result_table
from ablation.jobs.supervise import supervised
from ablation.models import build_model
from ablation.models.foreign import translate
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
    """The typed request for one run or checkpoint, and every problem in it."""
    values = {"data": None, "model": None, **container}
    parser = Parser()
    if isinstance(values["data"], Mapping):
        root = Path(str(values.get("data_dir") or "data")).expanduser()
        values["data"], parser.problems = completed(values["data"], root)
    saved: dict[str, Any] = {}
    if values.get("run"):
        place = Path(str(values["run"])).expanduser()
        if not has_file(place / "config.yaml"):
            parser.problems.append(f"run={place}: no run there (config.yaml is missing)")
        else:
            saved = _saved(place, parser.problems)
    found = parser.parse(AssessConfig, values, "", _radius(values, saved))
    if not isinstance(found, AssessConfig):
        return None, parser.problems
    problems = parser.problems
    problems += [text.removeprefix("runtime.") for text in device_problems(found.device)]
    problems += radius_problems(found.eps, found.norm)
    norm = found.evaluation.norm or found.norm or saved.get("norm")
    problems += evaluation_problems(replace(found.evaluation, norm=norm))
    if (found.run is None) == (found.checkpoint is None):
        problems.append("give either run=runs/<name> or checkpoint=<file>, not both")
    elif found.run is not None:
        if found.data is not None or found.model is not None:
            problems.append("run= knows its data and model: remove data= and model=")
        problems += _run_problems(found, saved) if saved else []
    else:
        problems += _checkpoint_problems(found)
    return found, problems


def _saved(run: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_saved_config(run)
    except ConfigError as error:
        problems += error.problems
        return {}


def _radius(values: Mapping[str, Any], saved: Mapping[str, Any]) -> float:
    """Choose the radius by which pixel step sizes are divided: the request's, run's or data's."""
    data = values.get("data")
    usual = data.get("eps") if isinstance(data, Mapping) else None
    sources = (values.get("eps"), saved.get("eps"), usual)
    given = next((value for value in sources if value is not None), 0.0)
    found = Parser().parse(Fraction, given, "eps")
    return found if isinstance(found, float) else 0.0


def _run_problems(request: AssessConfig, saved: Mapping[str, Any]) -> list[str]:
    """Check that the run has what the evaluation asks for."""
    config, problems = validation.check(saved)
    if config is None or problems:
        return [f"run={request.run}: its config.yaml: {problem}" for problem in problems]
    config = _asked(request, config)
    problems = [*availability_problems(config), *config.data.source.check(config.data_root)]
    extent = config.data.source.extent(config.data_root)
    return problems or count_problems(evaluations(config), config.data, extent)


def _asked(request: AssessConfig, config: Config) -> Config:
    """The run's config with the evaluation that is asked for."""
    evaluation = replace(
        request.evaluation,
        eps=request.eps if request.evaluation.eps is None else request.evaluation.eps,
        norm=request.norm if request.evaluation.norm is None else request.evaluation.norm,
    )
    return replace(
        config,
        evaluation=evaluation,
        data_dir=request.data_dir or config.data_dir,
        runs_dir=str(Path(str(request.run)).expanduser().parent),
    )


def _checkpoint_problems(config: AssessConfig) -> list[str]:
    problems = [
        f"checkpoint= needs {key}=<name>: the weights do not say what they were trained on"
        for key, node in (("data", config.data), ("model", config.model))
        if node is None
    ]
    problems += name_problems(config.data, config.model)
    if not has_file(Path(str(config.checkpoint)).expanduser()):
        problems.append(f"checkpoint={config.checkpoint}: no such file")
    if config.data is not None:
        root = Path(config.data_dir or "data").expanduser()
        problems += data_problems(config.data)
        problems += config.data.source.check(root) or count_problems(
            [config.evaluation], config.data, config.data.source.extent(root)
        )
    if config.model is not None:
        problems += model_problems(config.model.spec)
        problems += head_problems(config.model.head, ())
    return problems + _of_a_run(config.evaluation)


def _of_a_run(node: EvaluationConfig) -> list[str]:
    """What only a run has: splits, several checkpoints, averaged weights."""
    problems = []
    own = {m.split for m in node.attacks.values() if isinstance(m, Measure)} | {node.split}
    if own - {None, "test"}:
        problems.append("evaluation: a bare checkpoint has no train or val images; use split: test")
    if node.checkpoints is not None:
        problems.append(f"evaluation.checkpoints={node.checkpoints}: a bare checkpoint is one")
    if node.weights == "average":
        problems.append("evaluation.weights=average: a bare checkpoint holds one set of weights")
    return problems


def each_run(container: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A request per run: ``run`` may be a list, and a name may be a pattern as in ``runs/*``."""
    given = container.get("run")
    if given is None:
        return [container]
    names: list[str] = []
    for text in given if isinstance(given, list) else [given]:
        pattern = str(Path(str(text)).expanduser())
        if not set("*?[") & set(pattern):
            names.append(pattern)
            continue
        places = sorted(glob(pattern))  # noqa: PTH207 (a path may be absolute)
        runs = [place for place in places if (Path(place) / "config.yaml").is_file()]
        names += runs or [pattern]
    return [{**container, "run": name} for name in dict.fromkeys(names)]


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return list(dict.fromkeys(text for each in each_run(container) for text in parse(each)[1]))


def run(container: Mapping[str, Any]) -> int:
    """Evaluate each run, or the checkpoint; returns the last exit code that is not 0.

    Raises:
        InputError: something the user gave cannot be used.
    """
    code = DONE
    for each in each_run(container):
        request, problems = parse(each)
        if problems or request is None:
            raise ConfigError(problems)
        one = _run(request) if request.run is not None else _checkpoint(request)
        if one == INTERRUPTED:
            return one
        code = one or code
    return code


def _run(request: AssessConfig) -> int:
    """Evaluate a run's weights; its own config says what it is."""
    path = Path(str(request.run)).expanduser()
    config = _asked(request, validation.load(read_saved_config(path)))
    # The name, not the config: an id that this version would compute differently stays valid.
    trained = Run.at(path)
    problems = weights_problems(config, trained)
    if problems:
        raise ConfigError(problems)
    names = missing(config, trained)
    if names:
        with trained.reopen():
            code = supervised(trained, lambda stop: _assess(config, trained, request, stop), False)
        if code != DONE:
            return code
    say(f"{result_table(trained, asked_keys(config))}\nresults in {path}")
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
    path = Path(str(request.checkpoint)).expanduser()
    data, model = request.data, request.model
    weights, _ = load_weights_file(path)
    device = pick_device(request.device)
    _, test = data.source.load(Path(request.data_dir or "data").expanduser())
    check_labels(test, data.classes)
    net = build_model(
        model.spec,
        channels=test.images.shape[1],
        size=(test.images.shape[2], test.images.shape[3]),
        classes=data.classes,
        head=model.head,
        mean=data.mean if model.normalize else None,
        std=data.std if model.normalize else None,
    ).to(device)
    # Published weights rarely hold the constants of the input normalisation.
    renamed = translate(weights, net, model.spec)
    load_into(net, {**own_normalisation(net), **renamed}, str(path))
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
    say(f"{result_table(folder, [(path.stem, subject.key)])}\nresults in {folder.path}")
    return DONE
