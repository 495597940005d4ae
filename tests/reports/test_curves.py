"""What the figures over epochs hold: a panel per row, lines, bands and titles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ablation.reports import curves
from ablation.reports.comparison import Comparison
from ablation.reports.curves import History
from ablation.reports.style import save


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
