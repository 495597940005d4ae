"""Put what training recorded of each image among the results of the weights that were kept.

MWPB's Table 6 and Figures 2 to 4 are of radii that training used: of augmented images, by a network
that moved with every step. So they are of the epoch whose weights were kept, and of no later pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ablation.config.experiment import Config
from ablation.errors import InputError
from ablation.jobs.attack import changed_overrides
from ablation.jobs.setup import Images
from ablation.numerics.summaries import distribution, share_below
from ablation.output import warn
from ablation.runs.columns import OF_TRAINING
from ablation.runs.directory import Run
from ablation.runs.evaluations import TRAINING
from ablation.runs.tracking import Tracker


def add_recorded(config: Config, run: Run, images: Images, tracker: Tracker) -> None:
    """Add ``evaluations/<checkpoint>-training`` of each kept checkpoint that has records.

    What is there already stays; a record that is damaged or of another step is named on stderr and
    left out.
    """
    for name in run.checkpoints.names():
        try:
            found = run.checkpoints.load_recorded(name)
        except InputError as error:
            warn(f"warning: no mean radius of {name}: {error}")
            continue
        if found is None:
            continue
        recorded, epoch = found
        entries = _entries(config, name, recorded, epoch)
        if not run.has_evaluation(name, TRAINING):
            columns = _columns(recorded, images.split.train)
            meta = {"scale": config.scale, "deviations": changed_overrides(run)}
            run.add_recorded(name, entries, columns, config.notes, meta)
        tracker.summary({f"{name}/{entry['metric']}": entry["value"] for entry in entries})


def _entries(
    config: Config, name: str, recorded: Mapping[str, Tensor], epoch: int
) -> list[dict[str, Any]]:
    """One entry per radius; ``below_eps`` is the share of images, in [0, 1]."""
    used = "as used in training"
    entries = []
    for metric in OF_TRAINING:
        values = recorded.get(metric.removeprefix("mean_"))
        if values is None:
            continue
        found = distribution(values)
        params = {
            "images": used if config.augment == "none" else f"augmented, {used}",
            "epoch": epoch,
            "eps": config.eps,
            "below_eps": share_below(values, config.eps),
        }
        entries.append(
            {
                "checkpoint": name,
                "weights": "raw",  # those that train, whatever is averaged beside them
                "metric": metric,
                "split": "train",
                "value": found.pop("mean"),
                "unit": "radius",
                "n": len(values),
                "params": {**params, **found},
            }
        )
    return entries


def _columns(recorded: Mapping[str, Tensor], train: Tensor) -> dict[str, Any]:
    """Sort by image; ``index`` counts the train split, as in every evaluation on its images.

    Args:
        recorded: ``index`` in the full training set and values, [M].
        train: positions of the split in that set, sorted.
    """
    order = recorded["index"].argsort()
    index = torch.searchsorted(train, recorded["index"][order])
    values = {name: recorded[name][order] for name in sorted(recorded) if name != "index"}
    return {name: column.numpy() for name, column in {"index": index, **values}.items()}
