"""What the figures over epochs hold: a panel per row, lines, bands and titles."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ablation.reports import curves, publish
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.curves import History
from ablation.reports.style import save
from ablation.runs.directory import Run


def comparison(**more):
    return Comparison("t", "Title", ("clean", "aa"), (), **more)


def texts(figure):
    """What is written on a figure, but for the axes' own."""
    return [text.get_text() for text in figure.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def epochs_of(scale=1.0, **more):
    """Three epochs as a run writes them; the second was not validated."""
    rows = []
    for epoch in (0, 1, 2):
        row: dict[str, Any] = {"epoch": epoch, "loss": 1.0}
        if epoch != 1:
            values = {"q0": -3, "q25": 1, "q50": 2, "q75": 4, "q100": 9, "train": 5, "test": 3}
            row |= {f"margin_{key}": scale * (epoch + 1) * v / 255 for key, v in values.items()}
            row |= {"margin_train_std": 0.5, "margin_test_std": 0.25}
            row |= {"margin_split": "val", "margin_norm": "linf"}
        rows.append(row | more)
    return rows


def without(rows, *names):
    return [{k: v for k, v in row.items() if not k.startswith(names)} for row in rows]


def lines(axes):
    """What is drawn over epochs, by line style."""
    found = {line.get_linestyle(): line for line in axes.lines if len(line.get_xdata()) > 1}
    return {
        style: np.column_stack([line.get_xdata(), line.get_ydata()])
        for style, line in found.items()
        if line.get_color() != "0.6"
    }


def bands(axes):
    """Low and high by epoch, of each area."""
    found = []
    for area in axes.collections:
        points = area.get_paths()[0].vertices
        at = {x: points[points[:, 0] == x, 1] for x in np.unique(points[:, 0])}
        found.append({x: (ys.min(), ys.max()) for x, ys in at.items()})
    return found


def test_quantiles_of_margins_are_averaged_over_runs_and_drawn_per_row():
    two = History("two runs", (epochs_of(1.0), epochs_of(3.0)))
    one = History("one run", (epochs_of(0.5),))
    none = History("none", (without(epochs_of(), "margin"), []))
    figure = curves.margin_quantiles(comparison(), [two, none, one])
    assert figure is not None
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["two runs", "one run"]
    np.testing.assert_allclose(lines(first)["-"], [(1, 4), (3, 12)])
    np.testing.assert_allclose(lines(second)["-"], [(1, 1), (3, 3)])
    ((low, high),) = [(band[1.0], band[3.0]) for band in bands(first)]
    np.testing.assert_allclose([low, high], [(2, 8), (6, 24)])
    assert figure.get_supylabel() == r"$L_\infty$ margin of validation images (1/255)"
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    assert first.get_ylim() == second.get_ylim()
    assert legend(figure) == ["median and middle half of the images"]


def test_quantiles_say_whose_images_and_which_norm():
    history = History("a", (epochs_of(margin_split="train", margin_norm="l2"),))
    figure = curves.margin_quantiles(comparison(), [history])
    assert figure is not None
    assert figure.get_supylabel() == "$L_2$ margin of training images (1/255)"


def test_effective_margins_have_a_line_and_a_deviation_per_split():
    history = History("a", (epochs_of(255.0), epochs_of(255.0)))
    test_only = History("b", (without(epochs_of(255.0), "margin_train"),))
    figure = curves.effective_margins(comparison(), [history, test_only])
    assert figure is not None
    both, single = (lines(axes) for axes in figure.axes)
    np.testing.assert_allclose(both["--"], [(1, 5), (3, 15)])
    np.testing.assert_allclose(both["-"], [(1, 3), (3, 9)])
    assert set(single) == {"-"}
    train, test = bands(figure.axes[0])
    np.testing.assert_allclose(train[1.0], (4.5, 5.5))
    np.testing.assert_allclose(test[3.0], (8.75, 9.25))
    assert legend(figure) == ["training images", "test images"]


def test_without_numbers_over_epochs_nothing_is_drawn():
    lost = [{"epoch": 0, "margin_q50": 0.1, "margin_q25": None, "margin_q75": None}]
    for rows in ([], without(epochs_of(), "margin"), lost):
        histories = [History("a", (rows,)), History("b", ())]
        assert curves.margin_quantiles(comparison(), histories) is None
        assert curves.effective_margins(comparison(), histories) is None
    assert curves.margin_quantiles(comparison(), []) is None


@pytest.mark.parametrize("count", [1, 20])
def test_panels_and_their_titles_do_not_overlap(count, tmp_path):
    label = "AT + EMR $x_1$ lambda 3e-4 (best clean of 36)"
    histories = [History(f"{label} {i}", (epochs_of(i + 1),)) for i in range(count)]
    figure = curves.effective_margins(comparison(scale="smoke"), histories)
    assert figure is not None
    save(figure, tmp_path / "f")
    assert len(figure.axes) == count
    assert "SMOKE" in texts(figure)
    assert {axes.get_title().replace("\n", " ") for axes in figure.axes} == {
        history.label for history in histories
    }
    boxes = [box.extents for axes in figure.axes if (box := axes.get_tightbbox())]
    for i, (left, low, right, high) in enumerate(boxes):
        for other in boxes[:i]:
            across = min(right, other[2]) - max(left, other[0])
            up = min(high, other[3]) - max(low, other[1])
            assert min(across, up) < 2
    heights = [axes.get_window_extent().height / figure.dpi for axes in figure.axes]
    assert min(heights) > 0.4


def test_a_run_of_one_epoch_is_seen():
    figure = curves.margin_quantiles(comparison(), [History("a", (epochs_of()[:1],))])
    assert figure is not None
    (line,) = [line for line in figure.axes[0].lines if line.get_color() != "0.6"]
    assert (line.get_marker(), np.asarray(line.get_xdata()).tolist()) == ("o", [1])


def limits_and_marks(figure):
    """Limits of the first panel's axis, and the epochs marked above it, by panel."""
    marks = [
        [x for line in axes.lines if line.get_marker() == "^" for x in line.get_xdata()]
        for axes in figure.axes
    ]
    return figure.axes[0].get_ylim(), marks


def training(final, epochs=50):
    rows = [epochs_of(final * (1 - 0.9**epoch))[0] for epoch in range(1, epochs + 1)]
    return [row | {"epoch": epoch} for epoch, row in enumerate(rows)]


@pytest.mark.parametrize("draw", [curves.margin_quantiles, curves.effective_margins])
def test_a_single_value_far_off_is_marked_at_the_edge(draw):
    wild = training(1.0)
    wild[0] = epochs_of(1e9)[0]
    figure = draw(comparison(), [History("calm", (training(1.0),)), History("wild", (wild,))])
    (low, high), (calm, marked) = limits_and_marks(figure)
    assert calm == []
    assert set(marked) == {1}
    assert -10 < low <= 0
    assert high < 30
    assert figure.axes[0].get_yscale() == "linear"
    usual = draw(comparison(), [History("calm", (training(1.0),))])
    assert limits_and_marks(usual)[1] == [[]]


def test_margins_that_span_decades_are_on_a_logarithmic_axis():
    histories = [History(str(k), (training(s),)) for k, s in enumerate([1, 1.5, 2, -1e8])]
    figure = curves.margin_quantiles(comparison(), histories)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_yscale() == "symlog"
    low, high = axes.get_ylim()
    assert low < -1e8
    assert high > 4
    figure.draw_without_rendering()
    boxes = [tick.label1.get_window_extent() for tick in axes.yaxis.get_major_ticks()]
    assert len(boxes) > 2
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert all(top <= bottom for (_, top), (bottom, _) in pairwise(heights))


def test_no_power_of_ten_stands_over_a_title():
    figure = curves.margin_quantiles(comparison(), [History("a", (training(1e9),))])
    assert figure is not None
    figure.draw_without_rendering()
    assert figure.axes[0].yaxis.get_offset_text().get_text() == ""


def test_equal_margins_have_room_around_them():
    flat = [epochs_of(0.0)[0] | {"epoch": epoch} for epoch in range(5)]
    figure = curves.margin_quantiles(comparison(), [History("a", (flat,))])
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert low < 0 < high


@pytest.mark.parametrize("draw", [curves.margin_quantiles, curves.effective_margins])
def test_collapsed_runs_are_named_below_the_panels(draw):
    histories = [
        History("AT", (epochs_of(),)),
        History("$ST wd 0.1", (), 2),
        History("EMR", (epochs_of(),), 1),
    ]
    figure = draw(comparison(), histories)
    assert [axes.get_title() for axes in figure.axes] == ["AT", "EMR"]
    figure.draw_without_rendering()
    note = figure.legends[-1].get_title()
    assert note.get_text().replace("\n", " ") == (
        "left out, accuracy at chance level: $ST wd 0.1 (2 of 2 runs), EMR (1 of 2 runs)"
    )
    box = note.get_window_extent()
    assert box.x0 > -1
    assert box.x1 < figure.bbox.width + 1
    assert box.y0 > -1
    panels = [axes.get_tightbbox() for axes in figure.axes]
    assert all(box.y1 <= panel.y0 + 1 for panel in panels)
    assert draw(comparison(), histories[1:2]) is None


def test_the_collapsed_runs_of_a_row_are_counted_and_not_read(tmp_path):
    runs = [tmp_path / name for name in ("good", "bad")]
    for path, clean in zip(runs, (90.0, 11.35), strict=True):
        run = Run.at(path)
        run.evaluations.mkdir(parents=True)
        run.config_path.write_text("data: {classes: 10}\n")
        run.log({"epoch": 0, "margin_q50": clean})
        entry = {"metric": "clean", "split": "test", "checkpoint": "last", "weights": "raw",
                 "value": clean, "unit": "percent", "n": 10_000, "params": {}}  # fmt: skip
        record = {"eval_id": "e", "flags": [], "entries": [entry]}
        (run.evaluations / "e.json").write_text(json.dumps(record))
    cell = Cell("clean", samples=(Sample("seed=0", 90.0, 10_000, "good"),), absent={"collapsed": 1})
    row = Row("a", "A", "a", {"clean": cell}, runs=tuple(runs))
    shown = replace(comparison(), rows=(row,))
    (history,) = publish._histories(shown, publish._collapsed(shown))
    assert (history.label, history.collapsed) == ("A", 1)
    assert [line["margin_q50"] for run in history.runs for line in run] == [90.0]
    whole = replace(row, cells={"clean": replace(cell, absent={})})
    shown = replace(comparison(), rows=(whole,))
    (history,) = publish._histories(shown, publish._collapsed(shown))
    assert (history.collapsed, len(history.runs)) == (0, 2)
