"""Loss terms: summands of the training objective, computed from views."""

from ablation.terms.boosted_cross_entropy import BoostedCrossEntropy
from ablation.terms.cross_entropy import CrossEntropy
from ablation.terms.effective_margin import (
    ApproximateNorm,
    EffectiveWeightNorm,
    ExactNorm,
    ProbedNorm,
)
from ablation.terms.input_gradient import InputGradient
from ablation.terms.kl import KL
from ablation.terms.margin_maximization import (
    Classes,
    Exponential,
    Hinge,
    MarginMaximization,
)

__all__ = [
    "KL",
    "ApproximateNorm",
    "BoostedCrossEntropy",
    "Classes",
    "CrossEntropy",
    "EffectiveWeightNorm",
    "ExactNorm",
    "Exponential",
    "Hinge",
    "InputGradient",
    "MarginMaximization",
    "ProbedNorm",
]
