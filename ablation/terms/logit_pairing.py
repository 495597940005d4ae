"""mHuber between clean and adversarial logits, or between their moving averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ablation.numerics.functional import modified_huber
from ablation.types import MemorySpec, Views

MEMORY = "logit_difference"


@dataclass(frozen=True)
class LogitPairing:
    """mean_c mHuber(D_c), shape [N] (LMA, sections 3 and 4.3, Algorithm 1).

    D = (1 - w) D_before + w (z(view) - z(clean)): of the two moving averages only their difference
    matters, so it alone is remembered, in fp32, from 0. The past is constant; gradient flows
    through both logits of this step. Averages go on across epochs and phases.

    Args:
        alpha: where mHuber turns from a bowl into a cone, at |D| = alpha pi / 2.
        weight: w, of this step's difference, in (0, 1]; 1 remembers nothing.
        index: the average of a ``position`` in the batch, whatever image stands there
            (Algorithm 1), or of a ``sample`` of the training set.
        clean: name of the view of the clean images.
        view: name of the view that is paired with it.
    """

    whole: ClassVar[bool] = True
    """Compares two views sample by sample: both must hold the whole batch."""

    alpha: float = 5.345
    weight: float = 1.0
    index: Literal["position", "sample"] = "position"
    clean: str = "nat"
    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the term reads."""
        return (self.clean, self.view)

    @property
    def memory(self) -> Mapping[str, MemorySpec]:
        """Declare the averaged difference; nothing where there is no average."""
        if self.weight == 1:
            return {}
        scope: Literal["example", "position"] = "example" if self.index == "sample" else "position"
        return {MEMORY: MemorySpec(scope, ("classes",))}

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        return modified_huber(self._difference(views), self.alpha).mean(1)

    def commit(self, views: Views) -> Mapping[str, Tensor]:
        """Return the averaged difference [N, K] after this step."""
        return {} if self.weight == 1 else {MEMORY: self._difference(views)}

    def _difference(self, views: Views) -> Tensor:
        now = views.logits(self.view) - views.logits(self.clean)
        if self.weight == 1:
            return now
        return (1 - self.weight) * views.memory(MEMORY) + self.weight * now
