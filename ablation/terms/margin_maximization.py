"""Margin maximisation: from Elsayed et al. to DyART, in four orthogonal choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from ablation.numerics.boundary import AnyNorm, Hard, Surface, dual_norm, exponential, hinge
from ablation.numerics.functional import true_value, without_true
from ablation.types import Fraction, Views

Estimator = Literal["taylor", "search"]
Carrier = Literal["detached", "exact", "straight_through", "rescaled", "at_points"]
Classes = Literal["top", "max", "sum"]


class Penalty(Protocol):
    """What a margin costs."""

    def __call__(self, distance: Tensor) -> Tensor:
        """Loss of margins of any shape; 0 at inf."""


@dataclass(frozen=True)
class Hinge:
    """max(0, gamma - R) (DOSE, eq. 4)."""

    gamma: Fraction = 16 / 255

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma={self.gamma:g} must be positive: no margin lies below it")

    def __call__(self, distance: Tensor) -> Tensor:
        """See ``Penalty``."""
        return hinge(distance, self.gamma)


@dataclass(frozen=True)
class Exponential:
    """(1/alpha) exp(-alpha R) 1[R < gamma] (DOSE, eq. 6)."""

    alpha: float = 3.0
    gamma: Fraction = 16 / 255

    def __post_init__(self) -> None:
        if self.gamma <= 0 or self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha:g} and gamma={self.gamma:g} must be positive")

    def __call__(self, distance: Tensor) -> Tensor:
        """See ``Penalty``."""
        return exponential(distance, self.alpha, self.gamma)


@dataclass(frozen=True)
class MarginMaximization:
    """penalty(R) per sample, R the distance to the boundary phi = 0, in pixels, shape [N].

    DOSE, eq. 3-8 ("Does simple trump complex?"); Elsayed et al. (2018); DyART (Xu et al., 2023).
    Four choices:

    - **surface**: phi is the hard or the soft logit margin.
    - **estimator**: ``taylor``, R = phi / ||grad_x phi||_q, or ``search``, the distance of the
      point that the crafter ``points`` found (FAB).
    - **penalty**: hinge or exponential.
    - **gradient**, of R with respect to the weights, which a distance to a found point lacks:
      ``detached`` grad phi(x) / ||grad_x phi(x)||, the denominator a constant (Elsayed's code,
      DOSE 2.3); ``exact`` differentiates the denominator too, by double backward. For a search:
      ``straight_through``, as ``detached`` (G1 in the notes on DOSE, which does not say what it
      does); ``rescaled``, grad phi(x) R / phi(x) (G2); ``at_points``, grad phi(p) /
      ||grad_x phi(p)|| at the crafter's points p: the closed form of DyART at boundary points,
      and at the last iterate nearly the derivative of FAB's last projection (G3).

    R of a search, the norm at its points and phi in R / phi are those of evaluation mode; the
    gradient is that of the train-mode pass.

    The Taylor margin is of the training pass and has its precision; with runtime.precision=bf16 it
    errs by about 1%.

    A sample whose boundary was not found costs nothing: its margin is unknown, not 0. Misclassified
    samples cost nothing either, unless ``wrong`` includes them with their negative Taylor margin.

    Elsayed's own options, for the Taylor margin of the hard surface: all classes instead of the
    most likely other one (``max`` or ``sum`` of their penalties, over the ``top_k`` most likely),
    and margins at hidden ``layers``, whose penalties are added. Their code differs from both papers
    (softmax probabilities, distances weighted by the layer's size, clipping); it is not reproduced.

    Args:
        penalty: of a margin.
        surface: whose zero is the boundary.
        estimator: see above.
        gradient: see above.
        norm: of the distance.
        wrong: are misclassified samples pushed? Only by their Taylor margin.
        reduction: ``batch``, the mean over all N samples; ``correct``, over the correct ones (DOSE,
            eq. 7; DyART's code divides by N). A step without a correct sample costs nothing.
        view: whose margins; a search is around ``nat``.
        points: the crafter that searched.
        bn: the pass that the Taylor margin is taken of: the training pass, whose batch statistics
            couple the samples, or one of evaluation mode.
        classes: see above.
        top_k: of ``max`` and ``sum``; ``None`` means all other classes.
        layers: of the network's body; "" is the input. A layer before an in-place activation
            stands for the activation.
    """

    penalty: Penalty = field(default_factory=Hinge)
    surface: Surface = field(default_factory=Hard)
    estimator: Estimator = "taylor"
    gradient: Carrier = "detached"
    norm: AnyNorm = "linf"
    wrong: Literal["include", "exclude"] = "include"
    reduction: Literal["batch", "correct"] = "batch"
    view: str = "nat"
    points: str = "boundary"
    bn: Literal["train", "eval"] = "train"
    classes: Classes = "top"
    top_k: int | None = None
    layers: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        for contradicts, message in CONTRADICTIONS:
            if contradicts(self):
                raise ValueError(message.format(t=self))

    @property
    def searched(self) -> bool:
        """Does it read a crafter's points?"""
        return self.estimator == "search" or self.gradient == "at_points"

    @property
    def needs(self) -> tuple[str, ...]:
        """Train-mode views it reads."""
        if self.gradient == "at_points":
            return (self.points,)
        return (self.view,) if self.bn == "train" else ()

    @property
    def differentiates(self) -> Mapping[str, Sequence[str]]:
        """A Taylor margin needs grad_x of its pass."""
        none = self.gradient == "rescaled" and self.wrong == "exclude"
        if none or self.gradient == "at_points" or self.bn == "eval":
            return {}
        return {self.view: tuple(self.layers)}

    @property
    def eager(self) -> str | None:
        """Why it cannot be compiled."""
        if self.gradient == "exact":
            return "differentiates twice (gradient=exact)"
        return "hooks into the network (layers)" if list(self.layers) != [""] else None

    def __call__(self, views: Views) -> Tensor:
        """Loss per sample [N]."""
        if self.gradient == "at_points":
            loss, correct = self._at_points(views)
        elif self.estimator == "search":
            loss, correct = self._searched(views)
        else:
            loss, correct = self._taylor(views)
        if self.reduction == "correct":
            loss = loss * len(correct) / correct.sum().clamp_min(1)
        return loss

    def _at_points(self, views: Views) -> tuple[Tensor, Tensor]:
        found = views.crafted(self.points)
        rows = found.rows
        assert rows is not None  # noqa: S101  the component crafts a subset
        phi = self.surface(views.logits(self.points), views.y(self.points))
        distance = found.aux["distance"][rows].to(phi.dtype)
        margin = anchored(distance, phi, 1 / found.aux["grad_norm"].to(phi.dtype))
        return views.scatter(self.points, self.penalty(margin)), found.aux["correct"]

    def _searched(self, views: Views) -> tuple[Tensor, Tensor]:
        phi = self._phi(views)
        aux = views.crafted(self.points).aux
        found, correct = aux["found"], aux["correct"]
        distance = torch.where(found, aux["distance"], 0.0).to(phi.dtype)
        if self.gradient == "rescaled":
            slope = torch.where(found, distance / aux["phi"].to(phi.dtype), 0.0)
        else:
            slope = 1 / self._norms(phi, self._seen(views))
        margin = torch.where(found, anchored(distance, phi, slope), torch.inf)
        if self.wrong == "include":
            taylor = phi / self._norms(phi, self._seen(views))
            margin = torch.where(correct, margin, taylor)
        return self.penalty(margin), correct

    def _taylor(self, views: Views) -> tuple[Tensor, Tensor]:
        phi = self._phi(views)
        correct = phi.detach() > 0
        total = torch.zeros_like(phi)
        for layer in self.layers:
            at = self._seen(views, layer)
            margins = torch.stack([gap / self._norms(gap, at) for gap in self._gaps(views, phi)])
            if self.wrong == "exclude":
                margins = torch.where(correct, margins, torch.inf)
            costs = self.penalty(margins)
            total = total + (costs.sum(0) if self.classes == "sum" else costs.amax(0))
        return views.scatter(self.view, total), correct

    def _gaps(self, views: Views, phi: Tensor) -> list[Tensor]:
        """phi, or z_y - z_j of the ``top_k`` most likely other classes j, each [R]."""
        if self.classes == "top":
            return [phi]
        z, y = self._logits(views), views.y(self.view)
        others = z.shape[1] - 1
        rivals = without_true(z, y).topk(min(self.top_k or others, others), dim=1).values
        return list((true_value(z, y)[:, None] - rivals).unbind(1))

    def _logits(self, views: Views) -> Tensor:
        if self.bn == "train":
            return views.logits(self.view)
        return views.eval(self.view, input_grad=True).output.logits

    def _phi(self, views: Views) -> Tensor:
        """Values of the surface [R] that reach the weights."""
        return self.surface(self._logits(views), views.y(self.view))

    def _seen(self, views: Views, layer: str = "") -> Tensor:
        """What the logits are a function of, [R, ...]."""
        if self.bn == "train":
            return views.at(self.view, layer)
        return views.eval(self.view, input_grad=True).x

    def _norms(self, phi: Tensor, x: Tensor) -> Tensor:
        """||grad_x phi||_q [R], a constant unless ``exact``."""
        exact = self.gradient == "exact"
        (grad,) = torch.autograd.grad(phi.sum(), x, retain_graph=True, create_graph=exact)
        return dual_norm(grad, self.norm).to(phi.dtype)


def _several(term: MarginMaximization) -> bool:
    """Margins that only the hard Taylor margin has: of several classes, at hidden layers."""
    return term.classes != "top" or list(term.layers) != [""]


CONTRADICTIONS: list[tuple[Callable[[MarginMaximization], bool], str]] = [
    (
        lambda t: t.estimator == "search" and t.gradient in ("detached", "exact"),
        "gradient={t.gradient}: is a Taylor margin's, and the margin is searched; set "
        "component/fab_margin=disabled or leave it at detached",
    ),
    (
        lambda t: t.estimator == "taylor" and t.gradient in ("straight_through", "rescaled"),
        "gradient={t.gradient}: is a searched margin's; set estimator=search",
    ),
    (
        lambda t: t.gradient == "at_points" and t.wrong == "include",
        "wrong=include: a misclassified sample has no boundary point; set wrong=exclude",
    ),
    (
        lambda t: t.gradient == "at_points" and t.bn == "eval",
        "bn=eval: the gradient is that of the points' training pass; set bn=train",
    ),
    (
        lambda t: isinstance(t.penalty, Exponential) and t.wrong == "include",
        "wrong=include: an exponential of a negative margin has no bound; set wrong=exclude",
    ),
    (
        lambda t: t.reduction == "correct" and t.wrong == "include",
        "reduction=correct: divides by the correct samples; set wrong=exclude",
    ),
    (
        lambda t: _several(t) and (t.searched or t.bn == "eval" or not isinstance(t.surface, Hard)),
        "classes={t.classes}, layers={t.layers}: only the hard Taylor margin of the training pass "
        "has several; disable fab_margin, soft_boundary and closed_form_gradient and set bn=train, "
        "or set classes=top and layers=['']",
    ),
    (lambda t: not t.layers, "layers=[]: name at least the input, layers=['']"),
    (
        lambda t: t.top_k is not None and (t.top_k < 1 or t.classes == "top"),
        "top_k={t.top_k}: at least 1, and of classes=max or sum",
    ),
    (
        lambda t: t.searched and t.norm == "l1",
        "norm=l1: the search projects in linf and l2",
    ),
    (
        lambda t: t.searched and t.view != "nat",
        "view={t.view}: the search is around the clean images; set view=nat",
    ),
]
"""(does it contradict itself?, message), formatted with ``t``."""


def anchored(value: Tensor, carrier: Tensor, slope: Tensor) -> Tensor:
    """``value`` [N] whose gradient is that of slope * carrier [N], the slope a constant."""
    return value + (carrier - carrier.detach()) * slope.detach()
