"""PGD as a crafter: its objective, its starts, and the settings it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ablation.crafters import Ascended, AttackCrossEntropy, AttackCw, Pgd
from ablation.types import Batch

CE = {"ce": Ascended(AttackCrossEntropy())}
RADII = torch.full((200,), 0.25)


@dataclass(frozen=True)
class Pixel:
    """The value of one pixel."""

    index: int

    def bind(self, views: Any) -> Any:
        return lambda z: z[:, self.index]


def batch(x: Tensor) -> Batch:
    return Batch(x, torch.zeros(len(x), dtype=torch.long), torch.arange(len(x)))


def attacked(pgd: Pgd, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The points of an attack on the identity, and those it took gradients at."""
    seen: list[Tensor] = []

    def forward(points: Tensor) -> Tensor:
        seen.append(points.detach())
        return points

    views: Any = SimpleNamespace(batch=batch(x), forward=forward)
    return pgd(views, RADII, torch.Generator().manual_seed(0)).x, seen


def test_the_objective_is_the_sum_of_the_losses_with_their_coefficients():
    losses = {"up": Ascended(Pixel(0), 3.0), "down": Ascended(Pixel(0), -1.0)}
    losses |= {"other": Ascended(Pixel(1))}
    pgd = Pgd(losses, steps=1, step_size=1.0, start="clean", norm="l2")
    found, _ = attacked(pgd, torch.full((200, 2), 0.5))
    step = torch.tensor([2.0, 1.0])
    torch.testing.assert_close(found, 0.5 + 0.25 * (step / step.norm()).expand(200, 2))


def test_a_gaussian_start_is_a_thousandth_and_is_not_clamped():
    x = torch.zeros(200, 50)
    _, seen = attacked(Pgd(CE, steps=1, step_size=0.5), x)
    assert seen[0].std().item() == pytest.approx(0.001, rel=0.05)
    assert seen[0].min() < 0


def test_a_uniform_start_fills_the_ball_and_is_clamped():
    x = torch.full((200, 50), 0.9)
    _, seen = attacked(Pgd(CE, steps=1, step_size=0.5, start="uniform"), x)
    assert seen[0].max() == 1
    assert seen[0].min().item() == pytest.approx(0.65, abs=0.01)
    low, _ = attacked(Pgd(CE, steps=0, step_size=0.5, start="uniform"), 1 - x)
    assert low.min() == 0


def test_the_confidence_of_the_cw_attack_is_that_of_the_code():
    z = torch.tensor([[0.0, 49.0], [0.0, 51.0]])
    views: Any = SimpleNamespace(batch=batch(z))
    assert AttackCw().bind(views)(z).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": -1}, "steps=-1"), ({"step_size": -0.1}, "step_size"), ({"losses": {}}, "losses")],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Pgd(**{"losses": CE, "steps": 0, "step_size": 0.0} | settings)
