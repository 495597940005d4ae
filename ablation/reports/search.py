"""A search to the terminal and to files: its best trials, and which keys matter."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ablation.config.overrides import bare, key_of, layered
from ablation.errors import InputError
from ablation.output import say
from ablation.reports.style import COLOURS, new_figure, save
from ablation.sweeps.search import SearchRequest
from ablation.sweeps.spaces import override
from ablation.sweeps.trials import finished, open_study, short
from ablation.text import summary_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 10
"""Trials on the terminal."""
NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "open",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "open",
}
VALUE = "half of clean plus robust validation accuracy (%)"
NOTE = (
    "Validation accuracy of single runs: the largest of many is too high. No test image was seen."
)


def after_search(request: SearchRequest, study: optuna.Study) -> str:
    """What a search prints when it is through."""
    own = [] if request.tables_dir is None else [f"tables_dir={request.tables_dir}"]
    texts = [f"search={request.name}", *own, *map(bare, request.cli)]
    how = shlex.join(["ablation-report", *texts])
    return f"{terminal(request, study)}\nCSV, Markdown and a plot: {how}"


def publish_search(request: SearchRequest, out: str, plots: bool) -> None:
    """To the terminal, and to files in ``<out>/search_<name>``.

    Raises:
        InputError: the search has not begun, or the folder cannot be written.
    """
    if not request.journal.is_file():
        raise InputError(
            f"{request.journal}: no such study; with these settings the search has not begun "
            f"(give the overrides that it was launched with)"
        )
    study = open_study(request.journal)
    say(terminal(request, study))
    folder = Path(out).expanduser() / f"search_{request.name}"
    texts = {"trials.csv": as_csv(request, study), "trials.md": markdown(request, study)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        images = save(figure(request, study), folder / "trials") if plots else ()
    except OSError as error:
        raise InputError(
            f"out={out}: {folder} cannot be written ({error.strerror or error}); "
            f"set out=<another folder>"
        ) from error
    say(f"written to {folder}: {', '.join([*texts, *(path.name for path in images)])}")


def terminal(request: SearchRequest, study: optuna.Study) -> str:
    """The best trials, the importance of every key, and how to go on with the best."""
    trials = ranked(study)
    rows = [_row(request, trial) for trial in trials[:SHOWN]]
    lines = [request.search.title, _counts(study)]
    if rows:
        lines += [summary_table("", rows, _header(request)), "", f"value: {VALUE}. {NOTE}"]
    lines.append(_importance_line(study))
    if trials and trials[0].state == TrialState.COMPLETE:
        chosen = [override(key, value) for key, value in trials[0].params.items()]
        given = layered(request.search.set, chosen, request.cli)
        texts = [bare(text) for text in given if key_of(text) != "seed"]
        run = request.runs_dir / str(trials[0].user_attrs["run"])
        again = shlex.join(["ablation-train", "-m", "seed=1,2,3", *texts])
        lines.append(f"test the best: {shlex.join(['ablation-evaluate', f'run={run}'])}")
        lines.append(f"train it with other seeds: {again}")
    return "\n".join(lines)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, best first; those that were pruned come last."""
    return sorted(
        finished(study), key=lambda trial: (trial.state != TrialState.COMPLETE, -best(trial)[0])
    )


def best(trial: FrozenTrial) -> tuple[float, int | None]:
    """The trial's value (percent) and its epoch, from 1; 0 where it diverged."""
    if trial.state == TrialState.COMPLETE and trial.value == 0:
        return 0.0, None
    values = trial.intermediate_values
    epoch = max(values, key=lambda step: (values[step], -step))
    return values[epoch], epoch


def importances(study: optuna.Study) -> Mapping[str, float]:
    """Share of each key in the variance of complete trials (fANOVA, Hutter et al., 2014).

    Empty where there are too few trials that differ.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _importance_line(study: optuna.Study) -> str:
    shares = importances(study)
    if not shares:
        return "importance: too few complete trials"
    count = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    text = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
    return f"importance (fANOVA over {count} complete trials): {text}"


def _counts(study: optuna.Study) -> str:
    """How many trials are in each state; one that was broken off and went on counts once."""
    trials = study.get_trials(deepcopy=False)
    kept = {trial.user_attrs.get("run") for trial in trials if trial.state != TrialState.FAIL}
    states = [
        NAMES[trial.state]
        for trial in trials
        if trial.state != TrialState.FAIL or trial.user_attrs.get("run") not in kept
    ]
    counted = {name: states.count(name) for name in dict.fromkeys(NAMES.values())}
    return ", ".join(f"{n} {name}" for name, n in counted.items() if n) or "no trials"


def _header(request: SearchRequest) -> list[str]:
    return ["trial", "value", "epoch", "state", *map(short, request.search.space), "run"]


def _row(request: SearchRequest, trial: FrozenTrial) -> tuple[str, ...]:
    value, epoch = best(trial)
    shown = [override("", trial.params[key])[1:] for key in request.search.space]
    name = NAMES[trial.state] if epoch is not None else "diverged"
    place = "-" if epoch is None else str(epoch)
    return (str(trial.number), f"{value:.2f}", place, name, *shown, trial.user_attrs["run"])


def as_csv(request: SearchRequest, study: optuna.Study) -> str:
    """Every finished trial, with full keys and values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    space = request.search.space
    writer.writerow(["trial", "value", "epoch", "state", *space, "run"])
    for trial in ranked(study):
        number, _, epoch, state, *_, run = _row(request, trial)
        params = [trial.params[key] for key in space]
        writer.writerow([number, best(trial)[0], epoch, state, *params, run])
    return file.getvalue()


def markdown(request: SearchRequest, study: optuna.Study) -> str:
    """Every finished trial, and the importance of every key."""
    header = _header(request)
    lines = [f"# {request.search.title}", "", f"{_counts(study)}; value: {VALUE}. {NOTE}", ""]
    rows = [header, ["---"] * len(header), *(_row(request, each) for each in ranked(study))]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", _importance_line(study), ""])


def figure(request: SearchRequest, study: optuna.Study) -> Figure:
    """Values over trials with the best so far, and over each key; hollow ones were pruned."""
    trials = sorted(finished(study), key=lambda trial: trial.number)
    values = [best(trial)[0] for trial in trials]
    space = request.search.space
    lines = (len(space) + 2) // 2
    with new_figure(request, 1.3 * lines + 0.2) as drawn:
        grid = drawn.subplots(lines, 2, sharey=True, squeeze=False).flat
        first, *others = grid
        numbers = [trial.number for trial in trials]
        _points(first, trials, numbers, values)
        so_far = [
            max((v for v, t in zip(values[: i + 1], trials, strict=False)
                 if t.state == TrialState.COMPLETE), default=float("nan"))
            for i in range(len(values))
        ]  # fmt: skip
        first.step(numbers, so_far, where="post", color=COLOURS[1], linewidth=1.0)
        first.set_xlabel("trial")
        first.xaxis.get_major_locator().set_params(integer=True)
        for axes, (key, dimension) in zip(others, space.items(), strict=False):
            _points(
                axes, trials, [_place(dimension.choices, t.params[key]) for t in trials], values
            )
            axes.set_xlabel(short(key))
            if dimension.log:
                axes.set_xscale("log")
            if dimension.choices:
                axes.set_xticks(range(len(dimension.choices)), map(str, dimension.choices))
        for axes in others[len(space) :]:
            axes.set_axis_off()
        drawn.supylabel("validation accuracy [%]", fontsize=9)
    return drawn


def _place(choices: Sequence[Any], value: Any) -> float:
    """Where a value is on its axis."""
    return float(choices.index(value) if choices else value)


def _points(
    axes: Axes, trials: Sequence[FrozenTrial], at: Sequence[float], values: Sequence[float]
) -> None:
    """A marker per trial."""
    for pruned, colour in ((False, COLOURS[0]), (True, "white")):
        kept = [i for i, t in enumerate(trials) if (t.state == TrialState.PRUNED) == pruned]
        axes.plot(
            [at[i] for i in kept], [values[i] for i in kept], "o", markersize=3.5,
            markeredgewidth=0.8, markeredgecolor=COLOURS[0], markerfacecolor=colour, zorder=3,
        )  # fmt: skip
