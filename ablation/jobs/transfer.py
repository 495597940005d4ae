"""Runs whose adversarial examples attack another run: transfer, and what two runs must share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ablation.config import validation
from ablation.config.evaluations import checkpoints, chosen_weights
from ablation.config.experiment import CheckpointName, Config, Weights
from ablation.config.folders import has_file, read_saved_config
from ablation.errors import ConfigError
from ablation.evaluation import Check, Entry, Evaluation, Measure, Source
from ablation.evaluation.checks import transfer
from ablation.evaluation.results import Probe
from ablation.jobs.setup import Images, build_net
from ablation.jobs.state import weights_problems
from ablation.runs.directory import Run, first_difference
from ablation.runs.state_dicts import load_into

NOT_COMPARED = frozenset(("attack_from", "seed", "batch_size", "eps_text", "reuses"))
"""Parameters in which an attack and its transferred twin may differ."""


@dataclass(frozen=True)
class Origin:
    """The run on whose network adversarial examples are crafted, and its weights.

    Attributes:
        config: of the run.
        run: its directory.
    """

    config: Config
    run: Run

    @property
    def name(self) -> str:
        """What the results call it: the run's name."""
        return self.run.path.name

    @property
    def checkpoint(self) -> CheckpointName:
        """The checkpoint that the run stands for."""
        return checkpoints(self.config)[0]

    @property
    def weights(self) -> Weights:
        """Averaged where the run averages."""
        return chosen_weights(self.config)

    @property
    def key(self) -> str:
        """What identifies the weights: part of the evaluation's identity."""
        return f"{self.name} {self.checkpoint} {self.weights}"

    def source(self, images: Images, device: torch.device) -> Source:
        """The network, for the images of the run that is attacked.

        Raises:
            InputError: the run was trained on others, or its weights are damaged.
        """
        self.run.check_data(images.fingerprint())
        net = build_net(self.config, images.train, self.config.phases[-1].method, device)
        averaged = self.weights == "average"
        load_into(net, self.run.checkpoints.load_weights(self.checkpoint, averaged), self.name)
        return Source(self.name, net)


def open_origin(text: str) -> Origin:
    """The run that ``attack_from`` names.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = Path(text).expanduser()
    if not has_file(path / "config.yaml"):
        raise ConfigError([f"attack_from={text}: no run there (config.yaml is missing)"])
    config, problems = validation.check(read_saved_config(path))
    if config is None or problems:
        raise ConfigError([f"attack_from={text}: its config.yaml: {each}" for each in problems])
    return Origin(config, Run.at(path))


def is_same(text: str | None, run: str | None) -> bool:
    """Check that a run would attack itself."""
    if text is None or run is None:
        return False
    return Path(text).expanduser().resolve() == Path(run).expanduser().resolve()


def origin_problems(text: str, attacked: Config) -> Iterator[str]:
    """Why the examples of a run cannot attack another one."""
    try:
        origin = open_origin(text)
    except ConfigError as error:
        yield from error.problems
        return
    found = first_difference(_images_of(attacked), _images_of(origin.config))
    if found is not None:
        key, here, there = found
        yield (
            f"attack_from={text}: {key} is {there!r} there and {here!r} in the attacked run; both "
            "must see the same images: give runs of one data set"
        )
        return
    for problem in weights_problems(origin.config, origin.run, [origin.checkpoint]):
        yield problem.replace("run=", "attack_from=", 1)
    for name, attack in attacked.evaluation.attacks.items():
        if isinstance(attack, Measure):
            yield (
                f"evaluation.attacks.{name}: it measures the network itself, so there is nothing "
                f"to transfer; leave it out with attack_from: ~evaluation.attacks.{name}"
            )


def _images_of(config: Config) -> dict[str, Any]:
    """What decides over the images and their classes."""
    data = config.container()["data"]
    source = {key: value for key, value in data["source"].items() if key != "download"}
    return {"data": {"name": data["name"], "source": source, "classes": data["classes"]}}


def transfer_check(
    run: Run, place: tuple[str, str], found: Evaluation, facts: Mapping[str, Any]
) -> Check:
    """Hold transferred attacks against the same ones on the network itself, where a run has them.

    Args:
        run: that was attacked, without this evaluation.
        place: name of its checkpoint; raw or average.
        found: the evaluation by the other run's examples.
        facts: parameters of every number that ``found`` does not know.
    """
    entries = [replace(entry, params={**entry.params, **facts}) for entry in found.entries]
    pairs = {entry.metric: _pair(run, place, entry, found) for entry in entries}
    return transfer({metric: probe for metric, probe in pairs.items() if probe is not None})


def _pair(run: Run, place: tuple[str, str], entry: Entry, found: Evaluation) -> Probe | None:
    if "attack_from" not in entry.params:
        return None
    column = f"{entry.metric}_robust"
    for record, examples in run.each_evaluation():
        for other in record["entries"]:
            if _is_twin(entry, other) and (other["checkpoint"], other["weights"]) == place:
                white = examples(["index", column]).dropna().set_index("index")[column]
                black = found.examples[["index", column]].dropna().set_index("index")[column]
                both = white.index.intersection(black.index)
                if len(both):
                    before, after = (
                        torch.tensor(verdict.loc[both].astype(bool).tolist())
                        for verdict in (white, black)
                    )
                    return Probe(entry.metric, before, after, float(entry.params["eps"]))
    return None


def _is_twin(entry: Entry, other: Mapping[str, Any]) -> bool:
    """Check that an entry of a record is of the same attack, on the network itself."""
    if (other["metric"], other["split"]) != (entry.metric, entry.split):
        return False
    return "attack_from" not in other["params"] and _kept(entry.params) == _kept(other["params"])


def _kept(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key not in NOT_COMPARED}
