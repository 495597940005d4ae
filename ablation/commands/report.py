"""``ablation-report``: a table's measured numbers beside the published ones, or any runs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ablation.commands import cli
from ablation.config.compose import conf_dir, register_components
from ablation.config.parser import Parser
from ablation.errors import DONE, ConfigError, InputError
from ablation.runs.tracking import TrackingConfig
from ablation.sweeps.tables import load_published, published_path, table_path

if TYPE_CHECKING:
    from ablation.reports.comparison import Comparison
    from ablation.reports.plots import History, Sweep
    from ablation.sweeps.planning import Planner
    from ablation.sweeps.sweep import Request

OWN = (
    *("table", "row", "runs", "by", "against", "strict", "plots", "out", "dashboard", "runs_dir"),
    *("tables_dir", "recipe", "tracking", "hydra"),
)
"""Keys of ``conf/report.yaml``; every other one belongs to the runs."""
LISTS = ("row", "runs", "by")
"""Of these, the ones that may be given as ``a,b``, which Hydra would take for a sweep."""


@dataclass(frozen=True)
class ReportConfig:
    """The keys of ``conf/report.yaml``; see there."""

    table: str | None
    row: list[str] | str | None
    runs: list[str] | str | None
    by: list[str] | str
    against: str | None
    strict: bool
    plots: bool
    out: str
    dashboard: bool
    runs_dir: str
    tables_dir: str | None
    recipe: list[str]
    tracking: TrackingConfig


def parse(container: Mapping[str, Any]) -> tuple[ReportConfig | None, list[str]]:
    """The typed request and every problem in it."""
    parser = Parser()
    found = parser.parse(ReportConfig, dict(container), "")
    if not isinstance(found, ReportConfig):
        return None, parser.problems
    problems = []
    if found.table is None and found.runs is None:
        problems.append("give table=<name>, or runs=<folder>")
    if found.table is not None and found.runs is not None:
        problems.append("give either table=<name> or runs=<folder>, not both")
    if found.dashboard and found.table is None:
        problems.append("dashboard=true: only with table=; W&B finds the runs by the table's tag")
    if found.table is None and found.recipe:
        problems.append(f"{' '.join(found.recipe)}: only with table=; runs= takes runs as they are")
    return found, problems


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return parse(container)[1]


def run(container: Mapping[str, Any]) -> int:
    """Print and write a report; returns an exit code.

    Raises:
        InputError: something the user gave cannot be used.
    """
    config, problems = parse(container)
    if problems or config is None:
        raise ConfigError(problems)
    comparison = _of_runs(config) if config.table is None else _of_table(config)
    publish(comparison, config)
    return DONE


def _of_runs(config: ReportConfig) -> Comparison:
    from ablation.reports.table import compare_runs
    from ablation.runs.directory import find_runs

    paths: list[Path] = []
    for text in _listed(config.runs):
        places = [Path(found) for found in sorted(glob(str(Path(text).expanduser())))]  # noqa: PTH207 (a path may be absolute)
        if not any(place.is_dir() for place in places):
            raise InputError(f"runs={text}: no such folder")
        for place in places:
            is_run = (place / "config.yaml").is_file()
            paths += [place] if is_run else [found.path for found in find_runs(place)]
    return compare_runs(paths, _listed(config.by), f"runs in {', '.join(_listed(config.runs))}")


def _of_table(config: ReportConfig) -> Comparison:
    from ablation.reports.table import TableReport
    from ablation.sweeps.planning import choose_rows
    from ablation.sweeps.sweep import open_table, table_folders

    name, folders = str(config.table), table_folders(config.tables_dir)
    table = open_table(name, config.tables_dir)
    source = published_path(table_path(name, folders))
    rows = None if config.row is None else choose_rows(table, _listed(config.row))
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        register_components(conf_dir())
        published = load_published(source) if source else None
        place = Path(config.runs_dir).expanduser()
        return TableReport(name, table, published, place, config.recipe, rows).build()


def _listed(value: list[str] | str | None) -> list[str]:
    texts = value if isinstance(value, list) else str(value).split(",")
    return [text.strip() for text in texts]


def publish(comparison: Comparison, config: ReportConfig) -> None:
    """To the terminal, to files, and to W&B when asked.

    Raises:
        InputError: the folder cannot be written.
    """
    from ablation.reports import statistics
    from ablation.reports import text_tables as render

    pairs = statistics.contrasts(comparison, config.against) if config.against else ()
    sys.stdout.write(f"{render.terminal(comparison, config.strict, pairs)}\n")
    folder = Path(config.out).expanduser() / comparison.name
    texts = {
        "table.csv": render.csv(comparison, config.strict),
        "table.md": render.markdown(comparison, config.strict, pairs),
        "table.tex": render.latex(comparison, config.strict, pairs),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        images, left_out = _draw(comparison, config, folder) if config.plots else ([], [])
    except OSError as error:
        raise InputError(
            f"out={config.out}: {folder} cannot be written ({error.strerror or error}); "
            f"set out=<another folder>"
        ) from error
    written = [*texts, *(path.name for path in images)]
    sys.stdout.write(f"written to {folder}: {', '.join(written)}\n")
    sys.stdout.write("".join(f"not drawn: {reason}\n" for reason in left_out))
    pictures = {path.name: path for path in images if path.suffix == ".png"}
    _mirror(comparison, config, folder, pictures)


UNDRAWN: Mapping[str, str] = {
    "measured_against_published": "no measured number has a published one of the same attack",
    "clean_against_robust": "no row has a clean and a robust accuracy",
    "robust_over_eps": (
        "no row was attacked at two radii (ablation-evaluate run=... evaluation=emr_figure3)"
    ),
    "margin_quantiles": "no run measured margins (monitor.enabled=true)",
    "effective_margins": "no run measured them over epochs (monitor.effective_margin=true)",
}
"""Why a plot is left out, by its file's name."""


def _draw(
    comparison: Comparison, config: ReportConfig, folder: Path
) -> tuple[list[Path], list[str]]:
    """Write the plots that there is data for; earlier ones without go, and it is said why."""
    from ablation.reports import plots

    robust = plots.choose_robust_metric(comparison.columns)
    curves = _histories(comparison)
    figures = {
        "measured_against_published": plots.measured_against_published(comparison, config.strict),
        "clean_against_robust": None,
        "robust_over_eps": plots.robust_over_eps(comparison, _sweeps(comparison), config.strict),
        "margin_quantiles": plots.margin_quantiles(comparison, curves),
        "effective_margins": plots.effective_margins(comparison, curves),
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
            written += plots.save(figure, folder / name)
    return written, [
        f"{name}: {UNDRAWN[name]}" for name, figure in figures.items() if figure is None
    ]


def _histories(comparison: Comparison) -> list[History]:
    """What the runs of each row wrote down after each epoch.

    Raises:
        InputError: a ``metrics.jsonl`` is damaged.
    """
    from ablation.reports.plots import History, row_titles
    from ablation.runs.directory import Run

    return [
        History(
            title,
            tuple(Run(path, path.name.rpartition("-")[2]).read_metrics() for path in row.runs),
        )
        for title, row in zip(row_titles(comparison), comparison.rows, strict=True)
    ]


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
    found = []
    for (_, norm), eps in groups.items():
        shortest = min((column for _, column in eps), key=len)
        found.append(Sweep(shortest.rpartition("_eps")[0] or shortest, norm, eps))
    return found


def _but_for_eps(params: Mapping[str, Any]) -> list[str]:
    """Either is equal for attacks that differ in radius only: the step in pixels, or relative."""
    from ablation.reports.table import IMMATERIAL

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
        settings={"table": config.table, "recipe": config.recipe, "scale": comparison.scale},
        tags=[],
        directory=folder,
    )
    if place is not None:
        sys.stdout.write(f"table in W&B: {place}\n")
    if config.dashboard:
        path = folder / "dashboard.json"
        url = dashboard(comparison, config.tracking, path)
        sys.stdout.write(f"dashboard: {url or path}\n")


def after_sweep(request: Request, planner: Planner) -> str:
    """What a sweep prints when it is through: its table, or its runs side by side."""
    try:
        return _sweep_runs(request, planner) if request.name is None else _sweep_table(request)
    except InputError as error:  # the jobs are done, whatever is wrong with the report
        return f"no table: {error}"


def _sweep_runs(request: Request, planner: Planner) -> str:
    from ablation.config.compose import key_of, parsed
    from ablation.reports import text_tables as render
    from ablation.reports.table import compare_runs

    swept = [key_of(text) for text in request.cli if parsed(text).is_sweep_override()]
    # Evaluations of one training share its directory.
    by = [key for key in swept if key not in ("seed", "scale") and "evaluation" not in key]
    done = [job.config for job in planner.plan().jobs if job.state == "done"]
    every = [config.run_dir for config in done if config.evaluation.attacks]
    if not every:
        return "nothing to compare"
    return render.terminal(compare_runs(every, by, "this sweep"))


def _sweep_table(request: Request) -> str:
    from ablation.config.compose import key_of
    from ablation.reports import text_tables as render
    from ablation.reports.table import TableReport

    published = None if request.source is None else load_published(request.source)
    rows = None if request.rows == list(request.table.arms) else request.rows
    cli_part = [text for text in request.cli if not key_of(text).startswith("hydra")]
    found = TableReport(
        str(request.name), request.table, published, request.runs_dir, cli_part, rows
    ).build()
    how = shlex.join(["ablation-report", f"table={request.name}", *found_recipe(cli_part)])
    return f"{render.terminal(found)}\nCSV, Markdown, LaTeX and plots: {how}"


def found_recipe(texts: Sequence[str]) -> list[str]:
    """The overrides that a report must repeat, as a person types them."""
    from ablation.sweeps.planning import variant

    places = [text.lstrip("+") for text in texts if text.lstrip("+").startswith("runs_dir=")]
    return [*variant(texts, ()), *places]


def take_in(arguments: Sequence[str]) -> list[str]:
    """A command line with the keys that belong to the runs gathered under ``recipe``."""
    from ablation.sweeps.sweep import quoted

    own: list[str] = []
    recipe: list[str] = []
    for text in arguments:
        key = text.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0]
        foreign = "=" in text and key not in OWN and not text.startswith("-")
        if not foreign and key in LISTS and "," in text and "[" not in text:
            text = f"{key}=[{text.partition('=')[2]}]"
        (recipe if foreign or text.startswith("~") else own).append(text)
    return [*own, f"recipe={quoted(recipe)}"] if recipe else own


def main() -> None:
    """Console script."""
    sys.argv[1:] = take_in(sys.argv[1:])
    cli.run("report", run, check)


if __name__ == "__main__":
    main()
