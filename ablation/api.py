"""From Python: a run's network and numbers, any network's robustness, and training.

>>> import ablation
>>> run = ablation.train(["method=trades", "epochs=2", "evaluation=quick"])
run     runs/digits-tiny_cnn-trades-s0-...
>>> run.net(images).shape  # logits [N, K] of images [N, C, H, W] in [0, 1]
torch.Size([20, 10])
>>> numbers = ablation.results("runs")  # pandas: one row per number
>>> sorted(numbers.query("selected and split == 'test'")["metric"])
['clean', 'fgsm', 'pgd20']
>>> found = ablation.evaluate(run.net, images, labels, {"fgsm": Fgsm()}, eps=0.1)
>>> found.examples["fgsm_robust"].dtype
dtype('bool')

Names here are those of the command line, and so are errors: ``ablation.errors.InputError`` with a
message that names the key, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra import compose
from torch import Tensor, nn

from ablation.commands import cli
from ablation.config import validation
from ablation.config.compose import to_plain
from ablation.config.evaluations import checkpoints, chosen_weights
from ablation.config.experiment import CheckpointName, Config, Weights
from ablation.config.folders import has_file, read_saved_config
from ablation.config.overrides import letting_in
from ablation.config.surroundings import check
from ablation.errors import DONE, INTERRUPTED, ConfigError, InputError, InterruptedRunError
from ablation.evaluation import Evaluation, Request
from ablation.evaluation import evaluate as attack
from ablation.evaluation.attacks import Attack
from ablation.evaluation.measures import Measure
from ablation.jobs import train as job
from ablation.jobs.setup import bare_net
from ablation.jobs.state import weights_problems
from ablation.reports.records import Directory, read, stands_for
from ablation.runs.directory import Run, find_runs
from ablation.runs.state_dicts import load_into
from ablation.types import Norm

if TYPE_CHECKING:
    import pandas as pd

Runs = str | Path | Iterable[str | Path]
"""A run, a folder of runs, a pattern as in ``runs/*``, or several of them."""


@dataclass(frozen=True)
class LoadedRun:
    """A run, ready to use.

    Attributes:
        path: its directory.
        config: the validated config it was trained with.
        checkpoint: name of the weights in ``net``.
        weights: whether these are the raw ones or their average.
        net: in evaluation mode, fp32: from images [N, C, H, W] in [0, 1] to logits [N, K].
        results: its numbers, as ``results`` returns them.
    """

    path: Path
    config: Config
    checkpoint: CheckpointName
    weights: Weights
    net: nn.Module
    results: pd.DataFrame


def load_run(
    path: str | Path,
    checkpoint: CheckpointName | None = None,
    weights: Weights | None = None,
    device: str | torch.device = "cpu",
) -> LoadedRun:
    """Open a run's network and results.

    Args:
        path: the run's directory.
        checkpoint: ``best_robust``, ``best_clean`` or ``last``; by default what the run stands for.
        weights: ``raw`` or ``average``; by default the average where the run has one.
        device: where the network goes.

    Raises:
        InputError: no run is there, it has no such weights, or a file is damaged.
    """
    path = Path(path).expanduser()
    if not has_file(path / "config.yaml"):
        raise InputError(f"{path}: no run there (config.yaml is missing)")
    config, run = validation.load(read_saved_config(path)), Run.at(path)
    name = checkpoints(config)[0] if checkpoint is None else checkpoint
    kind = chosen_weights(config) if weights is None else weights
    if problems := weights_problems(config, run, [name]):
        raise InputError("; ".join(problems))
    if kind == "average" and not run.checkpoints.has(name, average=True):
        raise InputError(f"{path}: it trained with average=none; load weights='raw'")
    net = bare_net(config, torch.device(device))
    load_into(net, run.checkpoints.load_weights(name, kind == "average"), path.name)
    return LoadedRun(path, config, name, kind, net.eval(), results(path))


def results(runs: Runs, examples: bool = False) -> pd.DataFrame:
    """Gather the numbers of runs, each checked as a report checks it.

    Args:
        runs: which.
        examples: one row per image of every evaluation instead: its index, label, prediction,
            margins, and whether it withstood each attack.

    Returns:
        One row per number: the run (``run``, ``state``, ``data``, ``model``, ``method``, ``seed``,
        ``average``, ``components``), ``metric``, ``split``, ``checkpoint``, ``weights``, ``value``
        in ``unit``, ``n`` images, ``params`` of the attack, ``flags``, ``eval_id``, and
        ``selected``: whether it is of the weights that the run stands for. Runs without a number
        have no row. Runs may differ in settings that have no column: see ``LoadedRun.config``.

    Raises:
        InputError: there is no run, or a file in one cannot be used.
    """
    import pandas as pd

    found = [_facts(run) for run in _each(runs)]
    make = _examples if examples else _numbers
    rows = [row for facts, directory, config in found for row in make(facts, directory, config)]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def evaluate(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack | Measure | None],
    eps: float,
    norm: Norm = "linf",
    **settings: Any,
) -> Evaluation:
    """Attack any network, in fp32 and evaluation mode, and check the result for gradient masking.

    Args:
        net: from images in [0, 1] to logits [N, K]; normalisation belongs inside.
        images: [N, C, H, W], uint8 or floats in [0, 1].
        labels: [N].
        attacks: by the name of their metric; ``None`` is clean accuracy.
        eps: radius in pixels, as 8 / 255.
        norm: of the ball.
        **settings: of ``ablation.evaluation.Request``: ``batch_size``, ``seed``, ``n``, ...

    Raises:
        InputError: something does not fit.
    """
    return attack(net, images, labels, Request(attacks, eps, norm, **settings))


def train(overrides: Sequence[str] = ()) -> LoadedRun:
    """Train one config in this process, or go on with it, as ``ablation-train`` does.

    Args:
        overrides: as on the command line, none of them a sweep.

    Returns:
        The finished run. It is found again, not trained, if it is there.

    Raises:
        ConfigError: what is wrong with the overrides, all of it; nothing was started.
        InterruptedRunError: a signal stopped it; the same call goes on.
        InputError: it failed; the message says why.
    """
    if problems := cli.preflight("config", overrides, check):
        raise ConfigError(problems)
    with cli.searching(None):
        container = to_plain(compose("config", [letting_in(text) for text in overrides]))
    path = validation.load(container).run_dir
    code = job.train(container)
    if code == DONE:
        return load_run(path)
    status = Run.at(path).status()
    why = f"{path}: {None if status is None else status.error}"
    raise InterruptedRunError(why) if code == INTERRUPTED else InputError(why)


def _each(runs: Runs) -> Iterator[Path]:
    """The run directories that are meant, each once.

    Raises:
        InputError: a name stands for none.
    """
    seen: set[Path] = set()
    for text in [runs] if isinstance(runs, str | Path) else runs:
        places = [Path(place) for place in sorted(glob(str(Path(text).expanduser())))]  # noqa: PTH207
        found = [
            path
            for place in places
            for path in ([place] if has_file(place / "config.yaml") else _below(place))
        ]
        if not found:
            raise InputError(f"{text}: no run there; name a run, a folder of runs, or a pattern")
        for path in found:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _below(folder: Path) -> list[Path]:
    return [run.path for run in find_runs(folder)] if folder.is_dir() else []


def _facts(path: Path) -> tuple[dict[str, Any], Directory, Config]:
    """What every row says of its run, and what the run wrote.

    Raises:
        InputError: a file cannot be used.
    """
    directory, config = read(path), validation.load(read_saved_config(path))
    if directory.problems:
        raise InputError("; ".join(directory.problems))
    facts = {
        "run": path.name,
        "state": directory.state,
        "data": config.data.name,
        "model": config.model.name,
        "method": config.method.name,
        "average": "" if config.average is None else type(config.average).__name__.lower(),
        "components": " ".join(name for name, part in config.component.items() if part is not None),
        "seed": config.seed,
    }
    return facts, directory, config


def _numbers(
    facts: Mapping[str, Any], directory: Directory, config: Config
) -> Iterator[pd.DataFrame]:
    import pandas as pd

    rows = [
        {
            **facts,
            "metric": number.metric,
            "split": number.split,
            "checkpoint": number.checkpoint,
            "weights": number.weights,
            "selected": stands_for(config, number),
            "value": number.value,
            "unit": number.unit,
            "n": number.n,
            "params": dict(number.params),
            "flags": number.flags,
            "eval_id": number.eval_id,
        }
        for number in directory.measurements
    ]
    if rows:
        yield pd.DataFrame(rows)


def _examples(
    facts: Mapping[str, Any], directory: Directory, config: Config
) -> Iterator[pd.DataFrame]:
    import pandas as pd

    del config
    files = {
        number.examples: number for number in directory.measurements if number.examples is not None
    }
    for file, number in files.items():
        table = pd.read_parquet(file)
        said = {"checkpoint": number.checkpoint, "weights": number.weights, "split": number.split}
        yield table.assign(**{**facts, **said, "eval_id": number.eval_id})
