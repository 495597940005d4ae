"""Loss terms: summands of the training objective, computed from views."""

from ablation.terms.boosted_cross_entropy import BoostedCrossEntropy
from ablation.terms.boundary_point_margin import BoundaryPointMargin
from ablation.terms.cross_entropy import CrossEntropy, SmoothedCrossEntropy
from ablation.terms.effective_margin import (
    ApproximateNorm,
    EffectiveWeightNorm,
    ExactNorm,
    ProbedNorm,
)
from ablation.terms.input_gradient import InputGradient
from ablation.terms.kl import KL
from ablation.terms.logit_pairing import LogitPairing
from ablation.terms.margin import MarginTerm
from ablation.terms.margin_loss import MarginLoss
from ablation.terms.margin_penalties import Exponential, Hinge
from ablation.terms.searched_margin import SearchedMargin
from ablation.terms.squeeze import Squeeze
from ablation.terms.taylor_margin import Classes, TaylorMargin
from ablation.terms.weight_norm import WeightNorm

__all__ = [
    "KL",
    "ApproximateNorm",
    "BoostedCrossEntropy",
    "BoundaryPointMargin",
    "Classes",
    "CrossEntropy",
    "EffectiveWeightNorm",
    "ExactNorm",
    "Exponential",
    "Hinge",
    "InputGradient",
    "LogitPairing",
    "MarginLoss",
    "MarginTerm",
    "ProbedNorm",
    "SearchedMargin",
    "SmoothedCrossEntropy",
    "Squeeze",
    "TaylorMargin",
    "WeightNorm",
]
