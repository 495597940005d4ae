"""Table files and published numbers: what they say, and what is wrong with them."""

from __future__ import annotations

import pytest

from ablation.config.folders import sweeps_dir
from ablation.errors import ConfigError, InputError
from ablation.sweeps.published import check_published, load_published, published_path
from ablation.sweeps.request import open_table
from ablation.sweeps.tables import load_table, table_names, table_path
from tests.support.golden import recorded

OURS = table_names([sweeps_dir()])
CSVS = sorted((sweeps_dir() / "published").glob("*.csv"))

TABLE = """
title: Mine
arms:
  at: {label: PGD-AT, set: [method=at, "lr=0.1,0.01"]}
  more: {set: [epochs=9], from: {arm: at, top: 2, by: {metric: pgd20, split: val}}}
rows:
  - {csv: at__best, arm: at, select: {metric: pgd20, split: val}}
  - {arm: more}
axes: {seed: [0, 1]}
"""


@pytest.fixture
def write(tmp_path):
    def save(text, csv=None):
        (tmp_path / "mine.yaml").write_text(text)
        if csv is not None:
            (tmp_path / "published").mkdir(exist_ok=True)
            (tmp_path / "published" / "mine.csv").write_text(csv)
        return tmp_path

    return save


def problems_of(folder):
    with pytest.raises(ConfigError) as caught:
        load_table(folder / "mine.yaml")
    return "\n".join(caught.value.problems)


def test_a_table_file_becomes_typed_values(write):
    table = load_table(write(TABLE) / "mine.yaml")
    assert table.arms["more"].source is not None
    assert (table.arms["more"].source.arm, table.arms["more"].source.top) == ("at", 2)
    assert [row.key for row in table.lines()] == ["at__best", "more"]
    assert table.arms["at"].set[1] == "lr=0.1,0.01"


def test_extra_columns_are_those_that_there_are(write):
    assert load_table(write(f"{TABLE}extra: [seconds_per_step]") / "mine.yaml").extra == [
        "seconds_per_step"
    ]
    assert "seconds_per_step" in problems_of(write(f"{TABLE}extra: [seconds]"))


def test_without_rows_every_arm_is_one():
    table = load_table(sweeps_dir() / "demo.yaml")
    assert [row.key for row in table.lines()] == list(table.arms)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arm: at, top: 2", "arm: att, top: 2", "arms.more.from.arm=att: no other arm; did you"),
        ("arm: at, top: 2", "arm: more, top: 2", "arms.more.from.arm=more: no other arm"),
        ("top: 2", "top: 0", "top=0: at least 1"),
        ("split: val}}", "split: test}}", "split='test'"),
        ("- {arm: more}", "- {arm: moree}", "rows: moree names arm=moree; did you mean more?"),
        ("- {arm: more}", "- {arm: more}\n  - {arm: more}", "rows: more is there twice"),
        ("seed: [0, 1]", "seed: []", "axes.seed: empty; give at least one value"),
        ("title: Mine", "titel: Mine", "titel='Mine': unknown key; did you mean title?"),
        ("label: PGD-AT", "labl: PGD-AT", "arms.at.labl"),
        ("arms:", "arms: [", "mine.yaml"),
        ("title: Mine", "title: Mine\ntitle: Again", "found duplicate key title"),
        ("title: Mine", 'title: "Mine\\e[31m"', "title='Mine\\x1b[31m': it is printed in tables"),
        ("label: PGD-AT", 'label: "a\\n| b"', "arms.at.label='a\\n| b': it is printed in tables"),
    ],
)
def test_mistakes_are_named(write, old, new, message):
    assert message in problems_of(write(TABLE.replace(old, new, 1)))


def test_a_table_that_is_not_there_lists_those_that_are():
    with pytest.raises(InputError, match="table=dem: did you mean demo"):
        table_path("dem", [sweeps_dir()])


CSV = """paper,table,row,arm,dataset,model,metric,value,ci,unit,note
x,1,1,at__best,cifar10,vgg16,aa,48.10,0.2,percent,
x,1,2,more,cifar10,vgg16,aa,50,,percent,odd
"""


def test_published_numbers_keep_their_print(write):
    table = load_published(write(TABLE, CSV) / "published" / "mine.csv")
    assert table.columns == ("aa",)
    assert table.cells["at__best"]["aa"].printed == "48.10"
    assert table.cells["at__best"]["aa"].ci == "0.2"
    assert table.cells["more"]["aa"].note == "odd"
    assert table.models["more"] == "vgg16_bn"


def test_file_and_csv_must_name_the_same_rows(write):
    folder = write(TABLE, CSV.replace("more", "moree"))
    table = load_table(folder / "mine.yaml")
    found = "\n".join(check_published(table, load_published(published_path_of(folder)), "mine.csv"))
    assert "rows: more is not in mine.csv; did you mean moree?" in found
    assert "mine.csv has moree, the table file has no such row" in found
    with pytest.raises(ConfigError, match=r"mine\.yaml: rows: more is not in mine\.csv"):
        open_table("mine", folder)


def published_path_of(folder):
    path = published_path(folder / "mine.yaml")
    assert path is not None
    return path


def test_an_unavailable_row_must_be_published_and_not_printed(write):
    text = TABLE + "unavailable: {more: why, ghost: why}\n"
    folder = write(text, CSV)
    found = check_published(
        load_table(folder / "mine.yaml"), load_published(published_path_of(folder)), "mine.csv"
    )
    assert found == [
        "unavailable.ghost: not in mine.csv",
        "unavailable.more: it is among the rows",
    ]


def test_a_broken_csv_is_named(write):
    folder = write(TABLE, CSV.replace("48.10", "28.7a"))
    with pytest.raises(InputError, match=r"mine\.csv, line 2: value='28.7a' is no number"):
        load_published(folder / "published" / "mine.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric,value", "metrics,value", r"mine\.csv: the columns metric are missing"),
        (",unit,note", "", r"the columns unit, note are missing"),
        (",48.10,0.2,percent,", ",48.10", r"line 2: not as many cells as columns"),
        (",48.10,", ",nan,", r"line 2: value='nan' is no number"),
        (",48.10,0.2,percent,", ',48.10,0.2,percent,"a\nb"', r"note='a\\nb' has control"),
    ],
)
def test_a_csv_names_what_it_lacks(write, old, new, message):
    with pytest.raises(InputError, match=message):
        load_published(write(TABLE, CSV.replace(old, new)) / "published" / "mine.csv")


def test_a_row_that_no_paper_has_needs_no_line(write):
    text = TABLE.replace("rows:", "rows:\n  - {arm: at, select: {metric: clean}, label: ours}")
    assert open_table("mine", write(text, CSV)).lines()[0].arm == "at"


@pytest.mark.parametrize("path", CSVS, ids=lambda path: path.stem)
def test_every_published_csv_is_read_completely(path):
    table = load_published(path)
    lines = len(path.read_text().splitlines()) - 1
    # Quoted notes hold no line breaks, so lines are numbers.
    assert sum(map(len, table.cells.values())) == lines


def test_arms_that_a_csv_has_twice_are_told_apart_by_model():
    table = load_published(sweeps_dir() / "published" / "emr_table4.csv")
    assert all("@" in key for key in table.cells)
    assert len(table.cells) == 4


@pytest.mark.parametrize("name", OURS)
def test_our_tables_agree_with_their_csv(name):
    open_table(name)


@pytest.mark.parametrize("path", CSVS, ids=lambda path: path.stem)
def test_every_published_row_is_one_row_here(path):
    table = load_table(table_path(path.stem, [sweeps_dir()]))
    keys = [row.key for row in table.lines()]
    assert not table.unavailable
    assert {key: keys.count(key) for key in load_published(path).cells} == dict.fromkeys(
        load_published(path).cells, 1
    )


def test_all_26_published_tables_are_here():
    assert len(CSVS) == 26
    assert {path.stem for path in CSVS} <= set(OURS)


def trainings(paper: str) -> dict[str, str]:
    """``<table> <arm>`` -> identity of its training with seed 0."""
    return {
        f"{path.stem} {title.removesuffix(' seed=0')}": ids[0]
        for path in CSVS
        if path.stem.startswith(paper)
        for title, ids in recorded()[f"table={path.stem}"].items()
    }


@pytest.mark.parametrize(("paper", "arms"), [("lma", 69), ("mwpb", 39 + 1)])
def test_equal_arms_of_several_tables_are_one_training(paper, arms):
    """As many as the specification counts; alpha 0 of Table 8 is ours."""
    assert len(set(trainings(paper).values())) == arms


def test_arms_that_the_papers_share_are_shared_here():
    mwpb, lma = trainings("mwpb"), trainings("lma")
    places = ["table2 mwpb_at", "table5 mwpb_at", "table6 mwpb_at", "table7 mwpb_at"]
    same = {mwpb[f"mwpb_{place}"] for place in (*places, "table8 alpha_0.58")}
    assert len(same) == 1
    assert not set(mwpb.values()) & set(lma.values()), "their recipes differ"
