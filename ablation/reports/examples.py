"""Which images one row keeps and another loses, by the verdicts of the same attack.

Per repetition the four counts, McNemar's exact test (McNemar, 1947, Psychometrika 12), and the
images that one row alone keeps.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scipy.special import bdtr

from ablation.errors import InputError
from ablation.reports.comparison import Comparison, Row, Sample
from ablation.reports.deviations import mismatches
from ablation.reports.plots import choose_robust_metric
from ablation.reports.statistics import row_of
from ablation.reports.style import add_note, new_figure, paper_name
from ablation.runs.columns import recorded_metric, verdict_column
from ablation.runs.directory import Run
from ablation.text import class_name, did_you_mean, summary_table

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from ablation.data import ImageSet

LISTED = 20
"""Indices per line in the terminal; the CSV has all."""

SHOWN, ACROSS = 8, 4
"""Images of each kind in the figure, and in a line of it."""

NAME = 11
"""Characters of a class' name above an image."""

LARGEST = 500_000_000
"""Bytes of pixels of a data set that is read for a figure: CIFAR and SVHN, not Tiny ImageNet."""


@dataclass(frozen=True)
class Fate:
    """One network's verdict on an image.

    Attributes:
        label: the true class.
        robust: correct, and not broken by the attack.
        became: class that a broken or misclassified image is taken for; ``None`` if not recorded.
    """

    label: int
    robust: bool
    became: int | None


@dataclass(frozen=True)
class Pair:
    """Two networks' verdicts on the same images.

    Attributes:
        axis: which repetition, for example ``seed=0``.
        first: by index in the split.
        other: likewise.
    """

    axis: str
    first: Mapping[int, Fate]
    other: Mapping[int, Fate]

    @property
    def both(self) -> int:
        """Images that both keep."""
        return sum(fate.robust and self.other[i].robust for i, fate in self.first.items())

    @property
    def only_first(self) -> list[int]:
        """Images that the first keeps and the other loses, by index."""
        return [i for i, fate in self.first.items() if fate.robust and not self.other[i].robust]

    @property
    def only_other(self) -> list[int]:
        """Images that the other keeps and the first loses, by index."""
        return [i for i, fate in self.first.items() if not fate.robust and self.other[i].robust]


@dataclass(frozen=True)
class Examples:
    """Two rows' verdicts, repetition by repetition.

    Attributes:
        rows: both.
        column: of the attack.
        pairs: one per repetition that both have.
    """

    rows: tuple[Row, Row]
    column: str
    pairs: tuple[Pair, ...]

    @property
    def keys(self) -> tuple[str, str]:
        """Of the rows."""
        return self.rows[0].key, self.rows[1].key

    def kept_alone(self, place: int) -> Counter[int]:
        """In how many repetitions an image is kept by one row alone, the first (0) or the other."""
        return Counter(i for pair in self.pairs for i in _alone(pair, place))


def _alone(pair: Pair, place: int) -> list[int]:
    return pair.only_other if place else pair.only_first


def mcnemar(only_first: int, only_other: int) -> float:
    """Two-sided exact p value of McNemar's test: that one row alone keeps either as often.

    Args:
        only_first: images that the first alone keeps.
        only_other: images that the other alone keeps.
    """
    total = only_first + only_other
    return min(1.0, 2 * float(bdtr(min(only_first, only_other), total, 0.5))) if total else 1.0


def compare_examples(
    comparison: Comparison, names: Sequence[str], metric: str | None = None
) -> Examples:
    """Pair the verdicts of two rows of a table.

    Args:
        comparison: the table.
        names: keys or arms of both rows.
        metric: the attack's column; ``None`` means the strongest that both have.

    Raises:
        InputError: there is no such row or attack, or the two cannot be compared.
    """
    first, other = rows = (_row(comparison, names[0]), _row(comparison, names[1]))
    given = f"examples={','.join(names)}"
    if first.key == other.key:
        raise InputError(f"{given}: both are the row {first.key}; give two rows")
    if first.data != other.data:
        raise InputError(
            f"{given}: on other images: {first.key} on {first.data}, {other.key} on {other.data}"
        )
    column = _column(comparison, rows, given, metric)
    cells = [row.cells[column] for row in rows]
    ways = ((cells[1], cells[0]), (cells[0], cells[1]))
    apart = next((found for one, two in ways if (found := mismatches(one.params, two.params))), ())
    if apart:
        raise InputError(
            f"{given}: {column} is another attack on {other.key} than on {first.key}: "
            f"{', '.join(apart)}"
        )
    samples = [{sample.axis: sample for sample in cell.samples} for cell in cells]
    common = [axis for axis in samples[0] if axis in samples[1]]
    if not common:
        had = " and ".join(f"{row.key} has {', '.join(found)}" for row, found in
                           zip(rows, samples, strict=True))  # fmt: skip
        raise InputError(f"{given}: no repetition in common: {had}")
    pairs = tuple(
        _pair(given, rows, column, axis, (samples[0][axis], samples[1][axis])) for axis in common
    )
    return Examples(rows, column, pairs)


def _row(comparison: Comparison, name: str) -> Row:
    """Find a row by its key or arm.

    Raises:
        InputError: there is none, or the arm has several.
    """
    known = {name for row in comparison.rows for name in (row.key, row.arm) if name}
    if name not in known:
        keys = [row.key for row in comparison.rows]
        raise InputError(f"examples={name}: no row of the table; {did_you_mean(name, keys)}")
    return row_of(comparison.rows, name)


def _column(comparison: Comparison, rows: tuple[Row, Row], given: str, metric: str | None) -> str:
    """The attack's column, which both rows have.

    Raises:
        InputError: one has not.
    """
    attacks = [
        column
        for column in comparison.columns
        if any(_is_attack(row, column) for row in rows)
    ]  # fmt: skip
    column = metric or choose_robust_metric(replace(comparison, rows=rows))
    if column is None or column not in attacks:
        said = f"{given}: " + (f"metric={metric}: no attack on them" if metric else "give metric=")
        raise InputError(f"{said}; {did_you_mean(metric or '', attacks)}")
    for row in rows:
        cell = row.cells.get(column)
        if cell is None or not cell.samples:
            why = ", ".join(cell.absent) if cell else ""
            raise InputError(f"{given}: {row.key} has no {column} ({why or 'not evaluated'})")
    return column


def _is_attack(row: Row, column: str) -> bool:
    cell = row.cells.get(column)
    return cell is not None and cell.unit == "percent" and (
        column == "clean" or "attack" in cell.params
    )  # fmt: skip


def _pair(
    given: str, rows: tuple[Row, Row], column: str, axis: str, samples: tuple[Sample, Sample]
) -> Pair:
    """Both verdicts of a repetition.

    Raises:
        InputError: one has no line per example, or they are of other images.
    """
    found = []
    for row, sample in zip(rows, samples, strict=True):
        fates = _read(sample.examples, column) if sample.examples else None
        if fates is None:
            raise InputError(
                f"{given}: {row.key} {axis} has no verdict per image of {column} (run "
                f"{sample.run}: its Parquet file is gone or lacks it); evaluate again"
            )
        found.append(fates)
    first, other = found
    if first.keys() != other.keys():
        raise InputError(
            f"{given}: {axis} was evaluated on other images: {rows[0].key} on {len(first)}, "
            f"{rows[1].key} on {len(other)}, {len(first.keys() & other.keys())} in common; "
            "evaluate both with the same evaluation.n and evaluation.seed"
        )
    data = [_fingerprint(row, sample) for row, sample in zip(rows, samples, strict=True)]
    same = None in data or data[0] == data[1]
    if not same or any(fate.label != other[i].label for i, fate in first.items()):
        raise InputError(
            f"{given}: {axis} was evaluated on other images: the data sets of {samples[0].run} "
            f"and {samples[1].run} differ"
        )
    return Pair(axis, first, other)


def _fingerprint(row: Row, sample: Sample) -> str | None:
    """Hash of the images of a run; ``None`` if it did not keep one."""
    path = next((path for path in row.runs if path.name == sample.run), None)
    status = Run.at(path).status() if path else None
    return status.facts.get("data") if status else None


def _read(file: Path, column: str) -> dict[int, Fate] | None:
    """Verdicts by index of the images that were attacked; ``None`` without a record of them."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet  # most reports do without

    try:
        table = parquet.ParquetFile(file)
        present = set(table.schema_arrow.names)
        metric = recorded_metric(column, present, verdict_column)
        if metric is None:
            return None
        robust, became = verdict_column(metric), f"{metric}_class"
        more = [name for name in ("prediction", became) if name in present]
        lines = table.read(columns=["index", "label", robust, *more]).to_pylist()
    except (OSError, ValueError, arrow.ArrowException):
        return None
    fates = {
        line["index"]: Fate(line["label"], bool(line[robust]), _seen_as(line, robust, became))
        for line in lines
        if line[robust] is not None
    }
    return dict(sorted(fates.items()))


def _seen_as(line: Mapping[str, Any], robust: str, became: str) -> int | None:
    """The wrong class that an image is taken for, under attack or as it is."""
    if line[robust]:
        return None
    fallen = line.get(became)
    if fallen is None and line.get("prediction") != line["label"]:
        fallen = line.get("prediction")
    return None if fallen is None else int(fallen)


def told(examples: Examples) -> str:
    """Counts, p values and the first indices, as text for a terminal."""
    first, other = examples.keys
    lines = []
    for pair in examples.pairs:
        ours, theirs = len(pair.only_first), len(pair.only_other)
        neither = len(pair.first) - pair.both - ours - theirs
        counts = (str(count) for count in (pair.both, ours, theirs, neither))
        lines.append((pair.axis or "-", *counts, f"{mcnemar(ours, theirs):.2g}"))
    header = ("run", "both keep", f"only {first}", f"only {other}", "neither", "McNemar p")
    split = examples.rows[0].cells[examples.column].params.get("split", "test")
    count = len(examples.pairs[0].first)
    title = (
        f"images that {first} and {other} keep under {paper_name(examples.column)}, "
        f"of {count} {split} images"
    )
    texts = [summary_table(title, lines, header)]
    for place, key in enumerate(examples.keys):
        for pair in examples.pairs:
            texts += _listed(f"only {key} keeps ({pair.axis})", _alone(pair, place))
        if len(examples.pairs) > 1:
            kept = examples.kept_alone(place)
            always = sorted(i for i, times in kept.items() if times == len(examples.pairs))
            texts += _listed(f"only {key} keeps (all {len(examples.pairs)} runs)", always)
    return "\n".join(texts)


def _listed(title: str, indices: Sequence[int]) -> list[str]:
    if not indices:
        return [f"{title}: none"]
    rest = len(indices) - LISTED
    more = f" and {rest} more" if rest > 0 else ""
    return [f"{title}: {', '.join(map(str, indices[:LISTED]))}{more}"]


def as_csv(examples: Examples) -> str:
    """A line per repetition and image that one row alone keeps."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("column", "run", "index", "label", "kept_by", "lost_by", "taken_for"))
    for pair in examples.pairs:
        for place, key in enumerate(examples.keys):
            loser = pair.first if place else pair.other
            for i in _alone(pair, place):
                fate = loser[i]
                became = "" if fate.became is None else fate.became
                lost = examples.keys[1 - place]
                writer.writerow((examples.column, pair.axis, i, fate.label, key, lost, became))
    return text.getvalue()


def figure(comparison: Comparison, examples: Examples) -> tuple[Figure | None, str]:
    """Draw up to eight images that each row alone keeps, those of most repetitions first.

    Returns:
        The figure, and why there is none.
    """
    chosen = [_chosen(examples.kept_alone(place)) for place in (0, 1)]
    if not any(chosen):
        return None, "no image is kept by one of them alone"
    images, names, why = _images(examples)
    if images is None:
        return None, why
    return _draw(comparison, examples, chosen, images, names), ""


def _chosen(times: Counter[int]) -> list[int]:
    return sorted(times, key=lambda index: (-times[index], index))[:SHOWN]


def _images(examples: Examples) -> tuple[ImageSet | None, Sequence[str], str]:
    """The images of the split and the names of their classes, if they are at hand; or why not."""
    from ablation.config import validation
    from ablation.config.folders import read_saved_config
    from ablation.jobs.setup import load_images

    row, pair = examples.rows[0], examples.pairs[0]
    sample = next(s for s in row.cells[examples.column].samples if s.axis == pair.axis)
    path = next((path for path in row.runs if path.name == sample.run), None)
    if path is None:
        return None, (), "the run's folder is gone"
    try:
        import torch

        config = validation.load(read_saved_config(path))
        source: Any = config.data.source
        if getattr(source, "download", False):
            source = replace(source, download=False)
            config = replace(config, data=replace(config.data, source=source))
        problems, extent = source.check(config.data_root), source.extent(config.data_root)
        if problems or extent is None:
            return None, (), problems[0] if problems else f"no images in {config.data_root}"
        size = (extent.train + extent.test) * extent.channels * extent.size[0] * extent.size[1]
        if size > LARGEST:
            return None, (), f"{config.data.name} has {size / 1e9:.1f} GB of pixels to read"
        images = load_images(config, torch.device("cpu"))
    except InputError as error:
        return None, (), str(error)
    before = _fingerprint(row, sample)
    if before not in (None, images.fingerprint()):
        return None, (), f"the images in {config.data_root} are not those of {sample.run}"
    split = row.cells[examples.column].params.get("split", "test")
    return images.of(split), extent.names, ""


def _draw(
    comparison: Comparison,
    examples: Examples,
    chosen: Sequence[Sequence[int]],
    images: ImageSet,
    names: Sequence[str],
) -> Figure:
    kinds = [place for place in (0, 1) if chosen[place]]
    lines = [-(-len(chosen[place]) // ACROSS) for place in kinds]
    with new_figure(comparison, 0.35 + 0.35 * len(kinds) + 1.12 * sum(lines)) as figure:
        parts = figure.subfigures(len(kinds), 1, height_ratios=lines, squeeze=False).ravel()
        for part, place, count in zip(parts, kinds, lines, strict=True):
            winner, loser = examples.rows[place], examples.rows[1 - place]
            total = len(examples.kept_alone(place))
            title = f"only {winner.label} keeps ({total} images), {loser.label} loses"
            part.suptitle(textwrap.fill(title, 56), fontsize=8, parse_math=False)
            grid = part.subplots(count, ACROSS, squeeze=False).ravel()
            for axes in grid:
                axes.axis("off")
            for axes, index in zip(grid, chosen[place], strict=False):
                pixels = images.images[index].permute(1, 2, 0).numpy()
                axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray",
                            vmin=0, vmax=255, interpolation="nearest")  # fmt: skip
                axes.set_title(_caption(examples, place, index, names), fontsize=6.5, pad=2,
                               parse_math=False)  # fmt: skip
        add_note(figure, f"index, class, and class that {paper_name(examples.column)} led to")
    return figure


def _caption(examples: Examples, place: int, index: int, names: Sequence[str]) -> str:
    """Index, class, and what the image is taken for in the first repetition that loses it."""
    pair = next(pair for pair in examples.pairs if index in _alone(pair, place))
    fate = (pair.first if place else pair.other)[index]
    became = "" if fate.became is None else f"\nas {class_name(fate.became, names, NAME, '…')}"
    return f"{index}: {class_name(fate.label, names, NAME, '…')}{became}"
