"""Robust evaluation: attacks by metric name in, accuracies and a line per example out."""

from ablation.evaluation.attacks import Attack, AttackError, Ensemble, Fgsm, Pgd, Predict, Spsa
from ablation.evaluation.auto import ApgdCe, ApgdDlr, ApgdT, AutoAttack, FabT, Square
from ablation.evaluation.checks import Check
from ablation.evaluation.evaluate import Entry, Evaluation, Request, describe, evaluate
from ablation.evaluation.margin_metric import AdversarialMargin, EffectiveMargin, Measure, SplitName

__all__ = [
    "AdversarialMargin",
    "ApgdCe",
    "ApgdDlr",
    "ApgdT",
    "Attack",
    "AttackError",
    "AutoAttack",
    "Check",
    "EffectiveMargin",
    "Ensemble",
    "Entry",
    "Evaluation",
    "FabT",
    "Fgsm",
    "Measure",
    "Pgd",
    "Predict",
    "Request",
    "SplitName",
    "Spsa",
    "Square",
    "describe",
    "evaluate",
]
