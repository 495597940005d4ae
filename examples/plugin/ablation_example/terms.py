"""Loss terms: a plug-in's lie in its module ``terms``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ablation.types import Views


@dataclass(frozen=True)
class LogitNorm:
    """||z(view)||^2 / K, shape [N]."""

    view: str = "nat"

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Loss per sample [N]."""
        return views.scatter(self.view, views.logits(self.view).square().mean(1))
