"""One spelling of a metric on the images of a split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablation.runs.columns import Column

SPLITS = st.sampled_from(["test", "val", "train"])
RADII = ["mean_radius", "mean_radius_floor"]
PARTS = st.sampled_from(["pgd20", "clean", "aa_eps8", "margin", "test", "val", "train", *RADII])
METRICS = st.lists(PARTS, min_size=1, max_size=4).map("_".join)


@pytest.mark.parametrize(
    ("metric", "split", "name"),
    [("pgd20", "test", "pgd20"), ("pgd20", "train", "pgd20_train"), ("clean", "val", "clean_val"),
     ("margin_train", "train", "margin_train"), ("margin", "train", "margin_train"),
     ("margin_test", "test", "margin_test"), ("margin_train", "val", "margin_train_val"),
     ("margin_train", "test", "margin_train_test"),
     ("mean_radius", "train", "mean_radius"), ("mean_radius_floor", "train", "mean_radius_floor"),
     ("mean_radius", "test", "mean_radius_test"), ("mean_radius", "val", "mean_radius_val")],
)  # fmt: skip
def test_a_column_says_its_split_once_and_is_read_back(metric, split, name):
    column = Column(metric, split)
    assert column.name == name
    assert Column.parse(name) == column
    assert Column.parse(name).split == split


@given(METRICS, SPLITS)
def test_every_name_is_read_back(metric, split):
    column = Column(metric, split)
    assert Column.parse(column.name) == column
    assert Column.parse(column.name).name == column.name


def test_an_evaluation_may_call_the_metric_with_its_split_or_without():
    assert Column.parse("margin_train").metrics == ("margin_train", "margin")
    assert Column.parse("pgd20").metrics == ("pgd20",)
    assert Column.parse("mean_radius").metrics == ("mean_radius",)
    assert Column("mean_radius_train", "train").name == "mean_radius"
