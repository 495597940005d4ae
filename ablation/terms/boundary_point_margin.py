"""The margin whose gradient is taken at boundary points."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    points: str = "boundary"

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        return (self.points,)

    def costs(self, views: Views) -> tuple[Tensor, Tensor]:
        """Compute the penalties [N], and which samples are classified correctly [N], bool."""
        crafted = views.crafted(self.points)
        assert crafted.rows is not None  # noqa: S101  the component crafts a subset
        phi = self.surface(views.logits(self.points), views.y(self.points))
        distance = crafted.aux["distance"][crafted.rows].to(phi.dtype)
        margin = anchored(distance, phi, 1 / crafted.aux["grad_norm"].to(phi.dtype))
        return views.scatter(self.points, self.penalty(margin)), crafted.aux["correct"]
