"""Attacking what is trained already: a run directory, or a network that has none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

from ablation.config import validation
from ablation.config.command_line import Said, unsaid
from ablation.config.evaluations import checkpoints, chosen_weights, evaluations
from ablation.config.experiment import Config
from ablation.config.folders import has_file, read_saved_config
from ablation.config.from_data import completed
from ablation.config.parser import Parser
from ablation.config.rules import availability_problems, evaluation_problems, radius_problems
from ablation.config.surroundings import count_problems, device_problems
from ablation.errors import DONE, INTERRUPTED, ConfigError
from ablation.jobs.attack import evaluate_checkpoint
from ablation.jobs.bare import assess_bare, bare_problems
from ablation.jobs.request import AssessConfig, ModuleConfig
from ablation.jobs.robustbench import facts_of, write_record
from ablation.jobs.setup import load_images, pick_device, start_tracking
from ablation.jobs.state import asked_keys, missing, weights_problems
from ablation.jobs.summary import result_table
from ablation.jobs.supervise import supervised
from ablation.jobs.transfer import Origin, is_same, open_origin, origin_problems
from ablation.output import say, warn
from ablation.runs.directory import Run
from ablation.runs.tensorboard import missing_extra
from ablation.types import Fraction


def parse(container: Mapping[str, Any], known: Said = ()) -> tuple[AssessConfig | None, list[str]]:
    """The typed request for one run or network, and every problem in it.

    Args:
        container: a composed config.
        known: what the command line says of the code to import.
    """
    values = {"data": None, "model": None, **container}
    if barred := unsaid(values, known):
        return None, barred  # nothing is imported
    parser = Parser()
    if isinstance(values["data"], Mapping):
        root = Path(str(values.get("data_dir") or "data")).expanduser()
        values["data"], problems = completed(values["data"], root)
        parser.problems += problems
    is_outside = isinstance(values["model"], Mapping) and "target" in values["model"]
    outside = _outside(values, parser) if is_outside else None
    saved: dict[str, Any] = {}
    if values.get("run"):
        place = Path(str(values["run"])).expanduser()
        if not has_file(place / "config.yaml"):
            parser.problems.append(f"run={place}: no run there (config.yaml is missing)")
        else:
            saved = _saved(place, parser.problems)
    found = parser.parse(AssessConfig, values, "", _radius(values, saved))
    if not isinstance(found, AssessConfig) or (is_outside and outside is None):
        return None, parser.problems
    found = found if outside is None else replace(found, model=outside)
    return found, parser.problems + _problems(found, saved)


def _outside(values: dict[str, Any], parser: Parser) -> ModuleConfig | None:
    """Take a network from outside out of the values."""
    node, values["model"] = values["model"], None
    if node["target"] is None:
        parser.problems.append(
            "model.target is missing: set model.target=<module>:<class or function>"
        )
        return None
    found = parser.parse(ModuleConfig, node, "model")
    return found if isinstance(found, ModuleConfig) else None


def _problems(found: AssessConfig, saved: Mapping[str, Any]) -> list[str]:
    problems = [text.removeprefix("runtime.") for text in device_problems(found.device)]
    problems += radius_problems(found.eps, found.norm)
    problems += missing_extra(found.tracking)
    norm = found.evaluation.norm or found.norm or saved.get("norm")
    problems += evaluation_problems(replace(found.evaluation, norm=norm))
    if found.worker is not None and (found.run is None or found.worker < 0):
        problems.append(f"worker={found.worker}: 0, 1, ... for processes that share run=<run>")
    outside = isinstance(found.model, ModuleConfig)
    if found.run is not None and found.checkpoint is not None:
        problems.append("give either run=runs/<name> or checkpoint=<file>, not both")
    elif found.run is not None:
        if found.data is not None or found.model is not None:
            problems.append("run= knows its data and model: remove data= and model=")
        problems += _run_problems(found, saved) if saved else []
    elif found.checkpoint is not None or outside:
        if found.attack_from is not None:
            problems.append(f"attack_from={found.attack_from}: only another run is attacked, run=")
        problems += bare_problems(found)
    else:
        problems.append(
            "give run=runs/<name>, checkpoint=<file>, or model=torch_module with model.target="
        )
    return problems


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
    if request.attack_from is not None and not is_same(request.attack_from, request.run):
        problems += origin_problems(request.attack_from, config)
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


def each_pair(container: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A request for each run, and for each run whose examples attack it.

    Either may be a list, and a name may be a pattern as in ``runs/*``. What attacks itself comes
    first, so that the transferred attacks can be held against it.
    """
    runs, sources = (_named(container.get(key)) for key in ("run", "attack_from"))
    pairs = [
        {**container, "run": run, "attack_from": source}
        for run, source in itertools.product(runs, sources)
    ]
    return sorted(pairs, key=lambda pair: not is_same(pair["attack_from"], pair["run"]))


def _named(given: Any) -> list[str | None]:
    """The places that a key names, each once; ``None`` where it names none."""
    if given is None:
        return [None]
    names: dict[str, None] = {}
    for text in given if isinstance(given, list) else [given]:
        pattern = str(Path(str(text)).expanduser())
        places = sorted(glob(pattern)) if set("*?[") & set(pattern) else []  # noqa: PTH207 (a path may be absolute)
        runs = [place for place in places if (Path(place) / "config.yaml").is_file()]
        names |= dict.fromkeys(runs or [pattern])
    return list(names)


def check(container: Mapping[str, Any], known: Said = ()) -> list[str]:
    """Problems of a composed request; ``known`` as in ``parse``."""
    problems = (text for each in each_pair(container) for text in parse(each, known)[1])
    return list(dict.fromkeys(problems))


def run(container: Mapping[str, Any], known: Said = ()) -> int:
    """Evaluate each run, or the network; returns the last exit code that is not 0.

    Args:
        container: a composed config.
        known: what the command line says of the code to import.

    Raises:
        InputError: something the user gave cannot be used.
    """
    code = DONE
    for each in each_pair(container):
        request, problems = parse(each, known)
        if problems or request is None:
            raise ConfigError(problems)
        one = _run(request) if request.run is not None else assess_bare(request)
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
    origin = _origin(request)
    source = None if origin is None else origin.key
    if missing(config, trained, source):
        # Workers lock batches instead, and the run only while they write its results.
        with nullcontext() if _shared(request) else trained.reopen():
            code = supervised(
                trained, lambda stop: _assess(config, trained, request, origin, stop), False
            )
        if code != DONE:
            return code
    _keep_record(config, trained)
    say(f"{result_table(trained, asked_keys(config, source))}\nresults in {path}")
    return DONE


def _shared(request: AssessConfig) -> bool:
    """Whether other processes work on the same evaluation."""
    return request.worker is not None


def _origin(request: AssessConfig) -> Origin | None:
    """The run whose examples attack; a run's own are the usual, white-box attack."""
    if request.attack_from is None:
        return None
    if is_same(request.attack_from, request.run):
        warn(
            f"warning: attack_from={request.attack_from} is the attacked run itself: this is the "
            "white-box attack, and recorded as such"
        )
        return None
    return open_origin(request.attack_from)


def _assess(
    config: Config,
    run: Run,
    request: AssessConfig,
    origin: Origin | None,
    stop: Callable[[], bool],
) -> None:
    device = pick_device(request.device)
    images = load_images(config, device)
    run.check_data(images.fingerprint())
    tracker = start_tracking(request.tracking, config, run, "eval")
    source = None if origin is None else origin.key
    try:
        for name, node in missing(config, run, source):
            evaluate_checkpoint(
                *(config, run, name, node, images, device, stop, tracker, origin),
                shared=_shared(request),
            )
    finally:
        tracker.finish(DONE)


def _keep_record(config: Config, run: Run) -> None:
    """The record of the weights that a run stands for; a smoke run stands for nothing."""
    if config.scale == "smoke":
        return
    write_record(run, checkpoints(config)[0], chosen_weights(config), facts_of(config))
