"""The figure of the loss's rise: what it reads, bins, averages over runs, and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.loss_rise import BINS, figure, rises

PARAMS = {"measure": "loss_rise", "split": "train"}


def record(path: Path, rise, loss, name="loss_rise_train") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: rise, f"{name}_clean_loss": loss}
    pd.DataFrame({"index": range(len(rise)), **columns}).to_parquet(path)
    return path


def row(key: str, *files: Path, **more) -> Row:
    samples = tuple(
        Sample(f"seed={i}", 0.5, 100, f"{key}-s{i}", file) for i, file in enumerate(files)
    )
    cell = Cell("loss_rise_train", "correlation", samples, **{"params": PARAMS, **more})
    return Row(key, key.upper(), key, {"loss_rise_train": cell})


def comparison(*rows: Row) -> Comparison:
    return Comparison("t", "Title", ("loss_rise_train",), rows)


LOSS = np.linspace(0.1, 2.0, 40)


@pytest.fixture
def table(tmp_path) -> Comparison:
    shuffled = np.random.default_rng(0).permutation(40)
    up = record(tmp_path / "up.parquet", 3 * LOSS[shuffled], LOSS[shuffled])
    down = record(tmp_path / "down.parquet", 4 - LOSS, 3 * LOSS)
    return comparison(row("up", up), row("both", up, down), row("none"))


def test_bins_hold_equally_many_images_by_rising_clean_loss(table):
    up, _ = rises(table)
    assert (up.row, up.split, up.correlation, up.share) == ("up", "train", 1, 1)
    parts = LOSS.reshape(BINS, 4)
    np.testing.assert_allclose(up.bins[0], parts.mean(1))
    np.testing.assert_allclose(up.bins[1], 3 * parts.mean(1))
    np.testing.assert_allclose(up.bins[2:], 3 * np.quantile(parts, (0.25, 0.75), axis=1))


def test_runs_are_averaged_not_mixed(table):
    """Each has a perfect relation of its own; as one cloud of points they would have another."""
    _, both = rises(table)
    assert (both.correlation, both.share) == pytest.approx((0, 0.5))
    parts = LOSS.reshape(BINS, 4).mean(1)
    np.testing.assert_allclose(both.bins[0], 2 * parts)
    np.testing.assert_allclose(both.bins[1], (3 * parts + 4 - parts) / 2)


def test_images_without_a_number_and_other_measures_are_left_out(tmp_path):
    lost = np.where(np.arange(40) < 37, np.nan, LOSS)
    some = record(tmp_path / "some.parquet", lost, np.where(np.isnan(lost), np.nan, LOSS))
    old = tmp_path / "old.parquet"
    pd.DataFrame({"index": range(3)}).to_parquet(old)
    other = row("other", some, params={"measure": "effective_margin", "split": "train"})
    (found,) = rises(comparison(row("some", some, old), row("old", old), other))
    assert found.bins.shape == (4, 3)
    np.testing.assert_allclose(found.bins[:2], [LOSS[37:]] * 2)


def test_strict_leaves_out_tagged_numbers(tmp_path):
    file = record(tmp_path / "a.parquet", LOSS, LOSS)
    tagged = comparison(row("a", file, tags=("n=40",)))
    assert len(rises(tagged)) == 1
    assert rises(tagged, strict=True) == []


def test_the_figure_has_a_panel_per_row_with_its_numbers_in_words(table):
    drawn = figure(table, rises(table))
    assert drawn is not None
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == ["UP\ntrain r 1.00, 100%", "BOTH\ntrain r 0.00, 50%"]
    mean = next(line for line in drawn.axes[0].lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(mean.get_ydata()), 3 * LOSS.reshape(BINS, 4).mean(1))
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["training images"]
    assert figure(table, []) is None


def test_training_and_test_images_share_a_panel(tmp_path):
    train = record(tmp_path / "train.parquet", LOSS, LOSS)
    test = record(tmp_path / "test.parquet", -LOSS, LOSS, "loss_rise")
    both = row("both", train)
    cell = Cell("loss_rise", "correlation", (Sample("seed=0", -1.0, 40, "both-s0", test),),
                params={**PARAMS, "split": "test"})  # fmt: skip
    table = comparison(replace(both, cells={"loss_rise": cell, **both.cells}))
    drawn = figure(table, rises(table))
    assert drawn is not None
    (axes,) = drawn.axes
    assert axes.get_title() == "BOTH\ntrain r 1.00, 100%\ntest r \u22121.00, 0%"
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert names == ["training images", "test images"]


def test_losses_over_decades_are_on_a_logarithmic_axis(tmp_path):
    wide = record(tmp_path / "wide.parquet", LOSS, np.geomspace(1e-6, 3, 40))
    zero = record(tmp_path / "zero.parquet", LOSS, np.concatenate([np.zeros(5), LOSS[5:]]))
    table = comparison(row("wide", wide), row("zero", zero))
    drawn = figure(table, rises(table))
    assert drawn is not None
    assert [axes.get_xscale() for axes in drawn.axes] == ["log", "linear"]
