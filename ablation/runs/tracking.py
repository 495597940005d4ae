"""Weights & Biases beside the local files: a mirror that may fail, never a reason to stop.

The only module that imports wandb, and only once tracking is wanted. Results are read from the run
directory, not from here: a killed process loses what wandb had not written yet.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from ablation import output

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")
Backend = Literal["wandb", "tensorboard"]
Mode = Literal["online", "offline", "disabled"]
ORDER: tuple[Mode, ...] = ("disabled", "offline", "online")

CONNECT_TIMEOUT = 5.0
"""Seconds until a server that has not answered at all counts as unreachable."""
FINISH_TIMEOUT = 10.0
"""Seconds that the end of a run may wait for an upload; the data stay on disk."""
DEFAULT_PROJECT = "ablation"
PANEL_HEIGHT = 96
"""Small images are enlarged by a whole factor to about this many pixels."""
LONGEST_ID, LONGEST_TAG = 128, 64
"""Characters of a run id, name or group, and of a tag, that the server accepts."""


@dataclass(frozen=True)
class TrackingConfig:
    """Where the curves go besides the run directory.

    WANDB_* variables are respected: ``WANDB_MODE`` may only take away (disabled before offline
    before online), ``WANDB_PROJECT`` and ``WANDB_ENTITY`` fill what is not set here.

    Attributes:
        mode: ``online`` falls back to offline without key or network; ``disabled`` does not import
            the backend.
        backend: ``tensorboard`` writes event files into the run directory, in either mode that is
            not ``disabled``; of the keys below it takes ``images`` alone.
        project: of all runs.
        entity: user or team; ``None`` means the account's default.
        tags: added to every run, beside its data, model, method, recipe, table and row.
        group: of the run; ``None`` means its table and row, or what it trains.
        name: of the run in lists; ``None`` means that of its directory.
        images: adversarial panels per log; 0 means none.
        init_timeout: seconds to wait for a server that is slow at the start; one that does not
            answer at all is given up after ``CONNECT_TIMEOUT``.
    """

    mode: Mode = "offline"
    backend: Backend = "wandb"
    project: str = DEFAULT_PROJECT
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    name: str | None = None
    images: int = 8
    init_timeout: float = 20.0

    def __post_init__(self) -> None:
        if not self.project or set(self.project) & set("/\\#?%:"):
            raise ValueError(f"project={self.project!r} must be a name without / \\ # ? % :")
        wrong = [tag for tag in self.tags if not 0 < len(tag.strip()) <= LONGEST_TAG]
        if wrong:
            raise ValueError(f"tags={wrong}: a tag has 1 to {LONGEST_TAG} characters")
        for key, text in (("group", self.group), ("name", self.name)):
            if text is not None and not 0 < len(text.strip()) <= LONGEST_ID:
                raise ValueError(f"{key}={text!r}: 1 to {LONGEST_ID} characters, or null")
        if self.images < 0:
            raise ValueError(f"images={self.images} must not be negative; 0 means none")
        if self.init_timeout <= 0:
            raise ValueError(f"init_timeout={self.init_timeout:g} must be positive, in seconds")


@dataclass(frozen=True)
class Panel:
    """One adversarial example, to be looked at.

    Attributes:
        clean: image, shape [C, H, W], in [0, 1].
        adversarial: the same shape.
        caption: for example ``7 -> 3``.
    """

    clean: Tensor
    adversarial: Tensor
    caption: str


class Tracker(Protocol):
    """Tracker of a run's metrics and figures; no method raises or blocks for long."""

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        """One point of every curve at an epoch."""

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        """How values are distributed at an epoch; those that are not finite are left out."""

    def images(self, name: str, panels: Sequence[Panel], epoch: int | None = None) -> None:
        """Adversarial examples at an epoch; ``None`` means the one logged last."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers, by name."""

    def finish(self, exit_code: int) -> None:
        """The end; 0 is success. May be called twice."""

    def upload(self) -> str | None:
        """The command that uploads what was kept offline; ``None`` if nothing was."""


def start(
    config: TrackingConfig,
    *,
    run_dir: Path,
    run_id: str,
    name: str,
    group: str,
    job_type: str,
    tags: Sequence[str],
    settings: Mapping[str, Any],
) -> Tracker:
    """Begin or continue a run's record; whatever goes wrong is one line on stderr.

    Args:
        config: mode, project and limits.
        run_dir: wandb's files go under it, unless ``WANDB_DIR`` is set.
        run_id: the same id continues the same record.
        name: shown in lists, unless ``config`` has one.
        group: the arm: seeds of one configuration; likewise.
        job_type: ``train``, ``eval`` or ``report``.
        tags: beside those of ``config``.
        settings: the resolved config, complete.
    """
    mode = narrowed(config.mode, os.environ)
    if mode == "disabled":
        return NoTracker()
    arguments = {
        "id": run_id[-LONGEST_ID:],
        "name": config.name or name[-LONGEST_ID:],
        "group": config.group or group[:LONGEST_ID],
        "job_type": job_type,
        "tags": list(dict.fromkeys([*config.tags, *(tag[:LONGEST_TAG] for tag in tags)])),
        "config": dict(settings),
        "entity": config.entity,
        "project": config.project,
    }
    if config.project == DEFAULT_PROJECT and "WANDB_PROJECT" in os.environ:
        del arguments["project"]
    if "WANDB_DIR" not in os.environ:
        arguments["dir"] = str(run_dir)
    try:
        return _start(config, mode, arguments)
    except Exception as error:  # a mirror must not stop training
        warn(f"no tracking: {describe(error)}")
        return NoTracker()


def log_report(
    config: TrackingConfig,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Path],
    settings: Mapping[str, Any],
    tags: Sequence[str],
    directory: Path,
) -> str | None:
    """Mirror a finished report as one run; whatever goes wrong is one line on stderr.

    Args:
        config: mode, project and limits.
        name: of the table; a report of the same name continues the same record.
        rows: the table in long form, a line per cell, ``key``, ``column`` and ``mean`` among its
            fields; NaN and NA count as ``None``.
        images: PNG files by name.
        settings: what the report was asked for.
        tags: beside ``table:<name>`` and those of ``config``.
        directory: wandb's files go under it, unless ``WANDB_DIR`` is set.

    Returns:
        Where it is: the run's URL, or offline the command that uploads it; ``None`` if nowhere.
    """
    tracker = start(
        config,
        run_dir=directory,
        run_id=f"report-{name}",
        name=f"report-{name}",
        group="reports",
        job_type="report",
        tags=[f"table:{name}", *tags],
        settings=settings,
    )
    if not isinstance(tracker, WandbTracker):
        return None
    place = tracker.report(rows, images)
    tracker.finish(0)
    return place


def home(config: TrackingConfig) -> tuple[str, str]:
    """Entity and project on the server, once the server has accepted the key.

    Raises:
        Exception: wandb's own; no key, no network, no server.
    """
    import wandb

    _connect(_settings(config.init_timeout))
    api = wandb.Api(timeout=math.ceil(config.init_timeout))
    entity = config.entity or os.environ.get("WANDB_ENTITY") or api.default_entity
    if not entity:
        raise ConnectionError("the account has no default entity; set tracking.entity")
    return entity, project_name(config)


def project_name(config: TrackingConfig) -> str:
    """The project, as the environment fills it in."""
    if config.project != DEFAULT_PROJECT:
        return config.project
    return os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT


def narrowed(mode: Mode, environment: Mapping[str, str]) -> Mode:
    """The mode after ``WANDB_MODE`` and ``WANDB_DISABLED``, which may only take away."""
    wanted = environment.get("WANDB_MODE", "online").lower()
    if environment.get("WANDB_DISABLED", "").lower() in ("true", "1", "t", "yes"):
        wanted = "disabled"
    wanted = {"dryrun": "offline"}.get(wanted, wanted)
    limit = ORDER.index(wanted) if wanted in ORDER else len(ORDER)
    return ORDER[min(ORDER.index(mode), limit)]


class NoTracker:
    """Tracking that is disabled."""

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        """Nothing."""

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        """Nothing."""

    def images(self, name: str, panels: Sequence[Panel], epoch: int | None = None) -> None:
        """Nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self, exit_code: int) -> None:
        """Nothing."""

    def upload(self) -> str | None:
        """Nothing."""
        return None


class WandbTracker:
    """A W&B run; after the first failure it stays silent.

    Args:
        run: the ``wandb.Run``.
        limit: images per log.
        upload: the command that uploads it, if it is offline.
    """

    def __init__(self, run: Any, limit: int, upload: str | None = None) -> None:
        self._run: Any | None = run
        self._limit = limit
        self._epoch = 0
        self._upload = upload

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        """One point of every curve; the x axis is ``epoch``, never wandb's own step."""
        self._epoch = epoch
        values = {key: value for key, value in row.items() if value is not None}
        self._try(lambda run: run.log({**values, "epoch": epoch}))

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        """One histogram per epoch; W&B shows them as a band over epochs."""
        shown = [value for value in values if math.isfinite(value)]
        if not shown:
            return

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Histogram(shown), "epoch": epoch})

        self._try(send)

    def images(self, name: str, panels: Sequence[Panel], epoch: int | None = None) -> None:
        """Clean, adversarial and difference side by side, one image per panel."""
        at, shown = self._epoch if epoch is None else epoch, panels[: self._limit]
        if not shown:
            return

        def send(run: Any) -> None:
            import wandb

            pictures = [render(panel) for panel in shown]
            found = [wandb.Image(image, caption=caption) for image, caption in pictures]
            run.log({name: found, "epoch": at})

        self._try(send)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers."""
        self._try(lambda run: run.summary.update(dict(values)))

    def report(self, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> str | None:
        """A table, the mean of each of its cells, and plots; says where they went."""

        def send(run: Any) -> str:
            import wandb

            columns, data, types = tabulated(redact(rows))
            table = wandb.Table(columns=columns, data=data, dtype=types)
            plots = {f"plots/{name}": wandb.Image(str(path)) for name, path in images.items()}
            run.log({"table": table, **plots})
            means = {f"{row['key']}/{row['column']}": tidy(row["mean"]) for row in rows}
            run.summary.update({key: mean for key, mean in means.items() if mean is not None})
            return str(run.url or sync_command(run))

        return self._try(send)

    def finish(self, exit_code: int) -> None:
        """Close the run; waits at most ``FINISH_TIMEOUT`` for an upload."""

        def end(run: Any) -> None:
            began, later = time.monotonic(), f"wandb sync {Path(run.dir).parent}"
            run.finish(exit_code=exit_code)
            if time.monotonic() - began >= FINISH_TIMEOUT:
                warn(f"tracking: the upload did not end in time; later: {later}")

        self._try(end)
        self._run = None

    def upload(self) -> str | None:
        """The command that uploads what was kept offline."""
        return self._upload

    def _try(self, action: Callable[[Any], T]) -> T | None:
        if self._run is None:
            return None
        try:
            return action(self._run)
        except Exception as error:  # a mirror must not stop training
            self._run = None
            warn(f"tracking stopped: {describe(error)}; the local files have everything")
            return None


def sync_command(run: Any) -> str:
    """The command that uploads an offline run, with the parts that earlier starts of it left."""
    folder = Path(run.dir).parent
    parts = sorted(folder.parent.glob(f"offline-run-*-{run.id}"))
    return f"wandb sync {shlex.join(map(str, parts or [folder]))}"


def render(panel: Panel) -> tuple[Image.Image, str]:
    """A panel as one RGB image and its caption.

    The difference is scaled so that its largest entry is black or white, grey meaning none; the
    caption says by how much.
    """
    from PIL import Image

    clean, adversarial = (
        image.detach().float().cpu().numpy() for image in (panel.clean, panel.adversarial)
    )
    difference = adversarial - clean
    largest = float(np.abs(difference).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    row = np.concatenate([clean, adversarial, 0.5 + factor * difference], axis=2)  # [C, H, 3W]
    row = np.repeat(row, 3, axis=0) if len(row) == 1 else row[:3]
    pixels = (row.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = max(1, PANEL_HEIGHT // image.height)
    size = (image.width * scale, image.height * scale)
    caption = f"{panel.caption} | clean, adversarial, difference x{factor:.3g}"
    return image.resize(size, Image.Resampling.NEAREST), caption


def tabulated(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Any], list[Any], list[type]]:
    """Columns, lines and a type per column, the same whichever values are missing.

    A column with text is text, one of truth values is that, any other, an empty one too, is
    numbers: missing text is ``""``, a missing number is ``None``.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [tidy(row.get(name)) for row in rows] for name in names}
    types: list[type] = []
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        types.append(str if str in kinds else bool if kinds == {bool} else float)
        if str in kinds:
            columns[name] = [None if value is None else str(value) for value in values]
    return names, [list(line) for line in zip(*columns.values(), strict=True)], types


def tidy(value: Any) -> bool | float | str | None:
    """A value as wandb's tables take it; NaN and pandas' NA are ``None``."""
    value = value.item() if isinstance(value, np.generic) else value
    # pandas' NA by its name: importing pandas takes a second.
    if value is None or type(value).__name__ == "NAType":
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def warn(text: str) -> None:
    """One line on stderr."""
    output.warn(f"warning: {text}")


def describe(error: BaseException) -> str:
    """One line about an error, without the API key."""
    return str(redact(" ".join(f"{type(error).__name__}: {error}".split())))


def redact(value: Any) -> Any:
    """Nested plain data with the API key of the environment blotted out."""
    key = os.environ.get("WANDB_API_KEY", "")
    if isinstance(value, str):
        return value.replace(key, "***") if key else value
    if isinstance(value, Mapping):
        return {name: redact(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(entry) for entry in value]
    return value


def _start(config: TrackingConfig, mode: Mode, arguments: dict[str, Any]) -> Tracker:
    import wandb

    arguments["config"] = redact(arguments["config"])
    options = _settings(config.init_timeout)
    if mode == "offline":
        run = _init(options, "offline", arguments)
        return WandbTracker(run, config.images, sync_command(run))
    began = time.time()
    try:
        return WandbTracker(_init(options, "online", arguments), config.images)
    except Exception as error:  # no key, no network, no server: all the same here
        # Without the teardown wandb says that the id is in use.
        wandb.teardown()
        run = _init(options, "offline", arguments)
        _drop_attempt(run, began)
        warn(f"tracking offline ({describe(error)}); later: {sync_command(run)}")
        return WandbTracker(run, config.images, sync_command(run))


def _drop_attempt(run: Any, began: float) -> None:
    """Remove the online folder of a start that failed: nothing was logged there."""
    for folder in Path(run.dir).parents[1].glob(f"run-*-{run.id}"):
        if folder.stat().st_mtime >= began - 1:
            shutil.rmtree(folder, ignore_errors=True)


def offline_reason(config: TrackingConfig) -> str | None:
    """Why ``online`` will be offline, asked before a sweep so that no job has to wait for it.

    Args:
        config: of the jobs.

    Returns:
        One line; ``None`` if the mode or backend is another, or the server answers and there is a
        key.
    """
    if config.backend != "wandb" or narrowed(config.mode, os.environ) != "online":
        return None
    import wandb

    try:
        _connect(_settings(config.init_timeout))
    except Exception as error:  # wandb's own as well
        return describe(error)
    finally:
        wandb.teardown()
    return None


def _init(options: Mapping[str, Any], mode: Mode, arguments: Mapping[str, Any]) -> Any:
    import wandb

    if mode == "online":
        _connect(options)
    else:
        _set_up(options)
    run = wandb.init(
        **arguments,
        mode=mode,
        resume="allow",
        reinit="finish_previous",  # the default hands a crashed job's run to the next job
        allow_val_change=True,  # another evaluation or tracking mode of the same run
        settings=wandb.Settings(**options),
    )
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


def _set_up(options: Mapping[str, Any]) -> Any:
    """Settings come first of all, or wandb talks while it starts."""
    import wandb

    return wandb.setup(settings=wandb.Settings(**options))


def _connect(options: Mapping[str, Any]) -> None:
    """Use the key that is there; without one, wandb.init would ask for it at a terminal.

    Raises:
        ConnectionError: no key, or no server.
    """
    import wandb

    url = str(_set_up(options).settings.base_url)
    # wandb.login refuses, as without a key, while a run is open: that of a job that crashed.
    wandb.finish()
    if not wandb.login(prompt=False, verify=False):
        raise ConnectionError("no API key; run wandb login")
    why = unreachable(url)
    if why is not None:  # wandb itself would try for half a minute
        raise ConnectionError(f"{url} cannot be reached: {why}")


def unreachable(url: str, timeout: float = CONNECT_TIMEOUT) -> str | None:
    """Why a server cannot be reached, by way of the proxies of the environment; ``None`` if it can.

    Whatever it answers is an answer, also an error or an unknown certificate.

    Args:
        url: of the server.
        timeout: seconds, for finding its address as well.
    """
    answer: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=timeout).close()  # noqa: S310  the user's server
        except urllib.error.HTTPError as error:
            error.close()
            answer.append(None)
        except urllib.error.URLError as error:
            answered = isinstance(error.reason, ssl.SSLError)
            answer.append(None if answered else str(error.reason))
        except (OSError, ValueError) as error:
            answer.append(str(error) or type(error).__name__)
        else:
            answer.append(None)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit
    asking.start()
    asking.join(timeout)
    return answer[0] if answer else f"no answer in {timeout:g} s"


def _settings(init_timeout: float) -> dict[str, Any]:
    """Ours, less those that the environment sets."""
    import torch

    ours = {
        "silent": True,
        "show_errors": False,
        "show_warnings": False,
        "console": "off",
        "init_timeout": init_timeout,
        "login_timeout": init_timeout,
        "finish_timeout": FINISH_TIMEOUT,
        "save_code": False,
        "x_disable_stats": not torch.cuda.is_available(),
    }
    names = {key: f"WANDB_{key.upper().replace('X_', '_', 1)}" for key in ours}
    return {key: value for key, value in ours.items() if names[key] not in os.environ}
