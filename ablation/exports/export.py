"""Write a run as files that work without this package: weights, source, card, record, config."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ablation.config import validation
from ablation.config.compose import Composer
from ablation.config.evaluations import checkpoints, chosen_weights
from ablation.config.experiment import CheckpointName, Config, Weights
from ablation.config.folders import has_file, read_saved_config
from ablation.errors import ConfigError, InputError
from ablation.exports.card import SMOKE, Facts, card
from ablation.exports.command import command
from ablation.exports.hub import check_login, hub_problems, push
from ablation.exports.source import Architecture, standalone
from ablation.jobs.robustbench import FILE, facts_of, record
from ablation.jobs.setup import bare_net
from ablation.jobs.state import weights_problems
from ablation.output import say, warn
from ablation.reports.records import Measurement, read
from ablation.runs.directory import Run
from ablation.runs.files import (
    discard,
    json_text,
    make_folder,
    sync_folder,
    temporary_path,
    write_durably,
)
from ablation.runs.provenance import versions
from ablation.runs.state_dicts import encode, load_into

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""Abbreviations of licences as the hub has them."""
OURS = ("data_dir", "runs_dir", "tracking", "retry", "extend")
"""Keys of a config that say where somebody's files and accounts are."""


@dataclass(frozen=True)
class ExportConfig:
    """The keys of ``conf/export.yaml``; see there."""

    run: str | None
    out: str | None
    checkpoint: CheckpointName | None
    weights: Weights | None
    license: str
    push: str | None
    private: bool
    data_dir: str | None


@dataclass(frozen=True)
class Chosen:
    """What is exported: a run, and which of its weights.

    Attributes:
        run: its directory.
        config: of the run; its data folder is that of the request.
        checkpoint: name of the weights.
        weights: raw or average.
    """

    run: Run
    config: Config
    checkpoint: CheckpointName
    weights: Weights


def request_problems(request: ExportConfig) -> list[str]:
    """What is wrong with a request, one line each; nothing is written."""
    problems = []
    if request.run is None:
        problems.append("run is missing: give run=runs/<name>")
    if request.out is None:
        problems.append("out is missing: give out=<a new folder>")
    if not LICENSE.fullmatch(request.license):
        problems.append(
            f"license={request.license!r}: write it as the Hugging Face hub does, for example "
            "mit, apache-2.0, cc-by-4.0, or unknown"
        )
    if request.push is not None:
        problems += hub_problems(request.push)
    for check in _refusals(request):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
        except InputError as error:
            problems.append(str(error))
    return problems


def _refusals(request: ExportConfig) -> Iterator[Callable[[], object]]:
    """What raises where the request cannot be met."""
    if request.out is not None:
        yield partial(_refuse_taken, Path(request.out).expanduser())
    if request.run is not None:
        yield partial(choose, request)


def choose(request: ExportConfig) -> Chosen:
    """Find the run and the weights that are meant.

    Raises:
        InputError: they are not there; the message says why.
    """
    path = Path(str(request.run)).expanduser()
    if not has_file(path / "config.yaml"):
        raise InputError(f"run={path}: no run there (config.yaml is missing)")
    config, problems = validation.check(read_saved_config(path))
    if config is None or problems:
        raise ConfigError([f"run={path}: its config.yaml: {problem}" for problem in problems])
    run = Run.at(path)
    name = request.checkpoint or checkpoints(config)[0]
    kind = request.weights or chosen_weights(config)
    if problems := weights_problems(config, run, [name]):
        raise ConfigError(problems)
    if not run.checkpoints.has(name, average=kind == "average"):
        raise InputError(f"weights=average: {path} trained with average=none; set weights=raw")
    config = replace(config, data_dir=request.data_dir or config.data_dir)
    return Chosen(run, config, name, kind)


def export(request: ExportConfig, composer: Composer) -> Path:
    """Write the folder, and send it to the hub if asked.

    Args:
        request: without problems.
        composer: of ``conf/config.yaml``.

    Returns:
        The folder.

    Raises:
        InputError: something cannot be read, written or sent; a folder is whole or not there.
    """
    if request.push is not None:
        check_login(request.push)
    chosen = choose(request)
    net = loaded(chosen)
    files = contents(chosen, net, request.license, composer)
    folder = Path(str(request.out)).expanduser()
    write(folder, files, net, image_size(chosen.config))
    if chosen.config.scale == "smoke":
        warn(f"warning: {SMOKE[0].lower()}{SMOKE[1:]}")
    if request.push is not None:
        place = push(request.push, folder, request.private)
        say(f"sent to {place}{' (private)' if request.private else ''}")
    return folder


def loaded(chosen: Chosen) -> nn.Module:
    """The network with the chosen weights, on the CPU, in evaluation mode.

    Raises:
        InputError: a file is damaged, or the size of the images is not known.
    """
    net = bare_net(chosen.config, torch.device("cpu"))
    weights = chosen.run.checkpoints.load_weights(chosen.checkpoint, chosen.weights == "average")
    load_into(net, weights, chosen.run.path.name)
    return net.eval()


def contents(
    chosen: Chosen, net: nn.Module, license_name: str, composer: Composer
) -> Mapping[str, bytes]:
    """The files of an export by name.

    Args:
        chosen: run and weights.
        net: the network with them.
        license_name: of the weights.
        composer: of ``conf/config.yaml``.

    Raises:
        InputError: a result is damaged.
    """
    run, config = chosen.run, chosen.config
    entries = (run.result() or {}).get("entries", ()) if config.scale == "full" else ()
    kept = record(entries, chosen.checkpoint, chosen.weights, facts_of(config))
    meta = {"run": run.path.name, "checkpoint": chosen.checkpoint, "weights": chosen.weights}
    title = f"{run.path.name}: {config.model.name}, weights {chosen.checkpoint} ({chosen.weights})."
    size = image_size(config)
    source = standalone(architecture(config, size), title, versions()["ablation"])
    facts = _facts(chosen, net, license_name, kept, composer, size, source.needs)
    return {
        "model.safetensors": encode(net.state_dict(), meta),
        "model.py": source.text.encode(),
        "config.yaml": _public_config(run.path).encode(),
        FILE: json_text(kept).encode(),
        "README.md": card(facts).encode(),
    }


def architecture(config: Config, size: tuple[int, int, int]) -> Architecture:
    """What a run's network is made of, for images of (channels, height, width)."""
    node, data = config.model, config.data
    return Architecture(
        spec=node.spec,
        head=config.phases[-1].method.head or node.head,
        channels=size[0],
        size=(size[1], size[2]),
        classes=data.classes,
        normalisation=(list(data.mean), list(data.std)) if node.normalize else None,
        channels_last=config.runtime.channels_last,
    )


def _facts(
    chosen: Chosen,
    net: nn.Module,
    license_name: str,
    kept: Mapping[str, Any],
    composer: Composer,
    size: tuple[int, int, int],
    needs: str,
) -> Facts:
    run, config = chosen.run, chosen.config
    numbers = _numbers(chosen)
    result = run.result({(number.checkpoint, number.eval_id) for number in numbers}) or {}
    status = run.status()
    same_id = config.train_id == run.train_id
    return Facts(
        config=config,
        name=run.path.name,
        checkpoint=chosen.checkpoint,
        weights=chosen.weights,
        numbers=numbers,
        checks=result.get("checks", ()),
        deviations=result.get("deviations", ()),
        record=kept,
        parameters=sum(each.numel() for each in net.parameters()),
        status={} if status is None else status.facts,
        command=command(config, composer) if same_id else None,
        license=license_name,
        size=size,
        needs=needs,
    )


def image_size(config: Config) -> tuple[int, int, int]:
    """(channels, height, width) of a run's images.

    Raises:
        InputError: they have to be read, and cannot.
    """
    extent = config.data.source.extent(config.data_root)
    if extent is not None:
        return (extent.channels, *extent.size)
    images, _ = config.data.source.load(config.data_root)
    _, channels, height, width = images.images.shape
    return channels, height, width


def _numbers(chosen: Chosen) -> list[Measurement]:
    """The numbers of the weights, each recounted.

    Raises:
        InputError: a file of results cannot be believed.
    """
    found = read(chosen.run.path)
    if found.problems:
        raise InputError("; ".join(found.problems))
    return [each for each in found.measurements if each.is_of(chosen.checkpoint, chosen.weights)]


def _public_config(path: Path) -> str:
    """The saved config without what is of a person's machine and accounts."""
    found = {key: value for key, value in read_saved_config(path).items() if key not in OURS}
    if found.get("init_from"):
        found["init_from"] = Path(str(found["init_from"])).name
    return yaml.safe_dump(json.loads(json.dumps(found)), sort_keys=False, allow_unicode=True)


def write(
    folder: Path, files: Mapping[str, bytes], net: nn.Module, size: tuple[int, int, int]
) -> None:
    """Write the files into a new folder, all or none, once they give the network's logits.

    Raises:
        InputError: the folder exists or cannot be written; or ``model.py`` is another network.
    """
    temporary = temporary_path(folder)
    try:
        make_folder(folder.parent)
        discard(temporary)
        temporary.mkdir()
        for name, content in files.items():
            write_durably(temporary / name, content)
        check_same(temporary, net, size)
        shutil.rmtree(temporary / "__pycache__", ignore_errors=True)
        sync_folder(temporary)
        _refuse_taken(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        discard(temporary)
        raise InputError(
            f"out={folder}: cannot be written ({error.strerror or error}); give another folder"
        ) from error
    except BaseException:
        discard(temporary)
        raise


def check_same(folder: Path, net: nn.Module, size: tuple[int, int, int]) -> None:
    """Make sure that the exported network gives the logits of the run's, bit for bit.

    Args:
        folder: with ``model.py`` and its weights.
        net: the run's network.
        size: (channels, height, width) of its images.

    Raises:
        InputError: it does not.
    """
    x = torch.rand((4, *size), generator=torch.Generator().manual_seed(0))
    try:
        other = _imported(folder / "model.py").load()
        with torch.no_grad():
            found, wanted = other(x), net(x)
    except Exception as error:
        raise _unlike(f"{type(error).__name__}: {error}") from error
    if not torch.equal(found, wanted):
        raise _unlike("it gives other logits")


def _unlike(why: str) -> InputError:
    return InputError(
        f"model.py is not the network of the run ({why}), so nothing was written: its architecture "
        "uses more than torch and ablation.models; please report it"
    )


def _imported(path: Path) -> Any:
    """A module from its file, under a name that nobody else has."""
    name = f"_{path.parent.name}_{path.stem}".replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def _refuse_taken(folder: Path) -> None:
    """Make sure that nothing is there; a link that leads nowhere is something."""
    if folder.is_symlink() or folder.exists():
        raise InputError(f"out={folder}: exists, and stays as it is; give a new folder")
