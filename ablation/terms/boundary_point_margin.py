"""The margin whose gradient is taken at boundary points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ablation.terms.margin import MarginTerm, anchored
from ablation.types import Views


@dataclass(frozen=True)
class BoundaryPointMargin(MarginTerm):
    """penalty(R) per sample, grad R = grad phi(p) / ||grad_x phi(p)||_q at a crafter's points p.

    At boundary points this is the closed form of DyART (Xu et al., 2023; DOSE, eq. 9); at the last
    iterate of FAB it is nearly the derivative of its last projection (G3 in the notes on DOSE).

    R and the norm are those of evaluation mode; grad phi is that of the points' train-mode pass.
    Misclassified samples, and those whose boundary was not found, cost nothing.

    Args:
        points: the crafter that searched; it keeps only the points found (``subset``).
        masked: they stay in place, among those not found.
    """

    points: str = "boundary"
    masked: bool = False

    @property
    def eager(self) -> str | None:
        """Why torch.compile cannot have it."""
        return "masks BatchNorm (masked)" if self.masked else None

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        return (self.points,)

    def costs(self, views: Views) -> tuple[Tensor, Tensor]:
        """Compute the penalties [N], and which samples are classified correctly [N], bool."""
        crafted = views.crafted(self.points)
        phi = self.surface(views.logits(self.points), views.y(self.points))
        distance, correct = crafted.aux["distance"], crafted.aux["correct"]
        slope = 1 / crafted.aux["grad_norm"].to(phi.dtype)
        if crafted.counted is None:
            assert crafted.rows is not None  # noqa: S101  the component crafts a subset
            margin = anchored(distance[crafted.rows].to(phi.dtype), phi, slope)
            return views.scatter(self.points, self.penalty(margin)), correct
        known = torch.where(crafted.counted, distance, 0.0).to(phi.dtype)
        margin = torch.where(crafted.counted, anchored(known, phi, slope), torch.inf)
        return self.penalty(margin), correct
