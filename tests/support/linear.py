"""Linear models and circles with known boundaries."""

from __future__ import annotations

import torch
from torch import Tensor

GAMMA = 16 / 255


def array(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: object, atol: float = 1e-7) -> None:
    torch.testing.assert_close(actual, array(expected), atol=atol, rtol=0)


W3 = array([[1, -2, 0.5, 0.3], [-0.5, 1, 0.25, -0.6], [0.2, 0.4, -1, 0.8]])
B3 = array([0.1, -0.2, 0.05])
X0, Y0 = array([[0.6, 0.3, 0.5, 0.4]]), torch.tensor([0])
CIRC = array([[0.6, 0.55]])
