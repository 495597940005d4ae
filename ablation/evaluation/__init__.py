"""Robust evaluation: attacks by metric name in, accuracies and a line per example out."""

from ablation.evaluation.attacks import Attack, AttackError, Ensemble, Fgsm, Pgd, Predict, Spsa
from ablation.evaluation.auto import ApgdCe, ApgdDlr, ApgdT, AutoAttack, FabT, Square
from ablation.evaluation.evaluate import Entry, Evaluation, Request, describe, evaluate

__all__ = [
    "ApgdCe",
    "ApgdDlr",
    "ApgdT",
    "Attack",
    "AttackError",
    "AutoAttack",
    "Ensemble",
    "Entry",
    "Evaluation",
    "FabT",
    "Fgsm",
    "Pgd",
    "Predict",
    "Request",
    "Spsa",
    "Square",
    "describe",
    "evaluate",
]
