"""Into which class adversarial examples fall, by hand and from real records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablation.reports.class_ranks import BEYOND, class_ranks, figure, position
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.publish import ranks_of


@pytest.mark.parametrize(("label", "became", "place"), [(0, 2, 2), (0, 1, 3), (0, 3, 4), (1, 0, 2)])
def test_t16_1_positions(label, became, place):
    top = [0, 2, 1, 3]  # logits (5, 3, 4, 1)
    assert position(top, label, became) == place


def test_a_class_that_is_not_kept_is_beyond():
    assert position([0, 2], 0, 7) == BEYOND


def record(path: Path, **columns: Any) -> Path:
    frame = pd.DataFrame({"index": range(len(columns["label"])), **columns})
    frame.to_parquet(path)
    return path


def row(key: str, data: str = "digits", **files: dict[str, Path]) -> Row:
    cells = {
        column: Cell(column, samples=tuple(Sample(axis, 50.0, 4, key, path) for axis, path in
                                           samples.items()))
        for column, samples in files.items()
    }  # fmt: skip
    return Row(key, key.upper(), key, cells, data=data)


@pytest.fixture
def table(tmp_path: Path) -> Comparison:
    top = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1]]
    natural = record(tmp_path / "natural", label=[0, 1, 2, 0], top_classes=top)
    broken = pd.array([1, None, 1, 2], dtype="Int16")
    attacked = record(tmp_path / "at", label=[0, 1, 2, 0], pgd20_class=broken)
    old = record(tmp_path / "old", label=[0, 1, 2, 0])
    rows = (
        row("natural", clean={"seed=0": natural}),
        row("at", pgd20={"seed=0": attacked, "seed=1": attacked}),
        row("old", pgd20={"seed=0": old}),
        row("elsewhere", data="mnist", pgd20={"seed=0": attacked}),
    )
    return Comparison("x", "X", ("clean", "pgd20"), rows)


@pytest.mark.parametrize(("crafters", "ranked"), [("{}", 1), ("{adv: {steps: 10}}", 0)])
def test_only_networks_that_were_trained_without_attacks_rank(table, tmp_path, crafters, ranked):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"method: {{name: mine, crafters: {crafters}}}\n")
    natural = replace(table.rows[0], runs=(folder, tmp_path / "never started"))
    rows = replace(table, rows=(natural, *table.rows[1:]))
    assert len(ranks_of(rows, "natural")) == ranked


def test_rows_are_ranked_by_the_runs_of_the_same_seed(table):
    (ranks,) = class_ranks(table, "natural")
    assert (ranks.label, ranks.column) == ("AT", "pgd20")
    assert ranks.counts == {2: 2, 3: 1}  # images 0 and 3; image 2, whose class 0 is likelier
    assert ranks.near == 100
    assert (
        "of 3 examples of PGD-20, 100.0% fall into the classes at positions 2 to 5" in ranks.told()
    )


def test_the_figure_has_a_bar_per_position(table):
    ranks = class_ranks(table, "natural")
    drawn = figure(table, ranks)
    assert drawn is not None
    (axes,) = drawn.axes
    assert [round(bar.get_height()) for bar in axes.containers[0]] == [67, 33]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "3"]
    assert figure(table, []) is None
