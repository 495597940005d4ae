"""A comparison's figures, one text column wide; smoke comparisons carry a watermark."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

WIDTH = 3.4
"""Inches: a column of a two-column paper, or a little over half a text width."""
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00",
)  # fmt: skip
"""Okabe and Ito's palette without its yellow, which is too light for small markers."""
MARKERS = "osD^vP*X"
GREY = "0.45"
LABELLED = 4
"""Largest deviations that get a label."""
STYLE = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # both come with matplotlib
    "mathtext.fontset": "stix",
    "font.size": 8.5,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 0.8,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}
STRONGEST = ("aa", "apgd_ce", r"pgd\d+", "cw", "fab", "square", "spsa", "fgsm")
"""Patterns of robust metrics, the preferred first."""
