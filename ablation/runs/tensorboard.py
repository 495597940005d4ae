"""TensorBoard beside the local files: event files in the run directory, which may fail as W&B may.

The only module that imports TensorBoard, and only once it is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ablation.runs.tracking import (
    NoTracker,
    Panel,
    Tracker,
    TrackingConfig,
    describe,
    redact,
    render,
    warn,
)

FOLDER = "tensorboard"
"""Of the event files, in a run directory."""


def missing_extra(config: TrackingConfig) -> list[str]:
    """Say what to install before a run can be tracked: one line, or none."""
    wanted = config.backend == "tensorboard" and config.mode != "disabled"
    if not wanted or find_spec("tensorboard") is not None:
        return []
    return [
        "tracking.backend=tensorboard is not installed: pip install 'ablation[tensorboard]', or "
        "set tracking.mode=disabled"
    ]


def start(
    config: TrackingConfig, run_dir: Path, epoch: int, settings: Mapping[str, Any]
) -> Tracker:
    """Begin or continue a run's event files; whatever goes wrong is one line on stderr.

    Args:
        config: ``mode=disabled`` writes nothing, the other modes are one; ``images`` is a limit.
        run_dir: event files lie in its folder ``tensorboard``.
        epoch: the last one that was logged before; 0 at the start.
        settings: the resolved config, complete.
    """
    if config.mode == "disabled":
        return NoTracker()
    return TensorBoardTracker(run_dir / FOLDER, config.images, epoch, settings)


class TensorBoardTracker:
    """Event files of a run; after the first failure it stays silent.

    A run that is resumed logs its last epochs again: TensorBoard drops what an earlier process had
    logged from the first of them on.

    Args:
        folder: of the event files.
        limit: images per log.
        epoch: step of what is logged before the first epoch.
        settings: shown as text.
    """

    def __init__(self, folder: Path, limit: int, epoch: int, settings: Mapping[str, Any]) -> None:
        self._folder, self._limit, self._epoch = folder, limit, epoch
        self._config = yaml.safe_dump(redact(settings), sort_keys=False)
        self._writer: Any | None = None
        self._silent = False

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        """One point of every curve, at the step ``epoch``."""
        self._epoch = epoch

        def write(writer: Any) -> None:
            for key, value in row.items():
                if key != "epoch" and value is not None:
                    writer.add_scalar(key, value, epoch)

        self._try(write, purge=epoch)

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        """One histogram per epoch."""
        shown = np.array([value for value in values if math.isfinite(value)])
        if len(shown):
            self._try(lambda writer: writer.add_histogram(name, shown, epoch))

    def images(self, name: str, panels: Sequence[Panel], epoch: int | None = None) -> None:
        """Clean, adversarial and difference side by side, one image per panel."""
        at, shown = self._epoch if epoch is None else epoch, panels[: self._limit]

        def write(writer: Any) -> None:
            for number, panel in enumerate(shown):
                image, caption = render(panel)
                writer.add_image(f"{name}/{number}", np.asarray(image), at, dataformats="HWC")
                writer.add_text(f"{name}/{number}", caption, at)

        if shown:
            self._try(write)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers, as ``results/<name>``."""

        def write(writer: Any) -> None:
            for key, value in values.items():
                is_number = isinstance(value, (int, float))
                add = writer.add_scalar if is_number else writer.add_text
                add(f"results/{key}", value if is_number else str(value), self._epoch)

        self._try(write)

    def finish(self, exit_code: int) -> None:
        """Close the files."""
        del exit_code
        if self._writer is not None:
            self._try(lambda writer: writer.close())
        self._silent = True

    def upload(self) -> str | None:
        """Nothing: the files are all there is."""
        return None

    def _try(self, action: Callable[[Any], object], purge: int | None = None) -> None:
        if self._silent:
            return
        try:
            if self._writer is None:
                self._writer = self._open(purge)
            action(self._writer)
            self._writer.flush()
        except Exception as error:  # a mirror must not stop training
            self._silent = True
            warn(f"tracking stopped: {describe(error)}; the local files have everything")

    def _open(self, purge: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._folder), purge_step=purge)
        writer.add_text("config", f"```yaml\n{self._config}```", self._epoch)
        return writer
