"""Input gradient regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ablation.numerics.functional import cross_entropy
from ablation.numerics.penalties import squared_gradient
from ablation.types import Views


@dataclass(frozen=True)
class InputGradient:
    """||grad_x CE||_2^2 of a view, shape [N] (Ross and Doshi-Velez, 2018; IGR in the EMR paper).

    By double backward, of the plain logits in evaluation mode as for EMR; the original networks
    have no BatchNorm. Unlike EMR's penalty it vanishes on samples classified with confidence.

    Args:
        view: name of the view whose points are penalised.
        scale: ``sample``, the mean over the samples. ``code``, that over 2 N: the original code
            (dtak/adversarial-robustness-public) takes half the square of the gradient of the
            batch's mean.
    """

    view: str = "nat"
    scale: Literal["sample", "code"] = "sample"

    eager: ClassVar[str] = "differentiates twice"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name no train-mode view: the forward is one of evaluation mode."""
        return ()

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        evaluated = views.eval(self.view, input_grad=True)
        loss = cross_entropy(evaluated.output.logits, views.y(self.view))
        penalty = views.scatter(self.view, squared_gradient(loss, evaluated.x))
        return penalty / (2 * views.batch.count) if self.scale == "code" else penalty
