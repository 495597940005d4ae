"""What the figures hold: points, error bars, labels, and bytes that do not change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from ablation.reports import plots
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.statistics import interval
from ablation.reports.style import COLOURS, FAINT, MARKERS, look, paper_name, save
from ablation.sweeps.published import Published


def cell(column, values, published=None, **more):
    samples = tuple(Sample(f"seed={i}", v, 10_000, f"run{i}") for i, v in enumerate(values))
    printed = Published(published, f"{published:.2f}") if published is not None else None
    return Cell(column, samples=samples, published=printed, **more)


def row(label, clean, robust):
    return Row(label, label, "arm", {"clean": clean, "aa": robust})


AT = row("AT", cell("clean", [85.0, 85.5, 86.0], 86.2), cell("aa", [48.0, 49.0, 50.0], 47.0))
TRADES = row("TRADES", cell("clean", [82.0, 82.5], 83.0), cell("aa", [50.0, 50.5], 50.25))


def comparison(*rows, columns=("clean", "aa"), **more):
    return Comparison("t", "Title", columns, rows, **more)


def compared(table, strict=False):
    figure = plots.measured_against_published(table, strict)
    assert figure is not None
    return figure


def traded(table, strict=False):
    figure = plots.clean_against_robust(table, "aa", strict)
    assert figure is not None
    return figure


def bars(axes):
    """Position and half-widths of every drawn mean, by marker position."""
    found = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, segments = container.lines
        at = (np.ravel(line.get_xdata())[0], np.ravel(line.get_ydata())[0])
        found[at] = [np.ptp(s.get_segments()[0], axis=0).max() / 2 for s in segments]
    return found


def texts(figure):
    """What is written on a figure, but for the axes' own."""
    axes = [text.get_text() for each in figure.axes for text in each.texts]
    return [text for text in axes if text] + [text.get_text() for text in figure.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_measured_stands_over_published_with_its_interval():
    figure = compared(comparison(AT, TRADES))
    above, below = figure.axes
    half = interval([85.0, 85.5, 86.0]).half
    assert bars(above)[(86.2, 85.5)] == [pytest.approx(half)]
    assert set(bars(above)) == {(86.2, 85.5), (47.0, 49.0), (83.0, 82.25), (50.25, 50.25)}
    residual = dict(bars(below).keys())
    assert residual == {
        86.2: pytest.approx(-0.7), 47.0: 2.0, 83.0: pytest.approx(-0.75), 50.25: 0.0
    }  # fmt: skip
    assert legend(figure) == ["clean", "AutoAttack"]
    assert above.get_xlim() == above.get_ylim() == below.get_xlim()


def test_the_largest_deviations_are_named():
    rows = [
        row(f"M{i}", cell("clean", [80.0 + i], 80.0 + i), cell("aa", [50.0 + i / 10], 50.0))
        for i in range(9)
    ]
    figure = compared(comparison(*rows))
    assert sorted(texts(figure)) == [f"M{i}, AutoAttack" for i in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("column", "name"),
    [("pgd20", "PGD-20"), ("pgd20_train", "PGD-20 (train)"), ("clean_val", "clean (val.)"),
     ("aa", "AutoAttack"), ("aa_val", "AutoAttack (val.)"), ("margin_train", "margin_train")],
)  # fmt: skip
def test_a_column_is_named_as_papers_write_it_with_its_split(column, name):
    assert paper_name(column) == name


def test_only_numbers_of_the_same_attack_and_unit_are_compared():
    margin = replace(cell("margin_test", [1.0], 1.5), unit="margin")
    rows = (
        row("weak", cell("clean", [80.0], 81.0), cell("aa", [60.0], 50.0, mismatch=("n_iter 5",))),
        row("unpublished", cell("clean", [70.0]), Cell("aa", absent={"failed": 1})),
        Row("m", "margin", "arm", {"margin_test": margin}),
    )
    columns = ("clean", "aa", "margin_test")
    figure = compared(comparison(*rows, columns=columns))
    assert set(bars(figure.axes[0])) == {(81.0, 80.0)}
    assert figure.axes[0].get_ylabel() == "measured (%)"
    figure = compared(comparison(rows[2], columns=columns))
    assert set(bars(figure.axes[0])) == {(1.5, 1.0)}
    assert figure.axes[0].get_ylabel() == "measured (margin)"


@pytest.mark.parametrize("strict", [False, True])
def test_tagged_points_are_faint_and_strict_leaves_them_out(strict):
    tagged = row("T", cell("clean", [70.0], 71.0, tags=("n=200",)), cell("aa", [40.0], 41.0))
    table = comparison(AT, tagged)
    figure = compared(table, strict)
    assert ((71.0, 70.0) in bars(figure.axes[0])) is not strict
    assert ("off the recipe" in legend(figure)) is not strict
    figure = traded(table, strict)
    assert ((70.0, 40.0) in bars(figure.axes[0])) is not strict
    assert ("off the recipe" in legend(figure)) is not strict
    alphas = {line.get_alpha() for container in figure.axes[0].containers for line in container[:1]}
    assert alphas == ({1.0} if strict else {1.0, FAINT})


def test_there_is_no_figure_without_something_to_draw():
    unpublished = row("U", cell("clean", [80.0]), cell("aa", [40.0]))
    unmeasured = row("P", Cell("clean", published=Published(80.0, "80")), cell("aa", []))
    tagged = row("T", cell("clean", [80.0], 81.0, tags=("x",)), cell("aa", [1.0], 2.0, tags=("x",)))
    assert plots.measured_against_published(comparison(unpublished, unmeasured)) is None
    assert plots.measured_against_published(comparison(tagged), strict=True) is None
    assert plots.clean_against_robust(comparison(unmeasured), "aa") is None
    assert plots.clean_against_robust(comparison(tagged), "aa", strict=True) is None
    assert plots.clean_against_robust(comparison(AT), "pgd20") is None
    assert plots.clean_against_robust(comparison(), "aa") is None


def test_robust_stands_over_clean_with_both_intervals():
    (axes,) = (figure := traded(comparison(AT, TRADES))).axes
    clean, robust = interval([85.0, 85.5, 86.0]), interval([48.0, 49.0, 50.0])
    assert bars(axes)[(85.5, 49.0)] == [pytest.approx(clean.half), pytest.approx(robust.half)]
    assert texts(figure) == ["AT", "TRADES"]
    assert legend(figure) == ["measured, 95% interval over runs", "published"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "clean accuracy (%)",
        "AutoAttack accuracy (%)",
    )


def drawn_lines(axes):
    """Points and links that are not error bars."""
    ours = {line for container in axes.containers for line in container.get_children()}
    return [
        list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.lines
        if line not in ours
    ]


def test_published_points_are_linked_to_the_measured():
    only_published = Row(
        "P", "paper only", "arm",
        {"clean": cell("clean", [], 84.0), "aa": cell("aa", [], 51.0)},
    )  # fmt: skip
    figure = traded(comparison(AT, only_published))
    lines = drawn_lines(figure.axes[0])
    assert [(86.2, 47.0), (85.5, 49.0)] in lines
    assert [(86.2, 47.0)] in lines
    assert [(84.0, 51.0)] in lines
    assert len(lines) == 3
    assert texts(figure) == ["AT", "paper only"]


def test_another_attack_draws_no_published_point():
    weak = row("W", cell("clean", [80.0], 81.0), cell("aa", [60.0], 50.0, mismatch=("n_iter 5",)))
    figure = traded(comparison(weak))
    assert drawn_lines(figure.axes[0]) == []
    assert legend(figure) == ["measured", "off the recipe"]


def crowd():
    """Rows close to a line, like a table of similar methods."""
    return comparison(
        *(
            row(f"METHOD-{i}", cell("clean", [80 + 0.7 * i, 80.4 + 0.7 * i]),
                cell("aa", [52 - 0.5 * i, 52.2 - 0.5 * i]))
            for i in range(12)
        )
    )  # fmt: skip


def overlap(one, other):
    """Common area of two boxes in pixels, as a share of the first."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    up = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0, across) * max(0, up) / (one.width * one.height)


def check_layout(figure):
    """Nothing that is written is on top of something else that is, or out of the figure."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts
             if text.get_text()]  # fmt: skip
    boxes += [text.get_window_extent() for each in figure.legends for text in each.get_texts()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            boxes += [
                tick.label1.get_window_extent()
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
                and tick.label1.get_text()
            ]  # fmt: skip
            if axis.label.get_text():
                boxes.append(axis.label.get_window_extent())
    for i, box in enumerate(boxes):
        assert all(overlap(box, other) < 0.05 for other in boxes[:i])
        assert box.x0 > -2
        assert box.y0 > -2
        assert box.x1 < figure.bbox.width + 2
        assert box.y1 < figure.bbox.height + 2


def emr_table():
    """Clean accuracies at 96 to 99%, and two rows of which only far lower ones are published."""
    published = [(77.88, 34.06), (17.83, 17.27), (97.66, 90.11), (98.68, 92.62), (99.02, 92.5)]
    both = [(96.5, 45.5, 48.4), (98.3, 27.6, 24.4), (98.4, 12.6, 4.7), (97.5, 51.2, 60.6),
            (98.7, 44.1, 51.1), (98.7, 52.3, 28.9), (97.5, 88.4, 87.6)]  # fmt: skip
    rows = [
        row(f"ST + L-Softmax wd 0.{i}", cell("clean", [], x), cell("aa", [], y))
        for i, (x, y) in enumerate(published)
    ]
    rows += [
        row(f"AT + EMR wd 0.{i}", cell("clean", [x, x + 0.1], x), cell("aa", [y - 0.3, y + 0.3], z))
        for i, (x, y, z) in enumerate(both)
    ]
    return comparison(*rows)


def many(count):
    return comparison(
        *(
            row(f"M{i}", cell("clean", [80 + 0.7 * i], 80 + 0.7 * i),
                cell("aa", [52 - i, 52.3 - i], 51.0 - i))
            for i in range(count)
        )
    )  # fmt: skip


EQUAL = comparison(
    *(row(f"M{i}", cell("clean", [85.0], 85.0), cell("aa", [50.0], 50.0)) for i in range(7))
)


@pytest.mark.parametrize(
    "table", [emr_table(), crowd(), many(20), many(1), many(3), EQUAL],
    ids=["far", "crowd", "20", "1", "3", "equal"],
)  # fmt: skip
def test_nothing_that_is_written_overlaps(table):
    check_layout(traded(table))
    if figure := plots.measured_against_published(table):
        check_layout(figure)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_few_points_are_labelled_and_many_named_in_a_legend(count):
    figure = traded(many(count))
    names = [f"M{i}" for i in range(count)]
    if count < 20:
        assert texts(figure) == names
        assert len(figure.legends) == 1
    else:
        assert texts(figure) == []
        below = figure.legends[1]
        assert [text.get_text() for text in below.get_texts()] == names
        looks = [(line.get_color(), line.get_marker()) for line in below.get_lines()]
        assert len(set(looks)) == count


def test_equal_points_are_named_in_a_legend():
    """There is no room for seven labels at one point, nor would it be seen whose they are."""
    figure = traded(EQUAL)
    assert [t.get_text() for t in figure.legends[1].get_texts()] == [f"M{i}" for i in range(7)]


def test_a_look_stands_for_one_row():
    assert len({look(place)[:2] for place in range(96)}) == 96
    assert len({look(place)[1] for place in range(len(MARKERS))}) == len(MARKERS)


def test_an_axis_is_broken_where_rows_are_far_from_the_others():
    far, bulk = traded(emr_table()).axes
    low, high = far.get_xlim()
    assert low < 17.83 < 77.88 < high < 96
    low, high = bulk.get_xlim()
    assert 95 < low < 96.5
    assert 99.02 < high < 101
    assert bulk.get_window_extent().width > 2 * far.get_window_extent().width
    assert bulk.get_xlabel() == "clean accuracy (%)"
    assert not bulk.spines["left"].get_visible()
    assert len(traded(many(20)).axes) == 1


def test_a_wide_interval_does_not_squeeze_the_others():
    """Two runs' intervals are twelve standard errors wide."""
    wide = row("wide", cell("clean", [84.0, 86.0]), cell("aa", [40.0, 56.0]))
    (axes,) = traded(comparison(AT, TRADES, wide)).axes
    assert (interval([40.0, 56.0]).half or 0) > 100
    low, high = axes.get_ylim()
    assert high - low < 20


def test_points_on_each_other_are_magnified():
    above, _ = compared(emr_table()).axes
    (inset,) = above.child_axes
    assert set(bars(inset)) == {at for at in bars(above) if at[0] > 96}
    low, high = inset.get_xlim()
    assert 96 < low < 96.5
    assert 98.7 < high < 99.5
    assert compared(many(20)).axes[0].child_axes == []
    assert compared(EQUAL).axes[0].child_axes == []


@pytest.mark.parametrize("label", ["$x_1$ 50% \\alpha", "\u03b1=0.1 \u2013 \u2713", "a\nb", ""])
def test_any_label_can_be_drawn(label, tmp_path):
    table = comparison(replace(AT, label=label))
    save(traded(table), tmp_path / "a")
    save(compared(table), tmp_path / "b")


def test_a_single_exact_point_has_room_around_it(tmp_path):
    table = comparison(row("AT", cell("clean", [0.0], 0.0), cell("aa", [0.0], 0.0)))
    for figure in (
        compared(table),
        traded(table),
    ):
        save(figure, tmp_path / "f")
        low, high = figure.axes[0].get_xlim()
        assert low < 0 < high


@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_a_smoke_comparison_has_a_watermark(scale):
    table = comparison(AT, TRADES, scale=scale)
    for figure in (
        compared(table),
        traded(table),
    ):
        assert ("SMOKE" in texts(figure)) is (scale == "smoke")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("clean", "fgsm", "pgd20", "pgd100", "cw", "apgd_ce", "aa"), "aa"),
        (("clean", "fgsm", "pgd20", "pgd100", "cw", "apgd_ce"), "apgd_ce"),
        (("clean", "fgsm", "pgd20", "pgd100", "cw"), "pgd100"),
        (("clean", "pgd10", "pgd20"), "pgd20"),
        (("clean", "fgsm", "cw"), "cw"),
        (("clean", "fgsm"), "fgsm"),
        (("clean", "pgd20_eps6", "aa_l2", "margin_test"), None),
        ((), None),
    ],
)
def test_the_strongest_attack_is_chosen(columns, expected):
    for order in (columns, tuple(reversed(columns))):
        whole = Row("a", "a", "a", {column: cell(column, [50.0]) for column in columns})
        assert plots.choose_robust_metric(comparison(whole, columns=order)) == expected


def test_a_robust_metric_is_one_that_was_measured():
    """The published column alone, or a clean accuracy of other runs, is nothing to draw."""
    clean, other = cell("clean", [85.0]), replace(cell("pgd20", [50.0]), samples=())
    assert plots.choose_robust_metric(comparison(row("AT", clean, Cell("aa")))) is None
    cells = {"clean": clean, "aa": cell("aa", [], 47.0), "pgd20": cell("pgd20", [50.0])}
    measured = Row("at", "AT", "at", cells)
    columns = ("clean", "aa", "pgd20")
    assert plots.choose_robust_metric(comparison(measured, columns=columns)) == "pgd20"
    unmeasured = Row("at", "AT", "at", {"clean": clean, "pgd20": other})
    assert plots.choose_robust_metric(comparison(unmeasured, columns=columns)) is None


def test_a_point_is_of_the_runs_that_have_both_accuracies():
    three, two = cell("clean", [80.0, 82.0, 99.0]), cell("aa", [40.0, 42.0])
    (at,) = bars(traded(comparison(row("AT", three, two))).axes[0])
    assert at == (81.0, 41.0)


def swept(label, clean, *radii, **more):
    """A row with accuracies at 2/255, 4/255, ...; ``more`` goes to the last cell."""
    cells = {"clean": cell("clean", clean)} if clean else {}
    names = [f"aa_eps{2 * i + 2}" for i in range(len(radii))]
    for name, values in zip(names, radii, strict=True):
        cells[name] = cell(name, values, **(more if name == names[-1] else {}))
    return Row(label, label, "arm", cells)


def sweep_of(*rows, metric="aa", norm="linf", unit=255):
    eps = {
        (row.key, column): int(column.removeprefix("aa_eps")) / unit
        for row in rows
        for column in row.cells
        if column != "clean"
    }
    return plots.Sweep(metric, norm, eps)


MAIL = swept("MAIL", [84.0, 86.0], [70.0, 72.0], [60.0, 61.0], [50.0, 52.0])
EMR = swept("MAIL + EMR", [83.0], [72.0], [63.0])
COLUMNS = ("clean", "aa_eps2", "aa_eps4", "aa_eps6")


def over_eps(*rows, strict=False, sweeps=None, **more):
    table = comparison(*rows, columns=COLUMNS, **more)
    return plots.robust_over_eps(table, [sweep_of(*rows)] if sweeps is None else sweeps, strict)


def curves(axes):
    """Points of every line, in order; error bars are none."""
    bars = {line for container in axes.containers for line in container.get_children()}
    return [
        list(zip(np.round(line.get_xdata(), 9).tolist(), line.get_ydata(), strict=True))
        for line in axes.lines
        if line not in bars
    ]


def test_accuracy_falls_over_the_radius_from_the_clean_one():
    figure = over_eps(MAIL, EMR)
    assert figure is not None
    (axes,) = figure.axes
    assert curves(axes) == [
        [(0, 85.0), (2, 71.0), (4, 60.5), (6, 51.0)],
        [(0, 83.0), (2, 72.0), (4, 63.0)],
    ]
    half = interval([60.0, 61.0]).half
    drawn = {(round(x, 9), y): found for (x, y), found in bars(axes).items()}
    assert drawn[4, 60.5] == [pytest.approx(half)]
    assert drawn[4, 63.0] == []
    assert legend(figure) == ["MAIL", "MAIL + EMR"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        r"$L_\infty$ radius (1/255)",
        "AutoAttack accuracy (%)",
    )
    low, high = axes.get_ylim()
    assert low >= -2
    assert high <= 102


def test_clean_accuracy_of_other_images_is_not_radius_0():
    fewer = tuple(replace(sample, n=200) for sample in EMR.cells["clean"].samples)
    other = replace(EMR.cells["clean"], samples=fewer)
    figure = over_eps(replace(EMR, cells={**EMR.cells, "clean": other}))
    assert figure is not None
    assert curves(figure.axes[0]) == [[(2, 72.0), (4, 63.0)]]


def test_radii_that_are_no_multiples_of_1_255_are_in_pixels():
    figure = over_eps(EMR, sweeps=[sweep_of(EMR, unit=20, norm="l2")])
    assert figure is not None
    (line,) = curves(figure.axes[0])
    assert [x for x, _ in line] == [0, 0.1, 0.2]
    assert figure.axes[0].get_xlabel() == "$L_2$ radius (pixels in [0, 1])"


def test_every_attack_has_a_panel_and_a_row_one_look():
    other = plots.Sweep("pgd20", "linf", {("MAIL + EMR", "aa_eps2"): 0.1, ("x", "aa_eps4"): 0.2})
    pgd = plots.Sweep("pgd20", "linf", {("MAIL + EMR", f"aa_eps{k}"): k / 255 for k in (2, 4)})
    figure = over_eps(MAIL, EMR, sweeps=[sweep_of(MAIL, EMR), other, pgd])
    assert figure is not None
    above, below = figure.axes
    assert below.get_ylabel() == "PGD-20 accuracy (%)"
    assert curves(below) == curves(above)[1:]
    assert below.lines[0].get_color() == COLOURS[1]


def test_without_two_radii_there_is_no_line():
    single = swept("one", [80.0], [50.0])
    unmeasured = swept("none", [80.0], [], [])
    planned = swept("planned", [], [], [])
    assert over_eps(single, unmeasured, planned) is None
    assert over_eps(MAIL, sweeps=[]) is None
    assert over_eps() is None
    figure = over_eps(single, EMR, unmeasured, planned)
    assert figure is not None
    assert legend(figure) == ["MAIL + EMR"]
    notes = [each.get_title().get_text() for each in figure.legends[1:]]
    assert notes == ["AutoAttack not at two radii: one, none"]
    whole = over_eps(MAIL, EMR)
    assert whole is not None
    assert len(whole.legends) == 1
    repeated = plots.Sweep("aa", "linf", {("MAIL", f"aa_eps{k}"): 0.1 for k in (2, 4, 6)})
    assert over_eps(MAIL, sweeps=[repeated]) is None


@pytest.mark.parametrize("strict", [False, True])
def test_radii_off_the_recipe_are_faint_and_strict_leaves_them_out(strict):
    tagged = swept("T", [], [70.0], [60.0], [50.0], tags=("n=200",))
    figure = over_eps(tagged, strict=strict)
    assert figure is not None
    (line,) = curves(figure.axes[0])
    assert line == [(2, 70.0), (4, 60.0), (6, 50.0)][: 2 if strict else 3]
    assert ("off the recipe" in legend(figure)) is not strict
    short = swept("S", [80.0], [70.0], [60.0], tags=("n=200",))
    assert (over_eps(short, strict=strict) is None) is strict


def test_rows_of_one_label_are_told_apart_by_what_was_chosen():
    rows = [replace(EMR, key=str(i), chosen=f"lr=0.{i}") for i in (1, 2)]
    assert plots.row_titles(comparison(*rows, MAIL)) == [
        *("MAIL + EMR lr=0.1", "MAIL + EMR lr=0.2", "MAIL")
    ]
    figure = over_eps(*rows)
    assert figure is not None
    assert legend(figure) == ["MAIL + EMR lr=0.1", "MAIL + EMR lr=0.2"]


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("label", ["R", "AT + MAIL $x_1$ 50% (best of 36 grid points) \u2713"])
def test_a_legend_of_many_rows_leaves_room_for_the_lines(count, label, tmp_path):
    rows = [swept(f"{label} {i}", [80.0 + i / 9], [60.0 + i], [50.0 + i]) for i in range(count)]
    figure = over_eps(*rows, scale="smoke")
    assert figure is not None
    save(figure, tmp_path / "f")
    (axes,) = figure.axes
    assert "SMOKE" in texts(figure)
    assert axes.get_window_extent().height / figure.dpi > 1
    looks = {
        (line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_zorder() == 2
    }
    assert len(looks) == count
    box = figure.legends[0].get_window_extent().extents
    assert box[0] > -1
    assert box[2] < figure.bbox.width + 1


def test_the_same_comparison_gives_the_same_bytes_and_no_date(tmp_path):
    written = []
    for name in ("a", "b"):
        figure = traded(comparison(AT, TRADES))
        paths = save(figure, tmp_path / name / "beta_0.9")
        assert [path.name for path in paths] == ["beta_0.9.pdf", "beta_0.9.png"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert written[0][0].startswith(b"%PDF")
    assert written[0][1].startswith(b"\x89PNG")
    assert b"CreationDate" not in written[0][0]
    assert b"/Type3" not in written[0][0]


def test_the_figures_leave_matplotlibs_settings_alone(tmp_path):
    before = dict(mpl.rcParams)
    save(compared(comparison(AT)), tmp_path / "f")
    assert dict(mpl.rcParams) == before


def test_importing_the_module_imports_neither_matplotlib_nor_torch():
    code = (
        "import sys;"
        "from ablation.reports import curves, latex, plots, statistics, style, text_tables;"
        "assert not {'matplotlib', 'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.reports.test_plots import *;"
        "save(traded(comparison(AT)), Path(sys.argv[1]));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
