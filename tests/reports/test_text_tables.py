"""Every state of a cell in every format, from a made-up comparison."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from typing import get_args

import pandas as pd
import pytest

from ablation.reports import text_tables as render
from ablation.reports.comparison import Absence, Cell, Comparison, Contrast, Interval, Row, Sample
from ablation.reports.latex import latex
from ablation.reports.statistics import contrasts
from ablation.sweeps.published import Published


def samples(*values, n=10_000):
    return tuple(Sample(f"seed={i}", value, n, f"run{i}") for i, value in enumerate(values))


def measured(*values, n=10_000, column="clean", **more):
    return Cell(column, samples=samples(*values, n=n), **more)


def one(cell, **more):
    """A table of one cell."""
    row = Row("k", "ROW", "arm", {cell.column: cell}, **more)
    return Comparison("t", "Title", (cell.column,), (row,))


def shown(cell, strict=False):
    """The measured, published and difference texts of a table of one cell."""
    lines = render.markdown(one(cell), strict).splitlines()
    row = next(line for line in lines if line.startswith("| ROW"))
    return [part.strip() for part in row.strip("|").split("|")][1:]


PUBLISHED = Published(86.2, "86.20", "0.003")
CLEAN = {
    "full": measured(85.0, 85.5, 86.0, published=PUBLISHED),
    "single": measured(84.0, n=500),
    "partial": measured(85.0, 86.0, absent={"failed": 1}, published=PUBLISHED),
    "missing": Cell("clean", absent={"missing": 3}, published=PUBLISHED),
    "mixed": Cell("clean", absent={"running": 2, "pending": 1}, published=PUBLISHED),
    "tagged": measured(80.0, 81.0, tags=("n=200", "5 of 200 epochs"), published=PUBLISHED),
    "tagged_too": measured(70.0, tags=("n=200", "5 of 200 epochs"), published=PUBLISHED),
    "mismatch": measured(85.0, mismatch=("steps 10, not 20",), published=PUBLISHED),
    "noted": measured(85.0, published=replace(PUBLISHED, note="headed PGD-20 & more")),
    "unplanned": Cell("clean", published=PUBLISHED),
}
FLAGS = ("pgd20 leaves 3.1 points more than aa",)


def everything(**more):
    rows = tuple(
        Row(f"k:{name}", f"{name} 100%", name, {"clean": cell, "margin_test": MARGIN})
        for name, cell in CLEAN.items()
    )
    flagged = replace(rows[0], flags=FLAGS, chosen="tau=0.4", note="a note of the row")
    columns = ("clean", "margin_test")
    return Comparison("t_1", "Table_1: a & b", columns, (flagged, *rows[1:]), **more)


MARGIN = Cell("margin_test", unit="margin", samples=samples(1.23456, 1.24456))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("full", ["85.50 ±1.24 (3)", "86.20", "-0.70"]),
        ("single", ["84.0 (1)"]),
        ("partial", ["85.50 ±6.35 (2/3) <sup>a</sup>", "86.20", "-0.70"]),
        ("missing", ["missing 3", "86.20", "-"]),
        ("mixed", ["running 2, pending", "86.20", "-"]),
        ("tagged", ["80.50 ±6.35 (2) <sup>a</sup>", "86.20", "-5.70"]),
        ("mismatch", ["85.00 (1) <sup>a</sup>", "86.20", "-"]),
        ("noted", ["85.00 (1)", "86.20 <sup>a</sup>", "-1.20"]),
        ("unplanned", ["-", "86.20", "-"]),
    ],
)
def test_a_cell_says_what_is_known(state, expected):
    assert shown(CLEAN[state]) == expected


@pytest.mark.parametrize("reason", get_args(Absence))
def test_a_cell_without_runs_shows_the_reason_and_no_number(reason):
    assert shown(Cell("aa", absent={reason: 1})) == [reason]
    assert shown(Cell("aa", absent={reason: 2})) == [f"{reason} 2"]


def test_strict_hides_tagged_numbers_and_nothing_else():
    assert shown(CLEAN["tagged"], strict=True) == [
        "hidden (tagged) <sup>a</sup>", "86.20", "-"
    ]  # fmt: skip
    for state in set(CLEAN) - {"tagged", "tagged_too"}:
        assert shown(CLEAN[state], strict=True) == shown(CLEAN[state])


@pytest.mark.parametrize(
    ("n", "expected"), [(2000, "84.12 (1)"), (1999, "84.1 (1)")], ids=["fine", "coarse"]
)
def test_two_decimals_take_two_thousand_examples(n, expected):
    assert shown(measured(84.123, n=n)) == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0432157, "0.04322"), (1.23456, "1.235"), (12.3456, "12.35"), (0.0, "0.000"),
     (4321.9, "4322")],
)  # fmt: skip
def test_margins_have_four_digits(value, expected):
    assert shown(measured(value, unit="margin")) == [f"{expected} (1)"]


@pytest.mark.parametrize(("value", "expected"), [(0.043, "0.0430"), (0.0432157, "0.0432"),
                                                 (0.1255, "0.1255"), (0.0, "0.0000")])  # fmt: skip
def test_radii_have_four_decimals(value, expected):
    assert shown(measured(value, unit="radius")) == [f"{expected} (1)"]


def test_correlations_have_three_decimals_and_seconds_three_digits():
    assert shown(measured(0.01234, unit="correlation")) == ["0.012 (1)"]
    assert shown(measured(-0.98765, unit="correlation")) == ["-0.988 (1)"]
    for value, expected in ((0.0123456, "0.0123"), (1.23456, "1.23"), (1234.56, "1235")):
        assert shown(measured(value, unit="s")) == [f"{expected} (1)"]


def test_a_difference_of_nothing_is_a_plain_zero():
    assert shown(measured(86.199, published=PUBLISHED))[2] == "+0.00"


def test_each_distinct_footnote_is_listed_once_in_the_order_of_use():
    text = render.terminal(everything())
    notes = [line for line in text.splitlines() if re.match(r"[a-z]: ", line)]
    assert notes == [
        "a: 2 of 3 planned runs; the others: failed",
        "b: n=200; 5 of 200 epochs",
        "c: not compared, the attack differs: steps 10, not 20",
        "d: published: headed PGD-20 & more",
    ]
    assert text.count("(2) b") == 1
    assert text.count("70.00 (1) b") == 1


def test_after_z_comes_aa():
    cells = [measured(80.0, tags=(f"{epochs} epochs",)) for epochs in range(60)]
    rows = tuple(Row(str(i), f"R{i}", "arm", {"clean": cell}) for i, cell in enumerate(cells))
    lines = render.terminal(Comparison("t", "T", ("clean",), rows)).splitlines()
    marks = [line.split()[-1] for line in lines if line.startswith("R")]
    assert (marks[:2], marks[24:28], marks[51:53]) == (
        ["a", "b"], ["y", "z", "aa", "ab"], ["az", "ba"]
    )  # fmt: skip
    assert [f"{mark}: {i} epochs" for i, mark in enumerate(marks)] == lines[-60:]


def test_warnings_that_differ_in_numbers_are_told_once():
    flags = ("pgd20 is 3.1 above aa", "pgd20 is 2 above aa", "pgd10 is 2 above aa")
    row = Row("r", "R", "r", {"clean": Cell("clean")}, flags=flags)
    lines = render.terminal(Comparison("t", "T", ("clean",), (row,))).splitlines()
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: R: pgd20 is 3.1 above aa (and 1 more like it)",
        "warning: R: pgd10 is 2 above aa",
    ]


def test_below_the_table_stand_warnings_and_notes_and_the_row_is_marked():
    text = render.terminal(everything(notes=("one selection per seed",)))
    assert "\nwarning: full 100%: pgd20 leaves 3.1 points more than aa\n" in text
    assert "\nfull 100%: a note of the row\n" in text
    assert text.endswith("\none selection per seed\n")
    assert "\nfull 100% ! " in text
    assert "single 100% !" not in text


def test_the_terminals_table_as_a_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    rows = (
        Row("1", "AT", "at", {"clean": CLEAN["full"], "aa": measured(9.9, column="aa")}),
        Row("2", "TRADES", "t", {"clean": CLEAN["tagged"], "aa": measured(47.25, column="aa")}),
        Row("3", "MART", "m", {"clean": CLEAN["missing"]}),
    )
    assert render.terminal(Comparison("t", "Title", ("clean", "aa"), rows)).splitlines() == [
        "Title",
        "row       clean              pub.   diff     aa",
        "------    -----------------  -----  -----    ---------",
        "AT        85.50 ±1.24 (3)    86.20  -0.70     9.90 (1)",
        "TRADES    80.50 ±6.35 (2) a  86.20  -5.70    47.25 (1)",
        "MART      missing 3          86.20  -        -",
        "",
        "mean ± half-width of its 95% t interval (runs); pub.: as printed; "
        "diff: measured minus published",
        "a: n=200; 5 of 200 epochs",
    ]


def wide():
    """15 rows and 8 metrics."""
    columns = ("clean", "fgsm", "pgd10", "pgd20", "pgd100", "cw", "apgd_ce", "aa")
    rows = tuple(
        Row(
            f"k{i}",
            f"method number {i:02d}",
            "arm",
            {c: replace(CLEAN["full"], column=c) for c in columns},
            chosen="",
        )
        for i in range(15)
    )
    return Comparison("w", "Wide", columns, rows)


@pytest.mark.parametrize("width", [60, 100, 130, 200])
def test_a_wide_table_is_printed_in_blocks_of_metrics(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = render.terminal(wide())
    table = text.split("\n\nmean ±")[0]
    assert all(len(line) <= width for line in table.splitlines())
    headers = [line.split() for line in table.splitlines() if line.startswith("row ")]
    metrics = [name for names in headers for name in names if name not in ("row", "pub.", "diff")]
    assert tuple(metrics) == wide().columns
    per_block = {60: 1, 100: 2, 130: 3, 200: 5}[width]
    assert len(headers) == math.ceil(8 / per_block)
    assert text.count("method number 07") == len(headers)


def test_without_a_published_number_there_is_only_the_measured_column():
    assert shown(measured(84.0)) == ["84.00 (1)"]
    for text in (render.terminal(one(measured(84.0))), latex(one(measured(84.0)))):
        assert "pub." not in text
        assert "diff" not in text


def test_the_selected_column_is_there_if_a_row_has_one():
    assert "selected" not in render.terminal(one(measured(84.0)))
    lines = render.terminal(one(measured(84.0), chosen="tau=0.4 of 5, val_robust")).splitlines()
    assert lines[1].split() == ["row", "selected", "clean"]
    assert "tau=0.4 of 5, val_robust" in lines[3]
    assert "\n| ROW | tau=0.4 of 5, val_robust | 84.00 (1) |\n" in render.markdown(
        one(measured(84.0), chosen="tau=0.4 of 5, val_robust")
    )


def test_smoke_numbers_are_marked_first_and_last_everywhere():
    smoke = everything(scale="smoke")
    for found in (render.terminal(smoke), render.markdown(smoke), latex(smoke)):
        lines = found.strip().splitlines()
        assert lines[0].strip("*% ") == lines[-1].strip("*% ") == render.SMOKE
    captions = re.findall(r"\\caption\{(.*)", latex(smoke))
    assert captions
    assert all(caption.startswith(rf"\textbf{{{render.SMOKE}.}}") for caption in captions)
    assert set(render.frame(smoke)["scale"]) == {"smoke"}
    full = everything()
    for found in (render.terminal(full), render.markdown(full), latex(full)):
        assert "SMOKE" not in found


def test_an_empty_table_has_its_title_and_header():
    empty = Comparison("t", "Title", ("clean",), ())
    assert render.terminal(empty).startswith("Title\nrow\n---\n")
    assert "| row |" in render.markdown(empty)
    assert r"\begin{tabular}{@{}l@{}}" in latex(empty)
    assert len(render.frame(empty)) == 0


def contrasted(**tags):
    cells = {
        "at": measured(85.0, 86.0, 87.0, tags=tags.get("at", ())),
        "new": measured(86.0, 87.0, 88.25, tags=tags.get("new", ())),
        "same": measured(85.0, 86.5, 86.5),
    }
    rows = tuple(Row(key, key.upper(), key, {"clean": cell}) for key, cell in cells.items())
    return Comparison("t", "Title", ("clean",), rows)


def test_contrasts_follow_as_a_second_table_with_stars():
    comparison = contrasted()
    found = contrasts(comparison, "at")
    found = (replace(found[0], by_example=Interval(1.083, 0.3, 10_000)), *found[1:])
    text = render.terminal(comparison, contrasts=found)
    second = text[text.index("Title: difference from AT") :].splitlines()
    assert second[1].split("  ")[0] == "row"
    assert re.split(r"\s{2,}", second[3]) == [
        "NEW", "clean", "+1.08 ±0.36 (3) *", "+1.08 ±0.30 (10000) *"
    ]  # fmt: skip
    assert re.split(r"\s{2,}", second[4]) == ["SAME", "clean", "+0.00 ±1.24 (3)", "-"]
    assert "| NEW | clean | +1.08 ±0.36 (3) \\* |" in render.markdown(comparison, contrasts=found)
    assert r"\label{tab:t:at}" in latex(comparison, contrasts=found)


def test_no_star_without_an_interval_or_at_its_edge():
    comparison = contrasted()
    edge = Contrast("new", "at", "clean", Interval(0.5, 0.5, 3), Interval(0.5, None, 1))
    text = render.markdown(comparison, contrasts=[edge])
    assert "| NEW | clean | +0.50 ±0.50 (3) | +0.50 (1) |" in text


def test_strict_hides_contrasts_with_a_tagged_side():
    comparison = contrasted(at=("n=200",))
    found = contrasts(comparison, "at")
    plain = render.markdown(comparison, contrasts=found)
    assert "| NEW | clean <sup>a</sup> | +1.08 ±0.36 (3) \\* | - |" in plain
    assert "- <sup>a</sup> AT: n=200" in plain
    strict = render.markdown(comparison, strict=True, contrasts=found)
    assert "| NEW | clean <sup>a</sup> | hidden (tagged) | hidden (tagged) |" in strict
    both = contrasted(at=("n=200",), new=("n=200",))
    assert "- <sup>a</sup> n=200" in render.markdown(both, contrasts=contrasts(both, "at"))


def test_a_contrast_without_a_number_says_why():
    cells = (
        measured(50.0),
        measured(51.0, mismatch=("steps 10, not 20",)),
        replace(measured(51.0), samples=(Sample("seed=9", 51.0, 10_000, "r"),)),
    )
    rows = tuple(Row(str(i), f"R{i}", "arm", {"clean": cell}) for i, cell in enumerate(cells))
    comparison = Comparison("t", "Title", ("clean",), rows)
    text = render.terminal(comparison, contrasts=contrasts(comparison, "0"))
    assert "a: not compared, the two rows' attacks differ" in text
    assert "b: no repetition in common" in text


def test_markdown_escapes_what_would_break_the_table():
    text = render.markdown(one(measured(84.0), flags=("a|b <x> *y*\nz",)))
    assert r"- warning: ROW: a\|b \<x> \*y\* z" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_latex_is_escaped_and_structured():
    text = latex(everything(notes=(r"50% & #1 {x} \y ~z^2 <a> $c$",)))
    assert r"\label{tab:t_1}" in text
    assert r"\caption{Table\_1: a \& b (mean $\pm$ half-width" in text
    assert r"& \multicolumn{3}{c}{clean} & \multicolumn{1}{c}{margin\_test} \\" in text
    assert r"\cmidrule(lr){3-5}" in text
    assert (
        r"full 100\% ! & tau=0.4 & 85.50 $\pm$1.24 (3) & 86.20 & $-$0.70 & 1.240 $\pm$0.064 (2) \\"
        in text
    )
    assert r"80.50 $\pm$6.35 (2)\textsuperscript{b}" in text
    assert r"\textsuperscript{d} published: headed PGD-20 \& more" in text
    escaped = r"50\% \& \#1 \{x\} \textbackslash{}y \textasciitilde{}z\textasciicircum{}2"
    assert escaped in text
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 1


def test_every_latex_row_has_as_many_cells_as_columns():
    for comparison in (everything(), wide()):
        for body in re.findall(r"\\begin\{tabular\}(.*?)\\end", latex(comparison), re.S):
            spec, *lines = body.splitlines()
            columns = len(re.findall("[lr]", spec))
            for line in lines:
                if line.endswith(r"\\"):
                    spans = [int(n) - 1 for n in re.findall(r"multicolumn\{(\d+)\}", line)]
                    assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == columns


def test_a_table_too_high_for_a_page_continues_under_the_same_number():
    text = latex(replace(wide(), notes=("the end",)))
    floats = text.split(r"\begin{table}")[1:]
    assert len(floats) == 2
    assert r"\addtocounter{table}{-1}" not in floats[0]
    assert r"\addtocounter{table}{-1}" in floats[1]
    assert "Wide (continued)." in floats[1]
    assert [r"\label{tab:w}" in each for each in floats] == [True, False]
    assert ["the end" in each for each in floats] == [False, True]


@pytest.mark.skipif(not (shutil.which("pdflatex") or shutil.which("tectonic")), reason="no LaTeX")
def test_latex_compiles(tmp_path):
    comparison = everything(scale="smoke", notes=("[x] \u03b1 \u2264 5 \u00d7 10^-3 'q' \"r\"",))
    rows = (*comparison.rows, Row("k:at", "[*] \u03b5 = 8/255", "at", {}))
    comparison = replace(comparison, rows=rows)
    body = latex(comparison, contrasts=contrasts(comparison, "full"))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage[textwidth=14cm,"
        f"textheight=23cm]{{geometry}}\\begin{{document}}\n{body}{latex(wide())}"
        "\\end{document}\n",
        encoding="utf-8",
    )
    command = ["tectonic", "t.tex"]
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "too large" not in done.stdout


def test_the_frame_has_a_line_per_row_and_column():
    table = render.frame(everything())
    assert tuple(table.columns) == (
        "key", "label", "arm", "chosen", "column", "unit", "mean", "ci95", "n_runs", "planned",
        "n_examples", "published", "published_printed", "published_ci", "difference", "tags",
        "mismatch", "absent", "scale", "flags",
    )  # fmt: skip
    assert len(table) == 2 * len(CLEAN)
    lines = by_arm(table)
    full = lines["full"]
    assert (full["mean"], full["n_runs"], full["planned"], full["n_examples"]) == (
        85.5,
        3,
        3,
        10**4,
    )
    assert full["ci95"] == pytest.approx(4.302652729696142 * 0.5 / math.sqrt(3))
    assert [full[name] for name in ("published", "published_printed", "published_ci")] == [
        86.2, "86.20", "0.003"
    ]  # fmt: skip
    assert full["difference"] == pytest.approx(-0.7)
    assert (full["chosen"], full["flags"]) == ("tau=0.4", FLAGS[0])
    partial = lines["partial"]
    assert [partial[name] for name in ("n_runs", "planned", "absent")] == [2, 3, "failed"]
    assert lines["mixed"]["absent"] == "running 2, pending"
    assert all(pd.isna(lines["missing"][name]) for name in (*NUMBERS, "n_examples"))
    assert pd.isna(lines["single"]["ci95"])
    assert pd.isna(lines["mismatch"]["difference"])
    assert lines["mismatch"]["mismatch"] == "steps 10, not 20"


NUMBERS = ("mean", "ci95", "difference")


def by_arm(table, column="clean"):
    """The frame's lines of one column."""
    return {line["arm"]: line for line in table.to_dict("records") if line["column"] == column}


def test_the_strict_frame_has_no_tagged_numbers():
    loose, strict = (by_arm(render.frame(everything(), hide)) for hide in (False, True))
    assert not any(pd.isna(loose["tagged"][name]) for name in NUMBERS)
    assert all(pd.isna(strict["tagged"][name]) for name in NUMBERS)
    assert strict["tagged"]["tags"] == "n=200; 5 of 200 epochs"
    for arm in set(CLEAN) - {"tagged", "tagged_too"}:
        assert repr(loose[arm]) == repr(strict[arm])


def test_csv_gives_the_frame_back():
    text = render.csv(everything())
    again = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype=str)
    table = render.frame(everything())
    assert list(again.columns) == list(table.columns)
    assert again["label"].tolist() == table["label"].tolist()
    means = [float(value) if value else None for value in again["mean"]]
    assert means == [None if math.isnan(value) else value for value in table["mean"]]
    assert "\r" not in text
