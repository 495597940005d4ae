"""Terms: what is minimised."""

from ablation.terms.boosted_cross_entropy import BoostedCrossEntropy
from ablation.terms.cross_entropy import CrossEntropy
from ablation.terms.kl import KL
from ablation.terms.margin_maximization import (
    Classes,
    Exponential,
    Hinge,
    MarginMaximization,
)

__all__ = [
    "KL",
    "BoostedCrossEntropy",
    "Classes",
    "CrossEntropy",
    "Exponential",
    "Hinge",
    "MarginMaximization",
]
