"""The searched margin: distance to a boundary point that a crafter found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ablation.terms.margin import (
    BatchNorm,
    MarginTerm,
    Wrong,
    anchored,
    gradient_norm,
    input_of,
    logits_of,
)
from ablation.types import Norm, Views

CLEAN = "nat"
"""The view that boundaries are searched around."""


@dataclass(frozen=True)
class SearchedMargin(MarginTerm):
    """penalty(R) per sample, R the distance of its boundary point (FAB; DOSE, section 3.2).

    The weights do not occur in such a distance, and DOSE does not say how it is differentiated; R
    takes the gradient of phi(x), times a constant slope. G1, G2 and G3 (``BoundaryPointMargin``)
    are the readings in the notes on DOSE.

    R, and phi in R / phi, are those of evaluation mode; grad phi is that of the train-mode pass. A
    sample whose boundary was not found costs nothing: its margin is unknown, not 0.

    Args:
        norm: of the distance.
        gradient: ``rescaled``, grad phi(x) R / phi(x) (G2); ``straight_through``, grad phi(x) /
            ||grad_x phi(x)||_q, that of the detached Taylor margin (G1).
        wrong: ``include`` pushes misclassified samples by their negative Taylor margin.
        bn: the forward that phi(x) is taken of: the training pass, or one of evaluation mode.
        points: the crafter that searched, around all samples of the batch.

    Raises:
        ValueError: misclassified samples are included in a penalty or mean of the correct ones.
    """

    norm: Norm = "linf"
    gradient: Literal["rescaled", "straight_through"] = "rescaled"
    wrong: Wrong = "exclude"
    bn: BatchNorm = "train"
    points: str = "boundary"

    def __post_init__(self) -> None:
        if self.wrong == "include":
            self.refuse_wrong()

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        return (CLEAN,) if self.bn == "train" else ()

    @property
    def differentiates(self) -> Mapping[str, Sequence[str]]:
        """The input of the training pass, if it takes grad_x phi."""
        rescaled = self.gradient == "rescaled" and self.wrong == "exclude"
        return {} if rescaled or self.bn == "eval" else {CLEAN: ("",)}

    def costs(self, views: Views) -> tuple[Tensor, Tensor]:
        """Compute the penalties [N], and which samples are classified correctly [N], bool."""
        phi = self.surface(logits_of(views, CLEAN, self.bn), views.y(CLEAN))
        aux = views.crafted(self.points).aux
        found, correct = aux["found"], aux["correct"]
        distance = torch.where(found, aux["distance"], 0.0).to(phi.dtype)
        if self.gradient == "rescaled":
            slope = torch.where(found, distance / aux["phi"].to(phi.dtype), 0.0)
        else:
            slope = 1 / self._gradient_norm(views, phi)
        margin = torch.where(found, anchored(distance, phi, slope), torch.inf)
        if self.wrong == "include":
            margin = torch.where(correct, margin, phi / self._gradient_norm(views, phi))
        return self.penalty(margin), correct

    def _gradient_norm(self, views: Views, phi: Tensor) -> Tensor:
        """||grad_x phi(x)||_q [N], a constant."""
        return gradient_norm(phi, input_of(views, CLEAN, self.bn), self.norm)
