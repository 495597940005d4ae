"""The Taylor margin: first-order distance to the decision boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ablation.numerics.boundary import AnyNorm, Hard
from ablation.numerics.functional import true_value, without_true
from ablation.terms.margin import (
    BatchNorm,
    MarginTerm,
    Wrong,
    gradient_norm,
    input_of,
    logits_of,
)
from ablation.types import Views

Classes = Literal["top", "max", "sum"]


@dataclass(frozen=True)
class TaylorMargin(MarginTerm):
    """penalty(R) per sample, R = phi / ||grad_x phi||_q (Elsayed et al., 2018; DOSE, eq. 3-5).

    The margin is of the training pass and has its precision; with runtime.precision=bf16 it errs
    by about 1%.

    Elsayed's own options, for the hard surface: all classes instead of the most likely other one
    (``max`` or ``sum`` of their penalties, over the ``top_k`` most likely), and margins at hidden
    ``layers``, whose penalties are added. Their code differs from both papers (softmax
    probabilities, distances weighted by the layer's size, clipping); it is not reproduced.

    Args:
        norm: of the distance.
        gradient: ``detached``, grad phi / ||grad_x phi||, the denominator a constant (Elsayed's
            code; DOSE, section 2.3); ``exact`` differentiates the denominator too, by double
            backward.
        wrong: ``include`` pushes misclassified samples by their negative margin.
        view: whose margins.
        bn: the forward that the margin is taken of: ``train``, the training pass, whose batch
            statistics couple the samples; ``eval``, one of evaluation mode.
        classes: ``top``, the margin to the most likely other class; ``max`` or ``sum``, see above.
        top_k: of ``max`` and ``sum``; ``None`` means all other classes.
        layers: of the network's body; "" is the input. A layer before an in-place activation
            stands for the activation.

    Raises:
        ValueError: the settings contradict one another; the message says what to set.
    """

    norm: AnyNorm = "linf"
    gradient: Literal["detached", "exact"] = "detached"
    wrong: Wrong = "include"
    view: str = "nat"
    bn: BatchNorm = "train"
    classes: Classes = "top"
    top_k: int | None = None
    layers: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        if self.wrong == "include":
            self.refuse_wrong()
        if self.bn == "eval" or not isinstance(self.surface, Hard):
            self.refuse_several()
        if not self.layers:
            raise ValueError("layers=[]: name at least the input, layers=['']")
        if self.top_k is not None and (self.top_k < 1 or self.classes == "top"):
            raise ValueError(f"top_k={self.top_k}: at least 1, and of classes=max or sum")

    def refuse_several(self) -> None:
        """Check that a sample has one margin: to the most likely other class, at the input.

        Raises:
            ValueError: it has several.
        """
        if self.classes != "top" or list(self.layers) != [""]:
            raise ValueError(
                f"classes={self.classes}, layers={self.layers}: only the hard Taylor margin of the "
                "training pass has several; disable fab_margin, soft_boundary and "
                "closed_form_gradient and set bn=train, or set classes=top and layers=['']"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        return (self.view,) if self.bn == "train" else ()

    @property
    def differentiates(self) -> Mapping[str, Sequence[str]]:
        """Layers of the training pass that it takes grad phi with respect to."""
        return {self.view: tuple(self.layers)} if self.bn == "train" else {}

    @property
    def eager(self) -> str | None:
        """Why torch.compile cannot have it."""
        if self.gradient == "exact":
            return "differentiates twice (gradient=exact)"
        return "hooks into the network (layers)" if list(self.layers) != [""] else None

    def costs(self, views: Views) -> tuple[Tensor, Tensor]:
        """Compute the penalties [N], and which samples are classified correctly [R], bool."""
        z, y = logits_of(views, self.view, self.bn), views.y(self.view)
        phi = self.surface(z, y)
        correct = phi.detach() > 0
        total = torch.zeros_like(phi)
        for layer in self.layers:
            x, exact = self._seen(views, layer), self.gradient == "exact"
            gaps = [phi] if self.classes == "top" else self._gaps(z, y)
            margins = torch.stack([gap / gradient_norm(gap, x, self.norm, exact) for gap in gaps])
            if self.wrong == "exclude":
                margins = torch.where(correct, margins, torch.inf)
            costs = self.penalty(margins)
            total = total + (costs.sum(0) if self.classes == "sum" else costs.amax(0))
        return views.scatter(self.view, total), correct

    def _gaps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """z_y - z_j of the ``top_k`` most likely other classes j, each [R]."""
        others = z.shape[1] - 1
        rivals = without_true(z, y).topk(min(self.top_k or others, others), dim=1).values
        return list((true_value(z, y)[:, None] - rivals).unbind(1))

    def _seen(self, views: Views, layer: str) -> Tensor:
        """What the logits are a function of, [R, ...]: the input, or a layer's output."""
        return views.at(self.view, layer) if layer else input_of(views, self.view, self.bn)
