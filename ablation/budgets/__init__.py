"""Budgets: how far each example may move in training."""

from ablation.budgets.fixed import Fixed

__all__ = ["Fixed"]
