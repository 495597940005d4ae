"""Terms: what is minimised."""

from ablation.terms.boosted_cross_entropy import BoostedCrossEntropy
from ablation.terms.cross_entropy import CrossEntropy
from ablation.terms.kl import KL

__all__ = ["KL", "BoostedCrossEntropy", "CrossEntropy"]
