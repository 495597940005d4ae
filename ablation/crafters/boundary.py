"""Boundary searches: points on the decision boundary by FAB or by one linear step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ablation.numerics.boundary import (
    Boundary,
    Hard,
    Phi,
    SearchStart,
    Surface,
    dual_norm,
    fab,
    kkt_filter,
    linearised,
)
from ablation.ranks import present
from ablation.types import AttackMode, Crafted, Norm, Views

Point = Literal["boundary", "last_iterate"]


class Search(Protocol):
    """Algorithm of a boundary search."""

    @property
    def gradients(self) -> int:
        """Number of gradients with respect to the input that a search takes."""

    def __call__(
        self, phi: Phi, x: Tensor, eps: Tensor, norm: Norm, rng: torch.Generator
    ) -> Boundary:
        """Search the nearest points with phi = 0 of ``x`` [N, ...]; ``eps`` [N] bounds starts."""


@dataclass(frozen=True)
class FabSearch:
    """FAB (Croce and Hein, 2020) as DyART runs it; see ``ablation.numerics.boundary.fab``.

    Args:
        steps: gradient steps per restart.
        start: ``random``, at half of eps from the sample, as DyART's code; or ``clean``.
        restarts: number of searches; the nearest point of all is kept.
        eta: overshoot.
        beta: share of the way from the sample that is left after going back.
        alpha_max: largest weight of the sample's own projection.
        shared_bias: all samples take alpha of the first, as DyART's code does.
        official_order: test and go back before linearising, as both sources do; twice the forwards.
    """

    steps: int = 20
    start: SearchStart = "random"
    restarts: int = 1
    eta: float = 1.05
    beta: float = 0.9
    alpha_max: float = 0.1
    shared_bias: bool = False
    official_order: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(
                f"steps={self.steps}, restarts={self.restarts}: FAB takes at least one step of "
                f"one restart; without a search use the Taylor margin (component/fab_margin="
                f"disabled)"
            )
        if not (self.eta >= 1 and 0 < self.beta <= 1 and 0 <= self.alpha_max <= 1):
            raise ValueError(
                f"eta={self.eta:g} must be at least 1, beta={self.beta:g} in (0, 1], "
                f"alpha_max={self.alpha_max:g} in [0, 1]"
            )

    @property
    def couples(self) -> bool:
        """Whether samples depend on each other: all on the first."""
        return self.shared_bias

    @property
    def gradients(self) -> int:
        """Number of gradients with respect to the input: one per step and restart."""
        return self.steps * self.restarts

    def __call__(
        self, phi: Phi, x: Tensor, eps: Tensor, norm: Norm, rng: torch.Generator
    ) -> Boundary:
        """Search the boundary points of ``x`` [N, ...] by FAB; ``eps`` [N] bounds random starts."""
        return fab(
            phi,
            x,
            norm=norm,
            rng=rng,
            steps=self.steps,
            eps=eps,
            start=self.start,
            restarts=self.restarts,
            eta=self.eta,
            beta=self.beta,
            alpha_max=self.alpha_max,
            shared_bias=self.shared_bias,
            official_order=self.official_order,
        )


@dataclass(frozen=True)
class LinearSearch:
    """One projection onto the boundary linearised at the sample: a Taylor margin's point."""

    @property
    def gradients(self) -> int:
        """Number of gradients with respect to the input: one."""
        return 1

    def __call__(
        self, phi: Phi, x: Tensor, eps: Tensor, norm: Norm, rng: torch.Generator
    ) -> Boundary:
        """Project ``x`` [N, ...] onto its linearised boundary; ``eps`` and ``rng`` are not used."""
        return linearised(phi, x, norm=norm)


@dataclass(frozen=True)
class BoundarySearch:
    """Crafter of boundary points of correctly classified samples, in evaluation mode by default.

    ``aux`` holds, per sample of the batch [N]: ``correct`` (phi > 0), ``found``, ``distance`` (inf
    where not found) and ``phi`` at the sample. ``facts`` holds which are correct and found (and
    kept by the filter), [N].

    Without ``subset`` the points are those of the whole batch, the sample itself where none was
    found, and nothing waits for the device. With ``subset`` they are those found, for a
    train-mode pass of their own, and ``aux`` has ``grad_norm`` [R], ||grad_x phi||_q there. A
    single point is left out: BatchNorm cannot normalise it. How many they are the host has to wait
    for on a GPU, once a step. ``masked`` points stay in place, [N], and ``counted`` says which were
    found: nothing waits, and the numbers are the same up to rounding.

    Args:
        search: algorithm of the search.
        surface: function of the logits whose zero is the boundary.
        norm: of the distance.
        subset: only the samples whose point was found.
        point: ``boundary``, or where the surface was linearised last on the way there.
        filtered: keep points that satisfy DyART's quality conditions (``kkt_filter``).
        bn: BatchNorm mode of the model during the search.
        masked: a ``subset`` stays in place.
    """

    exact: ClassVar[bool] = True
    """Searched in full precision: the surface is followed to where it is zero."""

    search: Search
    surface: Surface = field(default_factory=Hard)
    norm: Norm = "linf"
    subset: bool = False
    point: Point = "boundary"
    filtered: bool = False
    bn: AttackMode = "eval"
    masked: bool = False

    @property
    def steps(self) -> int:
        """Gradients with respect to the input, for estimates of time."""
        return self.search.gradients + int(self.subset)

    @property
    def couples(self) -> bool:
        """Whether samples depend on each other: a single point of the batch is left out."""
        return self.subset

    def __call__(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Search the boundary around the clean batch; ``eps`` [N] bounds random starts."""
        return self.select(self.search_all(views, eps, rng))

    def search_all(self, views: Views, eps: Tensor, rng: torch.Generator) -> Crafted:
        """Search the points of all samples, [N]; ``grad_norm`` is of all of them, too."""
        x, y = views.batch.x, views.batch.y

        def phi(points: Tensor) -> Tensor:
            return self.surface(views.forward(points), y)

        nearest = self.search(phi, x, eps, self.norm, rng)
        aux = {"correct": nearest.phi > 0, "distance": nearest.distance, "phi": nearest.phi}
        points = nearest.x if self.point == "boundary" else nearest.origin
        facts = {"correct": aux["correct"], "found": nearest.found}
        if not self.subset:
            return Crafted(points, None, {**aux, "found": nearest.found}, facts)
        value, grad = _linearise(phi, points)
        kept = nearest.found
        if self.filtered:
            kept = kept & kkt_filter(x, points, grad, value)
            facts["kept"] = kept
        aux |= {"found": kept, "grad_norm": dual_norm(grad, self.norm)}
        return Crafted(points, None, aux, facts)

    def select(self, crafted: Crafted) -> Crafted:
        """Leave the points that were found, if a ``subset`` is asked for."""
        kept = crafted.aux["found"]
        if not self.subset:
            return crafted
        if self.masked:
            return replace(crafted, counted=kept & (kept.sum() > 1))
        rows = torch.nonzero(kept).squeeze(1)
        rows = rows if present().total(len(rows)) > 1 else rows[:0]
        aux = {**crafted.aux, "grad_norm": crafted.aux["grad_norm"][rows]}
        return replace(crafted, x=crafted.x[rows], rows=rows, aux=aux)


def _linearise(phi: Phi, points: Tensor) -> tuple[Tensor, Tensor]:
    """Compute phi [N] at the points and its gradient [N, ...]."""
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        value = phi(points)
        (grad,) = torch.autograd.grad(value.sum(), points)
    return value.detach(), grad
