"""``robustbench.json``: the record that RobustBench keeps of a model, as far as it is known here.

Fields and their form (numbers as text, ``eps`` as ``8/255``) are those of the files in
``model_info/`` of RobustBench (Croce et al., 2021, arXiv:2010.09670); there the threat model is
the name of the folder. A number is one over the whole test set, and ``autoattack_acc`` one of
AutoAttack's standard version at the record's radius: everything else stays null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ablation.config.experiment import Config
from ablation.evaluation import AutoAttack
from ablation.runs.directory import Run
from ablation.runs.files import atomic_write_text, json_text
from ablation.text import show_fraction
from ablation.types import Norm

FILE = "robustbench.json"
THREATS: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class Facts:
    """What is known of a model beside its results.

    Attributes:
        dataset: its name.
        architecture: the model's name.
        threat: radius in pixels, and norm.
        images: of the whole test set; ``None`` if that is not known.
        passes: forward passes that one prediction takes.
        additional_data: whether other images than the data set's trained it.
    """

    dataset: str
    architecture: str
    threat: tuple[float, Norm]
    images: int | None
    passes: int | None = None
    additional_data: bool | None = None


def facts_of(config: Config) -> Facts:
    """What a run's config says, at the radius of its evaluation."""
    node, extent = config.evaluation, config.data.source.extent(config.data_root)
    eps = config.eps if node.eps is None else node.eps
    return Facts(
        dataset=config.data.name,
        architecture=config.model.name,
        threat=(eps, node.norm or config.norm),
        images=None if extent is None else extent.test,
        passes=1,
        additional_data=None if config.init_from else False,
    )


def write_record(run: Run, checkpoint: str, weights: str, facts: Facts) -> None:
    """Write the record of a set of weights into its folder, from all results there.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    entries = (run.result() or {}).get("entries", ())
    atomic_write_text(run.path / FILE, json_text(record(entries, checkpoint, weights, facts)))


def record(
    entries: Iterable[Mapping[str, Any]], checkpoint: str, weights: str, facts: Facts
) -> dict[str, Any]:
    """The record of a set of weights.

    Args:
        entries: of a run's results.
        checkpoint: name of the weights.
        weights: raw or average.
        facts: what else is known.
    """
    whole = [
        entry
        for entry in entries
        if (entry["checkpoint"], entry["weights"]) == (checkpoint, weights)
        and (entry["split"], entry["n"]) == ("test", facts.images)
        and not {"attack_from", "temperature"} & entry["params"].keys()
    ]
    clean = (entry["value"] for entry in whole if entry["metric"] == "clean")
    robust = (entry["value"] for entry in whole if _is_standard(entry["params"], facts.threat))
    eps, norm = facts.threat
    return {
        "link": None,
        "name": None,
        "authors": None,
        "venue": None,
        "additional_data": facts.additional_data,
        "number_forward_passes": facts.passes,
        "dataset": facts.dataset,
        "architecture": facts.architecture,
        "threat_model": THREATS[norm],
        "eps": show_fraction(eps).split(" = ")[0],
        "clean_acc": _shown(next(clean, None)),
        "reported": None,
        "autoattack_acc": _shown(next(robust, None)),
        "footnote": None,
        "unreliable": None,
    }


def _is_standard(params: Mapping[str, Any], threat: tuple[float, Norm]) -> bool:
    kind = (params.get("attack"), params.get("version"), params.get("norm"))
    same = math.isclose(params.get("eps", math.nan), threat[0], rel_tol=1e-9)
    return kind == (AutoAttack.kind, "standard", threat[1]) and same


def _shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
