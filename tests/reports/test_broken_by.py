"""Which part of AutoAttack broke what: by hand, and what the bars show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablation.reports.broken_by import CLEAN, MOST, ROBUST, broken_by, shares
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.style import save

FATES = ["clean", "apgd_ce", "apgd_ce", "square", None, None, None, None]


def record(path: Path, fates: list[str | None], metric: str = "aa") -> Path:
    robust = [fate is None for fate in fates]
    by = pd.array(fates, dtype="string")
    lines = {f"{metric}_robust": robust, f"{metric}_broken_by": by}
    pd.DataFrame({"index": range(len(fates)), **lines}).to_parquet(path)
    return path


def row(label: str, *files: Path, columns: tuple[str, ...] = ("aa",), **more) -> Row:
    samples = tuple(Sample(f"seed={i}", 50.0, 8, "r", file) for i, file in enumerate(files))
    return Row(label, label, label, {name: Cell(name, "percent", samples, **more)
                                     for name in columns})  # fmt: skip


def table(*rows: Row, columns: tuple[str, ...] = ("aa",), **more) -> Comparison:
    return Comparison("t", "T", columns, rows, **more)


def test_every_image_is_in_one_part(tmp_path):
    (found,) = shares(table(row("AT", record(tmp_path / "a", FATES))))
    assert found.parts == {ROBUST: 50.0, "square": 12.5, "apgd_ce": 25.0, CLEAN: 12.5}
    assert list(found.parts) == [ROBUST, "square", "apgd_ce", CLEAN]


def test_images_that_were_not_attacked_do_not_count(tmp_path):
    file = record(tmp_path / "a", FATES)
    frame = pd.read_parquet(file)
    frame["aa_robust"] = pd.array([*frame["aa_robust"][:5], None, None, None], dtype="boolean")
    frame.to_parquet(file)
    (found,) = shares(table(row("AT", file)))
    assert found.parts == {ROBUST: 20.0, "square": 20.0, "apgd_ce": 40.0, CLEAN: 20.0}


def test_an_image_that_no_part_broke_and_that_is_not_robust_was_misclassified(tmp_path):
    file = record(tmp_path / "a", FATES)
    frame = pd.read_parquet(file)
    frame["aa_broken_by"] = frame["aa_broken_by"].replace({"clean": None})
    frame.to_parquet(file)
    (found,) = shares(table(row("AT", file)))
    assert found.parts[CLEAN] == 12.5


def test_runs_are_averaged(tmp_path):
    one, other = record(tmp_path / "a", FATES), record(tmp_path / "b", [None, "fab_t"])
    (found,) = shares(table(row("AT", one, other)))
    assert found.parts == {
        ROBUST: 50.0, "square": 6.25, "fab_t": 25.0, "apgd_ce": 12.5, CLEAN: 6.25
    }  # fmt: skip
    assert found.runs == 2


def test_what_has_no_record_of_parts_is_left_out(tmp_path):
    plain = tmp_path / "plain"
    pd.DataFrame({"index": [0], "aa_robust": [True]}).to_parquet(plain)
    old, gone = row("old", plain), row("gone")
    tagged = row("tagged", record(tmp_path / "a", FATES), tags=("n=8",))
    assert shares(table(old, gone)) == []
    assert broken_by(table(old, gone), []) is None
    assert [each.tagged for each in shares(table(tagged))] == [True]
    assert shares(table(tagged), strict=True) == []


def test_bars_are_as_wide_as_the_shares_and_end_at_100(tmp_path):
    comparison = table(row("AT", record(tmp_path / "a", FATES)))
    figure = broken_by(comparison, shares(comparison))
    assert figure is not None
    (axes,) = figure.axes
    bars = [(bar.get_x(), bar.get_width()) for bars in axes.containers for bar in bars]
    assert bars == [(0, 50), (50, 12.5), (62.5, 25), (87.5, 12.5)]
    assert [text.get_text() for text in axes.texts] == ["50.0", "12.5", "25.0", "12.5"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["robust", "Square", "APGD-CE", "misclassified"]


def test_parts_are_told_apart_in_grey(tmp_path):
    every = ["clean", "apgd_ce", "apgd_t", "fab_t", "square", None]
    comparison = table(row("AT", record(tmp_path / "a", every)))
    figure = broken_by(comparison, shares(comparison))
    assert figure is not None
    colours = [bars[0].get_facecolor()[:3] for bars in figure.axes[0].containers]
    grey = np.array(colours) @ (0.2126, 0.7152, 0.0722)
    assert np.diff(grey).min() > 0.05


def test_a_collapsed_row_is_named_and_has_no_bar(tmp_path):
    comparison = table(
        row("AT", record(tmp_path / "a", FATES)), row("Elsayed", absent={"collapsed": 2})
    )
    figure = broken_by(comparison, shares(comparison))
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["AT"]
    assert figure.legends[1].get_title().get_text() == "at chance level, left out: Elsayed"


def test_attacks_without_room_are_named(tmp_path):
    columns = ("aa", "aa_eps2")
    files = {name: record(tmp_path / name, FATES, name) for name in columns}
    cells = {name: Cell(name, samples=(Sample("seed=0", 50.0, 8, "r", file),))
             for name, file in files.items()}  # fmt: skip
    rows = [Row(f"M{i}", f"M{i}", "a", cells) for i in range(MOST)]
    for count, panels in ((MOST // 2, 2), (MOST // 2 + 1, 1)):
        comparison = table(*rows[:count], columns=columns)
        figure = broken_by(comparison, shares(comparison))
        assert figure is not None
        assert len(figure.axes) == panels
        notes = [each.get_title().get_text() for each in figure.legends[1:]]
        assert notes == ([] if panels == 2 else ["not drawn: aa_eps2"])


@pytest.mark.parametrize("count", [1, 6, 20])
@pytest.mark.parametrize("label", ["R", "AT + MAIL $x_1$ 50% (best of 36 grid points)"])
def test_labels_and_numbers_do_not_overlap(count, label, tmp_path):
    file = record(tmp_path / "a", FATES)
    comparison = table(*(row(f"{label} {i}", file, tags=("n=8",)) for i in range(count)),
                       scale="smoke")  # fmt: skip
    figure = broken_by(comparison, shares(comparison))
    assert figure is not None
    first = [path.read_bytes() for path in save(figure, tmp_path / "f")]
    again = broken_by(comparison, shares(comparison))
    assert again is not None
    assert [path.read_bytes() for path in save(again, tmp_path / "g")] == first
    figure.draw_without_rendering()  # at the figure's own resolution again
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_yticklabels()]]
    boxes += [text.get_window_extent() for text in figure.legends[0].get_texts()]
    boxes += [figure.legends[1].get_title().get_window_extent(), axes.title.get_window_extent()]
    for i, box in enumerate(boxes):
        assert box.x0 > -2
        assert box.x1 < figure.bbox.width + 2
        assert not any(box.padded(-2).overlaps(other.padded(-2)) for other in boxes[:i])
