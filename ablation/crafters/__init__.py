"""Crafters: attacks and boundary searches that make the points of a view."""

from ablation.crafters.bisection import Bisection
from ablation.crafters.boundary import BoundarySearch, FabSearch, LinearSearch
from ablation.crafters.losses import (
    AttackCrossEntropy,
    AttackCw,
    AttackKL,
    AttackMarginLoss,
    AttackSoftMargin,
    AttackWeighted,
)
from ablation.crafters.pgd import Ascended, Pgd
from ablation.crafters.squeeze import Partner, Squeeze

__all__ = [
    "Ascended",
    "AttackCrossEntropy",
    "AttackCw",
    "AttackKL",
    "AttackMarginLoss",
    "AttackSoftMargin",
    "AttackWeighted",
    "Bisection",
    "BoundarySearch",
    "FabSearch",
    "LinearSearch",
    "Partner",
    "Pgd",
    "Squeeze",
]
