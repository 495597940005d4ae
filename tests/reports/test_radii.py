"""Radii that training used: in tables beside the published ones, and as histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hydra import initialize_config_dir

from ablation.config import folders
from ablation.reports import latex, text_tables
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.radii import BINS, PRINTED, Radii, radii_of, radius_histogram
from ablation.reports.statistics import difference
from ablation.reports.style import save
from ablation.reports.table import compare_table
from ablation.runs.directory import Run
from ablation.sweeps.planning import Planner
from ablation.sweeps.published import load_published
from ablation.sweeps.request import table_folders
from ablation.sweeps.tables import Arm, Table
from tests.support.fake_runs import fake_run

pytestmark = pytest.mark.usefixtures("composed_once")

EPS = 8 / 255


def spread(low: float, high: float, n: int = 1000) -> np.ndarray:
    return np.linspace(low, high, n, dtype=np.float32)


def record(run: Run, radius: np.ndarray, checkpoint: str = "best_robust") -> None:
    """What a run leaves that recorded its radii."""
    n = len(radius)
    found = {"min": float(radius.min()), "max": float(radius.max()), "below_eps": 0.5}
    entry = {
        "checkpoint": checkpoint,
        "weights": "raw",
        "metric": "mean_radius",
        "split": "train",
        "value": float(radius.mean(dtype=np.float64)),
        "unit": "radius",
        "n": n,
        "params": {"images": "as used in training", "epoch": n, "eps": EPS, **found},
    }
    columns = {"index": np.arange(n) * 2, "radius": radius}
    with run.reopen():
        run.add_recorded(checkpoint, [entry], columns)


@pytest.fixture
def table(tmp_path):
    """Two arms of the paper's Table 6, two seeds, one of them with averaged weights."""
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        arms = {
            "mwpb_at": Arm(["method=at"], label="MWPB-AT"),
            "mwpb_trades": Arm(["method=trades", "average=ema"], label="MWPB-TRADES"),
        }
        mine = Table("Mine", arms, set=["evaluation=demo", "epochs=5"], axes={"seed": [0, 1]})
        for job in Planner(mine, [f"++runs_dir={tmp_path}"], check=False).plan().jobs:
            arm, seed = job.points[0].arm, job.config.seed
            middle = (0.043 if arm == "mwpb_at" else 0.037) + 0.0004 * seed
            run = fake_run(job.config, {"clean": 90.0})
            record(run, spread(middle - 0.01, middle + 0.01, n=100 + seed))
            record(run, spread(0.0, 1.0), "last")
        published = load_published(table_folders()[-1] / "published" / "mwpb_table6.csv")
        yield compare_table("mine", mine, published, tmp_path)


def cell_of(comparison: Comparison, key: str) -> Cell:
    (row,) = [row for row in comparison.rows if row.key == key]
    return row.cells["mean_radius"]


def test_a_measured_mean_radius_stands_beside_the_published_one(table):
    assert table.columns[0] == "mean_radius"
    for key, value in {"mwpb_at": 0.043, "mwpb_trades": 0.037}.items():
        cell = cell_of(table, key)
        assert (cell.unit, cell.mismatch, cell.tags) == ("radius", (), ("data digits",))
        assert [sample.value for sample in cell.samples] == pytest.approx([value, value + 0.0004])
        assert difference(cell) == pytest.approx(0.0002)
        assert cell.published is not None
        assert cell.published.value == value


@pytest.mark.parametrize("form", [text_tables.terminal, text_tables.markdown, latex.latex])
def test_radii_have_four_decimals_in_every_format(table, form):
    text = form(table)
    half = 12.7062 * 0.0002  # t(0.975, 1) times the standard error of two runs
    between = r"$\pm$" if form is latex.latex else "±"
    assert f"0.0432 {between}{half:.4f} (2)" in text
    assert "+0.0002" in text
    assert "0.043" in text


def test_a_radius_of_nothing_has_four_decimals_too():
    cell = Cell("mean_radius", "radius", (Sample("seed=0", 0.0, 10, "a"),))
    row = Row("a", "A", "a", {"mean_radius": cell})
    assert "0.0000 (1)" in text_tables.terminal(Comparison("t", "T", ("mean_radius",), (row,)))


def test_the_radii_of_the_selected_weights_are_drawn(table):
    at, trades = radii_of(table)
    assert (at.title, trades.title) == ("MWPB-AT", "MWPB-TRADES")
    assert [len(run) for run in at.runs] == [100, 101]
    assert at.eps == EPS
    assert max(run.max() for run in at.runs) == pytest.approx(0.0534)
    assert radii_of(table, strict=True) == []  # tagged: other data than the paper's


def bars(axes):
    """The filled heights of a panel, and their edges."""
    (filled,) = [patch for patch in axes.patches if patch.get_fill()]
    return filled.get_data().values, filled.get_data().edges


def drawn(*radii: Radii, scale="full"):
    figure = radius_histogram(Comparison("t", "T", (), (), scale=scale), radii)
    assert figure is not None
    return figure


def test_the_bins_are_the_papers_where_they_hold_all_radii():
    radii = spread(0.018, 0.055)
    (axes,) = drawn(Radii("a", EPS, (radii,))).axes
    values, edges = bars(axes)
    assert (len(values), edges[0], edges[-1]) == (BINS, *PRINTED)
    assert values.tolist() == np.histogram(radii, edges)[0].tolist()
    assert values.sum() == 1000
    (line,) = axes.lines
    assert set(line.get_xdata()) == {EPS}
    below = math.ceil(999 * (EPS - 0.018) / 0.037)  # of 1000 radii at equal distances
    title = f"a\nmean 0.0365 (0.0180 to 0.0550)\n{below / 10:.1f}% below 0.0314"
    assert axes.get_title() == title


def test_other_radii_have_bins_over_their_range_and_panels_share_them():
    figure = drawn(Radii("a", EPS, (spread(0, 0.12),)), Radii("b", 0.1, (spread(0.02, 0.05),)))
    edges = [bars(axes)[1] for axes in figure.axes]
    assert edges[0].tolist() == edges[1].tolist()
    assert (edges[0][0], edges[0][-1]) == (0, np.float32(0.12))
    assert [bars(axes)[0].sum() for axes in figure.axes] == [1000, 1000]
    assert [axes.lines[0].get_xdata()[0] for axes in figure.axes] == [EPS, 0.1]


def test_a_few_far_images_do_not_stretch_the_axis_and_are_told():
    far = np.append(spread(0.0, 0.03, n=999), np.float32(0.13))
    panels = drawn(Radii("a", EPS, (far,)), Radii("b", EPS, (spread(0.02, 0.05),))).axes
    edges = bars(panels[0])[1]
    assert edges[0] == pytest.approx(np.quantile(far, 0.005))
    assert edges[-1] == pytest.approx(np.quantile(spread(0.02, 0.05), 0.995))
    assert bars(panels[0])[0].sum() == np.sum((far >= edges[0]) & (far <= edges[-1])) < 1000
    assert panels[0].get_title().endswith("0.6% beyond the axis")
    assert panels[1].get_title().endswith("0.5% beyond the axis")


def test_of_several_runs_the_mean_is_filled_and_each_is_a_line():
    one, other = spread(0.02, 0.03), spread(0.03, 0.05)
    (axes,) = drawn(Radii("a", EPS, (one, other))).axes
    values, edges = bars(axes)
    each = [np.histogram(run, edges)[0] for run in (one, other)]
    assert values.tolist() == np.mean(each, axis=0).tolist()
    lines = [patch.get_data().values for patch in axes.patches if not patch.get_fill()]
    assert [line.tolist() for line in lines] == [count.tolist() for count in each]
    assert axes.get_title().endswith(", 2 runs")


@pytest.mark.parametrize("value", [0.0, EPS, 0.2])
def test_equal_radii_are_drawn(value, tmp_path):
    radii = Radii("a", EPS, (np.full(7, value, dtype=np.float32),))
    figure = drawn(radii)
    assert bars(figure.axes[0])[0].sum() == 7
    assert "0.0% below" in radii.told(bars(figure.axes[0])[1])[1] or value == 0
    assert all(path.stat().st_size > 1000 for path in save(figure, tmp_path / "f"))


@pytest.mark.parametrize("count", [1, 2, 6, 9])
def test_panels_do_not_overlap(count, tmp_path):
    label = "MWPB-AT + AWP, alpha $x_1$ 0.70 (best clean of 36)"
    radii = [Radii(f"{label} {i}", EPS, (spread(0.01, 0.1, 20000),) * 3) for i in range(count)]
    figure = drawn(*radii, scale="smoke")
    save(figure, tmp_path / "f")
    assert len(figure.axes) == count
    assert "SMOKE" in [text.get_text() for text in figure.texts]
    boxes = [box.extents for axes in figure.axes if (box := axes.get_tightbbox())]
    right = figure.bbox.width
    for i, box in enumerate(boxes):
        assert box[0] >= 0
        assert box[2] <= right
        for other in boxes[:i]:
            across = min(box[2], other[2]) - max(box[0], other[0])
            up = min(box[3], other[3]) - max(box[1], other[1])
            assert min(across, up) < 2
    assert min(axes.get_window_extent().height / figure.dpi for axes in figure.axes) > 0.4


def test_without_radii_there_is_no_figure():
    cell = Cell("mean_radius", "radius", (Sample("seed=0", 0.04, 10, "a"),), params={"eps": EPS})
    gone = Row("a", "A", "a", {"mean_radius": cell})
    plain = Row("b", "B", "b", {})
    comparison = Comparison("t", "T", ("mean_radius",), (gone, plain))
    assert radii_of(comparison) == []
    assert radius_histogram(comparison, []) is None


def test_share_and_mean_are_those_of_all_runs():
    radii = Radii("a", 0.031, (np.array([0.031, 0.02], np.float32), np.array([0.04], np.float32)))
    told = radii.told(np.array(PRINTED))
    assert told == ["mean 0.0303 (0.0200 to 0.0400)", "33.3% below 0.0310, 2 runs"]
    assert math.isclose(float(radii.pooled.mean()), 0.091 / 3, rel_tol=1e-6)
