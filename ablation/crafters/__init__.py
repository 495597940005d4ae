"""Crafters: where to look in input space."""

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
