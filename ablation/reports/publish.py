"""A comparison to the terminal, to files, and to W&B."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.errors import InputError
from ablation.output import say
from ablation.runs.tracking import TrackingConfig
from ablation.sweeps.tables import Extra

if TYPE_CHECKING:
    from ablation.reports.class_ranks import Ranks
    from ablation.reports.comparison import Comparison, Row
    from ablation.reports.curves import History
    from ablation.reports.examples import Examples
    from ablation.reports.plots import Sweep
    from ablation.reports.transfer import Matrix


@dataclass(frozen=True)
class ReportConfig:
    """The keys of ``conf/report.yaml``; see there."""

    table: str | None
    claims: list[str] | str | None
    search: str | None
    row: list[str] | str | None
    runs: list[str] | str | None
    by: list[str] | str
    against: str | None
    examples: list[str] | str | None
    metric: str | None
    strict: bool
    extra: list[Extra] | Extra
    plots: bool
    out: str
    dashboard: bool
    runs_dir: str
    tables_dir: str | None
    overrides: list[str]
    tracking: TrackingConfig


def publish(comparison: Comparison, config: ReportConfig) -> None:
    """To the terminal, to files, and to W&B when asked.

    Raises:
        InputError: the folder cannot be written.
    """
    from ablation.reports import examples, statistics
    from ablation.reports import text_tables as render
    from ablation.reports.latex import latex
    from ablation.reports.transfer import csv as matrix_csv
    from ablation.reports.transfer import matrices

    pairs = statistics.contrasts(comparison, config.against) if config.against else ()
    compared = _compared(comparison, config)
    say(render.terminal(comparison, config.strict, pairs))
    transferred = matrices(comparison)
    for each in transferred:
        say(f"\n{each.text()}")
    folder = Path(config.out).expanduser() / comparison.name
    texts = {
        "table.csv": render.csv(comparison, config.strict),
        "table.md": render.markdown(comparison, config.strict, pairs),
        "table.tex": latex(comparison, config.strict, pairs),
    }
    if transferred:
        texts["transfer_matrix.csv"] = matrix_csv(transferred)
    if compared is not None:
        say(examples.told(compared))
        texts["examples.csv"] = examples.as_csv(compared)
    if _would_lose(comparison, folder / "table.csv"):
        say(f"not written: no number here, and {folder} has a table with numbers; set out=<folder>")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = {path.name for path in folder.iterdir() if path.is_file()}
        (folder / "transfer_matrix.csv").unlink(missing_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        drawn = _draw(comparison, config, folder, transferred) if config.plots else ([], [])
        images, left_out = drawn
        if config.plots and compared is not None:
            more, why = _draw_examples(comparison, compared, folder)
            images, left_out = images + more, left_out + why
    except OSError as error:
        raise InputError(
            f"out={config.out}: {folder} cannot be written ({error.strerror or error}); "
            f"set out=<another folder>"
        ) from error
    written = [*texts, *(path.name for path in images)]
    say(f"written to {folder}: {', '.join(written)}")
    if gone := sorted(name for name in earlier if not (folder / name).exists()):
        say(f"removed there, of an earlier report: {', '.join(gone)}")
    for reason in left_out:
        say(f"not drawn: {reason}")
    pictures = {path.name: path for path in images if path.suffix == ".png"}
    _mirror(comparison, config, folder, pictures)


def _would_lose(comparison: Comparison, file: Path) -> bool:
    """Tell whether a table without any number would replace one that has some."""
    if any(cell.samples for row in comparison.rows for cell in row.cells.values()):
        return False
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return any(line.get("mean") for line in csv.DictReader(lines))
    except OSError:
        return False


def _compared(comparison: Comparison, config: ReportConfig) -> Examples | None:
    """Two rows' images, if asked for."""
    from ablation.reports.examples import compare_examples

    if config.examples is None:
        return None
    given = config.examples
    names = given if isinstance(given, list) else given.split(",")
    return compare_examples(comparison, [name.strip() for name in names], config.metric)


def _draw_examples(
    comparison: Comparison, compared: Examples, folder: Path
) -> tuple[list[Path], list[str]]:
    """The images that one of two rows keeps; or why they are not drawn."""
    from ablation.reports import examples
    from ablation.reports.style import save

    figure, why = examples.figure(comparison, compared)
    if figure is None:
        for kind in ("pdf", "png"):
            (folder / f"examples.{kind}").unlink(missing_ok=True)
        return [], [f"examples: {why}"]
    return list(save(figure, folder / "examples")), []


UNDRAWN: Mapping[str, str] = {
    "measured_against_published": "no measured number has a published one of the same attack",
    "clean_against_robust": "no run has a clean accuracy and one under attack",
    "robust_over_eps": (
        "no row has one attack at two radii (ablation-evaluate run=... evaluation=emr_figure3)"
    ),
    "class_ranks": (
        "against=<row of a network trained without attacks> ranks the classes that other rows' "
        "adversarial examples fall into"
    ),
    "broken_by": (
        "no run recorded which part of AutoAttack broke an image "
        "(ablation-evaluate run=... evaluation=autoattack)"
    ),
    "loss_rise": (
        "no row has the rise of the loss (ablation-evaluate run=... evaluation=mwpb_diagnostics "
        "eps=8/255 norm=linf)"
    ),
    "transfer_matrix": (
        "no run was attacked by another's examples (ablation-evaluate run=... attack_from=...)"
    ),
    "margin_quantiles": "no run measured margins (monitor.enabled=true)",
    "effective_margins": "no run measured them over epochs (monitor.effective_margin=true)",
    "radius_histogram": "no run recorded a radius of each image in training",
}
"""Why a plot is left out, by its file's name; of runs that have not collapsed."""


def _draw(
    comparison: Comparison, config: ReportConfig, folder: Path, transferred: Sequence[Matrix]
) -> tuple[list[Path], list[str]]:
    """Write the plots that there is data for; earlier ones without go, and it is said why."""
    from ablation.reports import broken_by, class_ranks, curves, loss_rise, plots, radii, transfer
    from ablation.reports.style import save

    robust = plots.choose_robust_metric(comparison)
    collapsed = _collapsed(comparison)
    histories = _histories(comparison, collapsed)
    ranks = ranks_of(comparison, config.against) if config.against else []
    for each in ranks:
        say(each.told())
    figures = {
        "transfer_matrix": transfer.figure(comparison, transferred),
        "class_ranks": class_ranks.figure(comparison, ranks),
        "measured_against_published": plots.measured_against_published(comparison, config.strict),
        "clean_against_robust": None,
        "robust_over_eps": plots.robust_over_eps(comparison, _sweeps(comparison), config.strict),
        "broken_by": broken_by.broken_by(comparison, broken_by.shares(comparison, config.strict)),
        "loss_rise": loss_rise.figure(comparison, loss_rise.rises(comparison, config.strict)),
        "margin_quantiles": curves.margin_quantiles(comparison, histories),
        "effective_margins": curves.effective_margins(comparison, histories),
        "radius_histogram": radii.radius_histogram(
            comparison, radii.radii_of(comparison, config.strict)
        ),
    }
    if robust:
        figures["clean_against_robust"] = plots.clean_against_robust(
            comparison, robust, config.strict
        )
    written: list[Path] = []
    for name, figure in figures.items():
        for kind in ("pdf", "png"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
        if figure is not None:
            written += save(figure, folder / name)
    undrawn = [f"{name}: {UNDRAWN[name]}" for name, figure in figures.items() if figure is None]
    named = [
        f"{row.label} ({len(collapsed[row.key])})" for row in comparison.rows if collapsed[row.key]
    ]
    if named:
        undrawn.insert(0, f"runs at chance level (collapsed): {', '.join(named)}")
    return written, undrawn


def ranks_of(comparison: Comparison, against: str) -> list[Ranks]:
    """Classes ranked by the networks of a row, if those were trained without attacks."""
    from ablation.reports import class_ranks, records
    from ablation.reports.statistics import row_of
    from ablation.runs.directory import Run

    runs = [path for path in row_of(comparison.rows, against).runs if path.is_dir()]
    configs = (records.saved_config(Run.at(path)) for path in runs)
    if any(records.value_at(config, "method.crafters") for config in configs):
        return []
    return class_ranks.class_ranks(comparison, against)


def _histories(comparison: Comparison, collapsed: Mapping[str, Collection[Path]]) -> list[History]:
    """What the runs of each row wrote down after each epoch; a damaged file is named.

    Collapsed runs, by the key of their row, are counted only.
    """
    from ablation.reports.curves import History
    from ablation.reports.plots import row_titles
    from ablation.runs.directory import Run

    def metrics(path: Path) -> list[dict[str, Any]]:
        try:
            return Run.at(path).read_metrics()
        except InputError as error:
            say(f"not drawn: {error}")
            return []

    histories = []
    for title, row in zip(row_titles(comparison), comparison.rows, strict=True):
        left_out = collapsed[row.key]
        runs = tuple(metrics(path) for path in row.runs if path not in left_out)
        histories.append(History(title, runs, len(left_out)))
    return histories


def _collapsed(comparison: Comparison) -> dict[str, set[Path]]:
    """The runs at chance level, by the key of their row."""
    return {row.key: _collapsed_runs(row) for row in comparison.rows}


def _collapsed_runs(row: Row) -> set[Path]:
    from ablation.reports import records
    from ablation.runs.directory import Run

    if not any("collapsed" in cell.absent for cell in row.cells.values()):
        return set()  # most rows need not be read again
    shown = {sample.run for cell in row.cells.values() for sample in cell.samples}
    collapsed = set()
    for path in row.runs:
        numbers = records.read(path).measurements
        if numbers and path.name not in shown:
            classes = records.value_at(records.saved_config(Run.at(path)), "data.classes")
            collapsed |= {path} if records.collapsed(numbers, int(classes)) else set()
    return collapsed


def _sweeps(comparison: Comparison) -> list[Sweep]:
    """The attacks on test images, those that differ in radius only together.

    By their parameters, not by the names of columns. A step may be the same in pixels, or the same
    part of the radius.
    """
    from ablation.reports.plots import Sweep

    groups: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in comparison.rows:
        for column, cell in row.cells.items():
            params = cell.params
            if cell.unit == "percent" and "attack" in params and params["split"] == "test":
                for key in _but_for_eps(params):
                    groups.setdefault((key, params["norm"]), {})[row.key, column] = params["eps"]
    sweeps = []
    for (_, norm), eps in groups.items():
        shortest = min((column for _, column in eps), key=len)
        sweeps.append(Sweep(shortest.rpartition("_eps")[0] or shortest, norm, eps))
    return sweeps


def _but_for_eps(params: Mapping[str, Any]) -> list[str]:
    """Either is equal for attacks that differ in radius only: the step in pixels, or relative."""
    from ablation.reports.deviations import IMMATERIAL

    left_out = (*IMMATERIAL, "eps", "step_size")
    rest = {key: value for key, value in params.items() if key not in left_out}
    step, eps = params.get("step_size"), params["eps"]
    steps = [str(step)]
    if isinstance(step, float) and eps > 0:
        steps = [f"{step:.9g} pixels", f"{step / eps:.9g} eps"]
    return [json.dumps({**rest, "step_size": text}, sort_keys=True) for text in steps]


def _mirror(
    comparison: Comparison, config: ReportConfig, folder: Path, images: Mapping[str, Path]
) -> None:
    """The table and its pictures in W&B; the workspace that shows its runs."""
    from ablation.reports import text_tables as render
    from ablation.reports.dashboard import dashboard
    from ablation.runs.tracking import log_report

    table = render.frame(comparison, config.strict)
    rows = [dict(zip(table.columns, line, strict=True)) for line in table.itertuples(index=False)]
    place = log_report(
        config.tracking,
        comparison.name,
        rows,
        images,
        settings={"table": config.table, "overrides": config.overrides, "scale": comparison.scale},
        tags=[],
        directory=folder,
    )
    if place is not None:
        say(f"table in W&B: {place}")
    if config.dashboard:
        path = folder / "dashboard.json"
        url = dashboard(comparison, config.tracking, path)
        say(f"dashboard: {url or path}")
