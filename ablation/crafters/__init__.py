"""Crafters: where to look in input space."""

from ablation.crafters.losses import AttackCrossEntropy, AttackCw, AttackKL
from ablation.crafters.pgd import Ascended, Pgd

__all__ = ["Ascended", "AttackCrossEntropy", "AttackCw", "AttackKL", "Pgd"]
