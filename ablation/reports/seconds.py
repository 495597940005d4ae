"""Extra columns that are of the training, not of an evaluation: its seconds per step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ablation.errors import InputError
from ablation.reports.comparison import Absence, Cell, Comparison, Row, Sample
from ablation.reports.records import saved_config
from ablation.runs.directory import Run
from ablation.sweeps.tables import Extra

COLUMN: Extra = "seconds_per_step"


@dataclass(frozen=True)
class _Timing:
    """What a run's training took.

    Attributes:
        run: its name.
        seconds: per step.
        batch_size: images of a step.
        place: device (``cpu``, ``cuda``) and machine.
    """

    run: str
    seconds: float
    batch_size: int
    place: tuple[str, str]


def with_extra(comparison: Comparison, extra: Iterable[Extra]) -> Comparison:
    """Add ``seconds_per_step`` if it is asked for and not there yet.

    Args:
        comparison: the table.
        extra: names of the columns to add.
    """
    if COLUMN not in extra or COLUMN in comparison.columns:
        return comparison
    rows, timings = [], []
    problems: list[str] = []
    for row in comparison.rows:
        cell, mine = _cell(row, problems)
        rows.append(replace(row, cells={**row.cells, COLUMN: cell}))
        timings += [(row.label, timing) for timing in mine]
    return replace(
        comparison,
        columns=(*comparison.columns, COLUMN),
        rows=tuple(rows),
        notes=(*comparison.notes, *problems, *_notes(timings)),
    )


def _cell(row: Row, problems: list[str]) -> tuple[Cell, list[_Timing]]:
    """A row's cell and what it is made from; what cannot be read is named in ``problems``."""
    absent: Counter[Absence] = Counter()
    if not row.runs:  # still to be chosen, or never to be trained
        absent.update(next((cell.absent for cell in row.cells.values()), {}))
    found = []
    for path in row.runs:
        try:
            timing = _timing(path)
        except InputError as error:
            problems.append(f"left out: {error}")
            timing = "missing"
        if isinstance(timing, _Timing):
            found.append(timing)
        else:
            absent[timing] += 1
    axes = {sample.run: sample.axis for cell in row.cells.values() for sample in cell.samples}
    samples = (
        Sample(axes.get(each.run, each.run), each.seconds, each.batch_size, each.run)
        for each in found
    )
    return Cell(COLUMN, "s", tuple(samples), absent), found


def _timing(path: Path) -> _Timing | Absence:
    """Time the steps of a finished run, by the median over the epochs of its last phase.

    Of its last phase alone: a burn-in, or the first phase of MWPB, is another training. Validation
    is not in it, as ``images_per_second`` is of the steps.

    Raises:
        InputError: a file of the run is damaged.
    """
    run = Run.at(path)
    status = run.status()
    if status is None:
        return "missing"
    if status.state != "done":
        return status.state
    rows = run.read_metrics()
    speeds = [
        float(row["images_per_second"])
        for row in rows
        if row["phase"] == rows[-1]["phase"] and row["images_per_second"]
    ]
    if not speeds:
        return "missing"
    batch_size = int(saved_config(run)["batch_size"])
    device = str(status.facts.get("device", "unknown")).split(":")[0]
    seconds = median(batch_size / speed for speed in speeds)
    return _Timing(path.name, seconds, batch_size, (device, status.host))


def _notes(timings: Sequence[tuple[str, _Timing]]) -> list[str]:
    """What the column is, and a warning where its numbers do not compare."""
    if not timings:
        return []
    sizes = sorted({timing.batch_size for _, timing in timings})
    labels: dict[tuple[str, str], dict[str, None]] = {}
    for label, timing in timings:
        labels.setdefault(timing.place, {})[label] = None
    devices = " and ".join(dict.fromkeys(device for device, _ in labels))
    note = (
        f"{COLUMN}: a step is {' or '.join(map(str, sizes))} images; median over the epochs of the "
        f"last phase, without validation; on {devices}"
    )
    if len(labels) == 1:
        return [note]
    # Machines are numbered: their names say nothing to a reader.
    machines = (
        f"{', '.join(names)} on {device} of machine {number}"
        for number, ((device, _), names) in enumerate(labels.items(), 1)
    )
    warning = f"{COLUMN}: seconds compare only on one machine; {'; '.join(machines)}"
    return [note, f"warning: {warning}"]
