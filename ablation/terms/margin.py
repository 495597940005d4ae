"""What all margin terms share: penalty, surface, reduction, and gradients of phi.

A margin R is the distance of a sample to the decision boundary phi = 0, in pixels. Sources: DOSE
("Does simple trump complex?"), eq. 3-9; Elsayed et al. (2018); DyART (Xu et al., 2023).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ablation.numerics.boundary import AnyNorm, Hard, Surface, dual_norm
from ablation.terms.margin_penalties import Exponential, Hinge, Penalty
from ablation.types import Views

Wrong = Literal["include", "exclude"]
"""Whether misclassified samples are pushed, by their negative Taylor margin."""
Reduction = Literal["batch", "correct"]
"""The mean over all N samples, or over the correct ones."""
BatchNorm = Literal["train", "eval"]
"""The forward that phi is taken of: the training pass, or one of evaluation mode."""


@dataclass(frozen=True)
class MarginTerm(ABC):
    """penalty(R) per sample, R its margin, shape [N].

    Args:
        penalty: of a margin.
        surface: phi, the hard or the soft logit margin (DOSE, eq. 1 and 8).
        reduction: ``batch``, the mean over all N samples; ``correct``, over the correct ones (DOSE,
            eq. 7; DyART's code divides by N). A step without a correct sample costs nothing.
    """

    penalty: Penalty = field(default_factory=Hinge)
    surface: Surface = field(default_factory=Hard)
    reduction: Reduction = "batch"

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""

    @property
    def couples(self) -> bool:
        """Whether samples depend on each other: on how many of them are correct."""
        return self.reduction == "correct"

    @abstractmethod
    def costs(self, views: Views) -> tuple[Tensor, Tensor]:
        """Compute the penalties [N], and which samples are classified correctly [N], bool."""

    def __call__(self, views: Views) -> Tensor:
        """Compute the loss per sample [N]."""
        loss, correct = self.costs(views)
        if self.reduction == "correct":
            loss = loss * views.batch.count / views.total(correct).clamp_min(1)
        return loss

    def refuse_wrong(self) -> None:
        """Check that misclassified samples may be pushed.

        Raises:
            ValueError: the penalty or the reduction is one of correct samples alone.
        """
        if isinstance(self.penalty, Exponential):
            raise ValueError(
                "wrong=include: an exponential of a negative margin has no bound; set wrong=exclude"
            )
        if self.reduction == "correct":
            raise ValueError("reduction=correct: divides by the correct samples; set wrong=exclude")


def logits_of(views: Views, view: str, bn: BatchNorm) -> Tensor:
    """Logits [R, K] of the training pass of a view, or of its evaluation-mode forward."""
    if bn == "train":
        return views.logits(view)
    return views.eval(view, input_grad=True).output.logits


def input_of(views: Views, view: str, bn: BatchNorm) -> Tensor:
    """Points [R, C, H, W] that ``logits_of`` may be differentiated with respect to."""
    return views.at(view) if bn == "train" else views.eval(view, input_grad=True).x


def gradient_norm(phi: Tensor, x: Tensor, norm: AnyNorm, exact: bool = False) -> Tensor:
    """||grad_x phi||_q [R], 1/p + 1/q = 1: the denominator of a Taylor margin (DOSE, eq. 5).

    Args:
        phi: values of the surface [R].
        x: what they were computed from, [R, ...].
        norm: p, that of the distance.
        exact: keep the graph for double backward; else the norm is a constant.
    """
    (grad,) = torch.autograd.grad(phi.sum(), x, retain_graph=True, create_graph=exact)
    return dual_norm(grad, norm).to(phi.dtype)


def anchored(value: Tensor, carrier: Tensor, slope: Tensor) -> Tensor:
    """``value`` [N] whose gradient is that of slope * carrier [N], the slope a constant."""
    return value + (carrier - carrier.detach()) * slope.detach()
