"""Crafters: attacks and boundary searches that make the points of a view."""

from ablation.crafters.boundary import BoundarySearch, FabSearch, LinearSearch
from ablation.crafters.losses import AttackCrossEntropy, AttackCw, AttackKL
from ablation.crafters.pgd import Ascended, Pgd

__all__ = [
    "Ascended",
    "AttackCrossEntropy",
    "AttackCw",
    "AttackKL",
    "BoundarySearch",
    "FabSearch",
    "LinearSearch",
    "Pgd",
]
