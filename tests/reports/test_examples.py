"""Images that one row keeps and another loses: by hand, refused, drawn."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablation.errors import InputError
from ablation.reports import examples
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.examples import as_csv, compare_examples, figure, mcnemar, told
from ablation.reports.groups import compare_runs
from ablation.reports.style import save
from ablation.runs.directory import Run
from tests.support.configs import compose_config
from tests.support.fake_runs import fake_run

KEPT = {"a": [1, 1, 1, 0, 0, 0], "b": [1, 0, 0, 1, 0, 0]}
"""Verdicts of the first seed: one kept by both, two by a alone, one by b alone, two by neither."""


def record(path: Path, robust: list[int], label: int = 0, start: int = 0, **more: Any) -> Path:
    lines = {"index": range(start, start + len(robust)), "label": [label] * len(robust)}
    pd.DataFrame({**lines, "aa_robust": [bool(x) for x in robust], **more}).to_parquet(path)
    return path


def row(key: str, *files: Path | None, data: str = "digits", seeds=range(9), **params) -> Row:
    samples = tuple(Sample(f"seed={seed}", 50.0, 6, f"{key}{seed}", file)
                    for seed, file in zip(seeds, files, strict=False))  # fmt: skip
    said = {"attack": "auto_attack", "eps": 0.1, "split": "test", **params}
    cells = {"aa": Cell("aa", samples=samples, params=said)}
    cells["clean"] = replace(cells["aa"], column="clean", params={"split": "test"})
    return Row(key, key.upper(), f"arm_{key}", cells, data=data)


@pytest.fixture
def rows(tmp_path):
    prediction = [0, 5, 0, 0, 0, 0]
    became = pd.array([None, None, 7, None, 3, 3], dtype="Int16")
    first = record(tmp_path / "a0", KEPT["a"])
    other = record(tmp_path / "b0", KEPT["b"], prediction=prediction, aa_class=became)
    again = record(tmp_path / "a1", [0, 1, 0, 0, 0, 0]), record(tmp_path / "b1", [0] * 6)
    return row("a", first, again[0]), row("b", other, again[1])


def table(*rows: Row, **more) -> Comparison:
    return Comparison("t", "T", ("clean", "aa"), rows, **more)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (2, 1), (3, 3), (0, 8), (12, 30)])
def test_mcnemar_is_the_two_sided_binomial_test(b, c):
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar(b, c) == pytest.approx(min(1, 2 * tail))


def test_images_are_counted_by_who_keeps_them(rows):
    found = compare_examples(table(*rows), ["a", "arm_b"])
    assert found.column == "aa"
    first, again = found.pairs
    assert (first.axis, first.both, first.only_first, first.only_other) == (
        *("seed=0", 1), [1, 2], [3]
    )  # fmt: skip
    assert (again.both, again.only_first, again.only_other) == (0, [1], [])
    assert found.kept_alone(0) == {1: 2, 2: 1}
    assert found.kept_alone(1) == {3: 1}


def test_what_is_printed(rows):
    lines = told(compare_examples(table(*rows), ["a", "b"])).splitlines()
    assert lines[0] == "images that a and b keep under AutoAttack, of 6 test images"
    assert lines[3].split() == ["seed=0", "1", "2", "1", "2", "1"]
    assert lines[4].split() == ["seed=1", "0", "1", "0", "5", "1"]
    assert lines[5:] == [
        *(
            "only a keeps (seed=0): 1, 2",
            "only a keeps (seed=1): 1",
            "only a keeps (all 2 runs): 1",
        ),
        *("only b keeps (seed=0): 3", "only b keeps (seed=1): none"),
        "only b keeps (all 2 runs): none",
    ]


def test_twenty_indices_are_printed_and_all_are_in_the_csv(tmp_path):
    many, none = record(tmp_path / "a", [1] * 33), record(tmp_path / "b", [0] * 33)
    found = compare_examples(table(row("a", many), row("b", none)), ["a", "b"])
    assert told(found).splitlines()[4].endswith("18, 19 and 13 more")
    assert f"{2 / 2**33:.2g}" in told(found)
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [int(line["index"]) for line in lines] == list(range(33))


def test_the_csv_says_who_keeps_an_image_and_what_it_is_taken_for(rows):
    lines = list(csv.DictReader(io.StringIO(as_csv(compare_examples(table(*rows), ["a", "b"])))))
    short = [tuple(line[name] for name in ("run", "index", "kept_by", "lost_by", "taken_for"))
             for line in lines]  # fmt: skip
    assert short == [
        ("seed=0", "1", "a", "b", "5"),  # misclassified as it is
        ("seed=0", "2", "a", "b", "7"),  # under attack
        ("seed=0", "3", "b", "a", ""),  # not recorded
        ("seed=1", "1", "a", "b", ""),
    ]


def test_images_that_were_not_attacked_do_not_count(tmp_path):
    files = [record(tmp_path / key, KEPT[key]) for key in "ab"]
    for file in files:
        frame = pd.read_parquet(file)
        frame["aa_robust"] = pd.array([*frame["aa_robust"][:3], None, None, None], dtype="boolean")
        frame.to_parquet(file)
    (pair,) = compare_examples(table(row("a", files[0]), row("b", files[1])), ["a", "b"]).pairs
    assert (len(pair.first), pair.both, pair.only_other) == (3, 1, [])


def test_what_cannot_be_compared_is_refused(rows, tmp_path):
    a, b = rows
    fewer = row("f", record(tmp_path / "f", [1, 0]))
    moved = row("m", record(tmp_path / "m", KEPT["a"], start=2))
    labels = row("l", record(tmp_path / "l", KEPT["a"], label=4))
    plain = tmp_path / "p"
    pd.DataFrame({"index": range(6), "label": 0, "clean_correct": True}).to_parquet(plain)
    weak = row("w", record(tmp_path / "w", KEPT["a"]), eps=0.2)
    unmeasured = Row("u", "U", "u", {"aa": Cell("aa", absent={"missing": 3})}, data="digits")
    cases = [
        (["aa", "b"], None, "examples=aa: no row of the table; did you mean a?"),
        (["a", "arm_a"], None, "both are the row a; give two rows"),
        (["a", "b"], "a1", "metric=a1: no attack on them; choose from clean, aa"),
        (["a", "x"], None, "on other images: a on digits, x on mnist"),
        (["a", "w"], None, "aa is another attack on w than on a: eps 0.2, not 0.1"),
        (["a", "f"], None, "a on 6, f on 2, 2 in common; evaluate both with the same"),
        (["a", "m"], None, "a on 6, m on 6, 4 in common"),
        (["a", "l"], None, "the data sets of a0 and l0 differ"),
        (["a", "p"], None, "p seed=0 has no verdict per image of aa"),
        (["a", "g"], None, "g seed=0 has no verdict per image of aa"),
        (["a", "s"], None, "no repetition in common: a has seed=0, seed=1 and s has seed=7"),
        (["a", "u"], "aa", "u has no aa (missing)"),
    ]
    every = table(
        a, b, fewer, moved, labels, row("p", plain), row("g", None), weak, unmeasured,
        row("x", plain, data="mnist"), row("s", plain, seeds=[7]),
    )  # fmt: skip
    for names, metric, message in cases:
        with pytest.raises(InputError) as caught:
            compare_examples(every, names, metric)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_without_images_it_is_said_why(rows):
    drawn, why = figure(table(*rows), compare_examples(table(*rows), ["a", "b"]))
    assert (drawn, why) == (None, "the run's folder is gone")
    same = table(rows[0], replace(rows[0], key="c", arm="c"))
    drawn, why = figure(same, compare_examples(same, ["a", "c"]))
    assert (drawn, why) == (None, "no image is kept by one of them alone")


@pytest.fixture
def runs(tmp_path):
    """``at`` keeps 40% of 200 digits, ``trades`` 70%: 60 images that it alone keeps."""
    pattern = f"evaluation=demo evaluation.val=[] seed=0 runs_dir={tmp_path}/runs method="
    return compare_runs(
        [
            fake_run(
                compose_config(*f"{pattern}{name}".split()), {"clean": 90, "apgd_ce": value}
            ).path
            for name, value in (("at", 40), ("trades", 70))
        ],
        ["method"],
    )


def test_up_to_eight_images_are_drawn_with_what_they_are(runs, tmp_path):
    found = compare_examples(runs, ["at", "trades"])
    assert found.column == "apgd_ce"
    assert (len(found.pairs[0].only_first), len(found.pairs[0].only_other)) == (0, 60)
    drawn, why = figure(runs, found)
    assert drawn is not None, why
    shown = [axes for axes in drawn.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [f"{i}: {i % 10}" for i in range(80, 88)]
    first = [path.read_bytes() for path in save(drawn, tmp_path / "a")]
    again, _ = figure(runs, found)
    assert again is not None
    assert [path.read_bytes() for path in save(again, tmp_path / "b")] == first
    drawn.draw_without_rendering()
    texts = [axes.title for axes in shown] + [t for part in drawn.subfigs for t in part.texts]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [drawn.legends[0].get_title().get_window_extent()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert drawn.bbox.x0 <= box.x0 < box.x1 <= drawn.bbox.x1


def test_large_data_are_not_read_for_a_figure(runs, monkeypatch):
    monkeypatch.setattr(examples, "LARGEST", 10_000)
    drawn, why = figure(runs, compare_examples(runs, ["at", "trades"]))
    assert drawn is None
    assert why == "digits has 0.0 GB of pixels to read"


def test_other_images_than_the_runs_own_are_not_drawn(runs):
    path = runs.rows[0].runs[0]
    Run.at(path).note(data="0-0")
    drawn, why = figure(runs, compare_examples(runs, ["at", "trades"]))
    assert drawn is None
    assert why.endswith(f"are not those of {path.name}")
