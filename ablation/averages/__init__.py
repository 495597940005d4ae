"""Averages: which weights are evaluated."""

from ablation.averages.ema import Ema
from ablation.averages.swa import Swa

__all__ = ["Ema", "Swa"]
