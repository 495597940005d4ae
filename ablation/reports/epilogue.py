"""What a sweep prints when it is through: its table, or its runs side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablation.errors import InputError
from ablation.sweeps.published import load_published

if TYPE_CHECKING:
    from ablation.sweeps.planning import Planner
    from ablation.sweeps.request import Request


def after_sweep(request: Request, planner: Planner) -> str:
    """What a sweep prints when it is through: its table, or its runs side by side."""
    try:
        return _sweep_runs(request, planner) if request.name is None else _sweep_table(request)
    except InputError as error:  # the jobs are done, whatever is wrong with the report
        return f"no table: {error}"


def _sweep_runs(request: Request, planner: Planner) -> str:
    from ablation.config.overrides import key_of, parsed
    from ablation.reports import text_tables as render
    from ablation.reports.groups import compare_runs

    swept = [key_of(text) for text in request.cli if parsed(text).is_sweep_override()]
    # Evaluations of one training share its directory.
    by = [key for key in swept if key not in ("seed", "scale") and "evaluation" not in key]
    done = [job.config for job in planner.plan().jobs if job.state == "done"]
    every = [config.run_dir for config in done if config.evaluation.attacks]
    if not every:
        return "nothing to compare"
    return render.terminal(compare_runs(every, by, "this sweep"))


def _sweep_table(request: Request) -> str:
    from ablation.config.overrides import key_of
    from ablation.reports import text_tables as render
    from ablation.reports.table import compare_table

    published = None if request.source is None else load_published(request.source)
    rows = None if request.rows == list(request.table.arms) else request.rows
    cli_part = [text for text in request.cli if not key_of(text).startswith("hydra")]
    comparison = compare_table(
        str(request.name), request.table, published, request.runs_dir, cli_part, rows
    )
    how = shlex.join(["ablation-report", f"table={request.name}", *found_recipe(cli_part)])
    return f"{render.terminal(comparison)}\nCSV, Markdown, LaTeX and plots: {how}"


def found_recipe(texts: Sequence[str]) -> list[str]:
    """The overrides that a report must repeat, as a person types them."""
    from ablation.config.overrides import variant

    places = [text.lstrip("+") for text in texts if text.lstrip("+").startswith("runs_dir=")]
    return [*variant(texts, ()), *places]
