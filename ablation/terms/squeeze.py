"""Squeeze training's regulariser: predictions around an image are pulled together (ST-AT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ablation.numerics.functional import select_point, squeeze_divergence, upper_and_lower
from ablation.types import Views


@dataclass(frozen=True)
class Squeeze:
    """[KL(p_low || p_up) + KL(p_up || p_low)] / 2 between two of three views, shape [N].

    Li et al. (2023); losses.py: upper is the view with the least, lower that with the most probable
    true class, chosen for each sample. The first argument of each KL is constant.

    Args:
        clean: name of the view of the clean images.
        collaborative: name of the view of the collaborative examples.
        adversarial: name of the view of the adversarial ones.
    """

    whole: ClassVar[bool] = True
    """Compares three views sample by sample: all must hold the whole batch."""

    clean: str = "nat"
    collaborative: str = "col"
    adversarial: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.clean, self.collaborative, self.adversarial)

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        z = torch.stack([views.logits(name) for name in self.needs])
        upper, lower = (select_point(z, which) for which in upper_and_lower(z, views.batch.y))
        return squeeze_divergence(upper, lower)
