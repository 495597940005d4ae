"""Logits and labels of the numeric cases."""

from __future__ import annotations

import torch

Z_ADV = torch.tensor([[2.0, 1, 0], [0.5, 1.5, 1.0]], dtype=torch.float64)
Z = torch.tensor([[3.0, 1, 0], [0, 1, 2]], dtype=torch.float64)
Y = torch.tensor([0, 2])
"""Fixture F1: C = 3, B = 2."""
