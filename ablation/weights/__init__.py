"""Weights: how much each example counts in a term."""

from ablation.weights.mail import ProbabilisticMargin
from ablation.weights.mart import OneMinusTrueProbability

__all__ = ["OneMinusTrueProbability", "ProbabilisticMargin"]
