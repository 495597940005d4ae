"""Robust evaluation: attacks by metric name in, accuracies and a line per example out."""

from ablation.evaluation.attacks import (
    Attack,
    AttackBase,
    AttackError,
    Ensemble,
    Family,
    Fgsm,
    Pgd,
    Predict,
    Spsa,
)
from ablation.evaluation.autoattack import ApgdCe, ApgdDlr, ApgdT, AutoAttack, FabT, Square
from ablation.evaluation.evaluate import Request, describe, evaluate
from ablation.evaluation.fast import (
    FastApgdCe,
    FastApgdDlr,
    FastApgdT,
    FastAutoAttack,
    FastFabT,
    FastSquare,
)
from ablation.evaluation.judge import Source
from ablation.evaluation.measures import (
    AdversarialMargin,
    EffectiveMargin,
    LossRise,
    MarginWeightedRadius,
    Measure,
    MeasureBase,
    SplitName,
)
from ablation.evaluation.results import Check, Entry, Evaluation

__all__ = [
    "AdversarialMargin",
    "ApgdCe",
    "ApgdDlr",
    "ApgdT",
    "Attack",
    "AttackBase",
    "AttackError",
    "AutoAttack",
    "Check",
    "EffectiveMargin",
    "Ensemble",
    "Entry",
    "Evaluation",
    "FabT",
    "Family",
    "FastApgdCe",
    "FastApgdDlr",
    "FastApgdT",
    "FastAutoAttack",
    "FastFabT",
    "FastSquare",
    "Fgsm",
    "LossRise",
    "MarginWeightedRadius",
    "Measure",
    "MeasureBase",
    "Pgd",
    "Predict",
    "Request",
    "Source",
    "SplitName",
    "Spsa",
    "Square",
    "describe",
    "evaluate",
]
