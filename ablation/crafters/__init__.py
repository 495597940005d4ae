"""Crafters: attacks and boundary searches that make the points of a view."""

from ablation.crafters.boundary import BoundarySearch, FabSearch, LinearSearch
from ablation.crafters.losses import AttackCrossEntropy, AttackCw, AttackKL, AttackMarginLoss
from ablation.crafters.pgd import Ascended, Pgd

__all__ = [
    "Ascended",
    "AttackCrossEntropy",
    "AttackCw",
    "AttackKL",
    "AttackMarginLoss",
    "BoundarySearch",
    "FabSearch",
    "LinearSearch",
    "Pgd",
]
