"""Weight decay as a term of the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ablation.types import Views


@dataclass(frozen=True)
class WeightNorm:
    """||W||^2 / 2 over the weights of convolutions and linear layers, for each sample, shape [N].

    Its gradient is what an optimiser's weight decay of 1 adds, but for BatchNorm and biases.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads: none."""
        return ()

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]: the same for all."""
        squares = [weight.square().sum() for weight in views.weights()]
        return (torch.stack(squares).sum() / 2).expand(len(views.batch.y))
