"""A W&B workspace for a table: its runs' curves and final numbers, seeds of one arm as a group.

Its JSON spec is a file beside the report; the workspace itself exists once the spec is pushed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ablation.errors import InputError
from ablation.reports.comparison import Comparison
from ablation.runs.columns import Column
from ablation.runs.files import atomic_write_text
from ablation.runs.tracking import TrackingConfig, describe, home, narrowed, project_name, warn

CURVES: Mapping[str, str] = {
    "val_robust": "Robust accuracy on validation data, %",
    "val_clean": "Clean accuracy on validation data, %",
    "loss": "Training loss",
}
"""Keys that every run logs per epoch, and their titles."""
TERMS = "loss_.*"
"""The terms of the loss, whichever a method has."""
MAX_GROUPS = 100
"""Lines per panel; W&B's own limit of 10 would hide arms."""
PANELS_IN_A_ROW = 3


def dashboard(comparison: Comparison, tracking: TrackingConfig, path: Path) -> str | None:
    """Write the spec of a table's workspace and, if online, save it to W&B.

    The spec remembers the workspace's URL, so that the next call updates it.

    Args:
        comparison: the table.
        tracking: where its runs are logged.
        path: of the spec.

    Returns:
        The URL; ``None`` if offline, or if saving failed, which is one line on stderr.

    Raises:
        InputError: the extra is not installed, or the spec cannot be written.
    """
    before = saved_url(path)
    found = workspace(comparison, tracking.entity or "", project_name(tracking))
    write(found, before, path)
    if narrowed(tracking.mode, os.environ) != "online":
        return None
    try:
        found = push(found, before, tracking)
        url = str(found.url)
    except Exception as error:  # the spec is there; a server must not fail a report
        warn(f"dashboard not saved to W&B: {describe(error)}; its spec is {path}")
        return None
    write(found, url, path)
    return url


def library() -> tuple[Any, Any]:
    """The modules of workspaces and of panels.

    Raises:
        InputError: the extra is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise InputError(
            "dashboard=true needs wandb-workspaces: pip install 'ablation[dashboard]'"
        ) from error
    return workspaces, panels


def workspace(comparison: Comparison, entity: str, project: str) -> Any:
    """The ``Workspace`` of a table.

    Args:
        comparison: the table.
        entity: user or team.
        project: of its runs.
    """
    ws, _ = library()
    logged = [column for column in comparison.columns if unit(comparison, column) != "s"]
    keys = [key for column in logged for key in summary_keys(comparison, column)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=re.sub(r"[^\w.:() -]", " ", comparison.name),  # it refuses symbols, even "+" and "="
        sections=sections(comparison),
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MAX_GROUPS),
        runset_settings=ws.RunsetSettings(
            filters=filters(comparison),
            groupby=[ws.Metric("Group")],
            pinned_columns=["run:displayName", "run:tags", *(f"summary:{key}" for key in keys)],
        ),
    )


def filters(comparison: Comparison) -> list[Any]:
    """The table's runs at its scale; not its reports, which have the same tag."""
    ws, _ = library()
    smoke = comparison.scale == "smoke"
    tag = f"table:{comparison.name.removesuffix('-smoke') if smoke else comparison.name}"
    marked = ws.Tags().isin(["smoke"]) if smoke else ws.Tags().notin(["smoke"])
    return [ws.Tags().isin([tag]), marked, ws.Metric("JobType") != "report"]


def sections(comparison: Comparison) -> list[Any]:
    """What the workspace shows, from top to bottom; a table has no empty section."""
    ws, wr = library()
    panels_of = {
        "Table": [wr.MarkdownPanel(markdown=summary(comparison))],
        "Curves": curves(),
        "Final metrics": bars(comparison, ("percent",)),
        "Clean against robust": scatters(comparison),
        "Margins": bars(comparison, ("margin", "radius")),
        "Correlations": bars(comparison, ("correlation",)),
    }
    return [
        ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout(len(panels)))
        for name, panels in panels_of.items()
        if panels
    ]


def layout(count: int) -> Any:
    """As many lines as show all panels of a section at once."""
    ws, _ = library()
    columns = min(count, PANELS_IN_A_ROW)
    return ws.SectionLayoutSettings(columns=columns, rows=-(-count // columns))


def summary(comparison: Comparison) -> str:
    """The table's title and notes, and which runs a row means."""
    smoke = ["**Smoke runs: these numbers mean nothing.**"] if comparison.scale == "smoke" else []
    lines = [f"# {comparison.title}", *smoke, *comparison.notes]
    for row in comparison.rows:
        samples = [sample for cell in row.cells.values() for sample in cell.samples]
        runs = ", ".join(dict.fromkeys(f"`{sample.run}`" for sample in samples))
        lines.append(f"* **{row.label}** {row.chosen}: {runs or 'no runs'}")
    return "\n\n".join(lines)


def curves() -> list[Any]:
    """Over epochs: mean and range of each group."""
    _, wr = library()
    spread = {"x": "epoch", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    plots = [wr.LinePlot(title=title, y=[key], **spread) for key, title in CURVES.items()]
    return [*plots, wr.LinePlot(title="Terms of the loss", metric_regex=TERMS, **spread)]


def bars(comparison: Comparison, units: Sequence[str]) -> list[Any]:
    """One panel per column in these units: mean and range of each group."""
    _, wr = library()
    return [
        wr.BarPlot(
            title=column,
            metrics=summary_keys(comparison, column),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for column in comparison.columns
        if unit(comparison, column) in units
    ]


def scatters(comparison: Comparison) -> list[Any]:
    """One panel per robust accuracy on test data, if the table has clean accuracy."""
    _, wr = library()
    if "clean" not in comparison.columns:
        return []
    return [
        wr.ScatterPlot(title=f"{y} against {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))
        for column in comparison.columns
        if column != "clean"
        and Column.parse(column).split == "test"
        and unit(comparison, column) == "percent"
        for x, y in zip(
            summary_keys(comparison, "clean"), summary_keys(comparison, column), strict=True
        )
    ]


def unit(comparison: Comparison, column: str) -> str:
    """Of a column's numbers, as its first cell has it."""
    cells = [row.cells[column] for row in comparison.rows if column in row.cells]
    measured = [cell for cell in cells if cell.samples]
    return next((cell.unit for cell in [*measured, *cells]), "percent")


def summary_keys(comparison: Comparison, column: str) -> list[str]:
    """Keys of W&B summaries with a column's number, as ``jobs.attack`` logs it, per checkpoint."""
    return [f"{checkpoint}/{column}" for checkpoint in checkpoints(comparison)]


def checkpoints(comparison: Comparison) -> list[str]:
    """The weights that the table shows, most frequent first: its Parquet files are named so."""
    counts = Counter(
        file.name.partition("-")[0]
        for row in comparison.rows
        for cell in row.cells.values()
        for file in cell.example_files
    )
    return [name for name, _ in counts.most_common()] or ["best_robust"]


def spec(found: Any) -> dict[str, Any]:
    """The workspace as W&B stores it."""
    # The library offers no public JSON; this is what its save() sends.
    view = found._to_model()
    return dict(view.model_dump(mode="json", by_alias=True, exclude_none=True))


def write(found: Any, url: str | None, path: Path) -> None:
    """The spec and the URL of its workspace, if it was ever saved."""
    content = json.dumps({"url": url, **spec(found)}, indent=2, ensure_ascii=False)
    atomic_write_text(path, f"{content}\n")


def saved_url(path: Path) -> str | None:
    """Where the workspace of an earlier spec is."""
    try:
        url = json.loads(path.read_text("utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


def push(found: Any, before: str | None, tracking: TrackingConfig) -> Any:
    """Save a workspace in place of its earlier version, or anew if that is gone."""
    ws, _ = library()
    found.entity, found.project = home(tracking)
    if before is None or urlparse(before).path != f"/{found.entity}/{found.project}":
        return found.save()
    try:
        earlier = ws.Workspace.from_url(before)
    except Exception:  # deleted, or on another server; if it is the network, save() says so
        return found.save()
    for name in ("name", "sections", "settings", "runset_settings"):
        setattr(earlier, name, getattr(found, name))
    return earlier.save()
