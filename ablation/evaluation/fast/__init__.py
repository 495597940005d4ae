"""AutoAttack's four attacks of our own, batched and without passes that change no verdict.

The settings are those of its standard version, the searches follow its reference code. What makes
them cheaper: an example leaves the batch at the point that breaks it, no forward or backward is
made whose result is not used, and the search runs on a copy of the network with BatchNorm folded.
Every point is judged by the network itself.
"""

from ablation.evaluation.fast.apgd import FastApgdCe, FastApgdDlr, FastApgdT
from ablation.evaluation.fast.ensemble import FastAutoAttack
from ablation.evaluation.fast.fab import FastFabT
from ablation.evaluation.fast.square import FastSquare

__all__ = [
    "FastApgdCe",
    "FastApgdDlr",
    "FastApgdT",
    "FastAutoAttack",
    "FastFabT",
    "FastSquare",
]
