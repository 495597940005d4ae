"""The decision boundary: soft margins, distances to the boundary, searches for its points.

Shapes: ``N`` samples, points [N, ...] in [0, 1], ``d`` their pixels, ``K`` classes, logits ``z``
[N, K], labels ``y`` [N]. Distances and radii are in pixel units. ``phi`` maps points to a scalar
per sample [N]: positive on the right side of the boundary, 0 on it.

Sources: DOSE ("Does simple trump complex?"), Elsayed et al. (2018, arXiv:1803.05598), FAB (Croce
and Hein, 2020, arXiv:1907.02044), DyART (Xu et al., 2023, arXiv:2302.03015).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.numerics.functional import (
    lp_norm,
    margin,
    per_sample,
    true_value,
    uniform_ball,
    without_true,
)
from ablation.types import Norm

Phi = Callable[[Tensor], Tensor]
Linearise = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
SearchStart = Literal["random", "clean"]

AnyNorm = Literal["linf", "l2", "l1"]
"""Norms of the distances that have a closed form; the box-constrained search has linf and l2."""
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
"""The exponent q with 1/p + 1/q = 1."""


def soft_margin(z: Tensor, y: Tensor, beta: float) -> Tensor:
    """z_y - (1/beta) log sum_{j != y} exp(beta z_j), shape [N] (DOSE, eq. 8).

    At most the hard margin, and at least that minus log(K - 1) / beta.
    """
    return true_value(z, y) - torch.logsumexp(beta * without_true(z, y), 1) / beta


class Surface(Protocol):
    """A function of logits whose zero is the boundary."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Compute phi [N] of logits [N, K] and labels [N]: positive where correctly classified."""


@dataclass(frozen=True)
class Hard:
    """phi(x) = z_y - max_{j != y} z_j (DOSE, eq. 1)."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Compute the margin [N]."""
        return margin(z, y)


@dataclass(frozen=True)
class Soft:
    """phi(x) = z_y - (1/beta) log sum_{j != y} exp(beta z_j) (DOSE, eq. 8).

    Its zero lies on the true side of the hard boundary. It acts on absolute logits: scaling the
    network moves it.

    Args:
        beta: temperature; above 0.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta:g} must be positive")

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Compute the soft margin [N]."""
        return soft_margin(z, y, self.beta)


def dual_norm(grad: Tensor, norm: AnyNorm) -> Tensor:
    """max(||grad||_q, 1e-8) of each sample, shape [N]; 1/p + 1/q = 1 for the distance's ``norm`` p.

    The bound keeps dead and saturated networks finite.
    """
    length: Tensor = torch.linalg.vector_norm(grad.flatten(1), DUAL[norm], dim=1)
    return length.clamp_min(1e-8)


def taylor_margin(phi: Tensor, grad: Tensor, norm: AnyNorm) -> Tensor:
    """Signed distance to the linearised boundary, phi / sg(||grad_x phi||_q), shape [N].

    Elsayed et al. (2018); DOSE, eq. 5. sg: the denominator is a constant in back-propagation.

    Args:
        phi: margins [N].
        grad: their gradients with respect to the points, [N, ...].
        norm: of the distance.
    """
    return phi / dual_norm(grad, norm).detach()


def hinge(distance: Tensor, gamma: float) -> Tensor:
    """max(0, gamma - R), shape [N] (DOSE, eq. 4); 0 where no boundary was found (R = inf)."""
    return F.relu(gamma - distance)


def boundary_weight(distance: Tensor, alpha: float, gamma: float) -> Tensor:
    """exp(-alpha R) 1[R < gamma] = -h'(R), shape [N]: DyART's weight; h is ``exponential``.

    For correct samples. Give all others R = inf beforehand: exp of a large negative R overflows,
    and a mask afterwards turns that into NaN.
    """
    return torch.where(distance < gamma, torch.exp(-alpha * distance), 0.0)


def exponential(distance: Tensor, alpha: float, gamma: float) -> Tensor:
    """h(R) = (1/alpha) exp(-alpha R) 1[R < gamma], shape [N] (DOSE, eq. 6).

    For correct samples; see ``boundary_weight`` about the others.
    """
    return boundary_weight(distance, alpha, gamma) / alpha


def project_hyperplane(t: Tensor, w: Tensor, b: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Project each point onto {v in [0, 1]^d: w.v = b} by the shortest way.

    FAB's box-constrained projection (Croce and Hein, 2020): all coordinates move towards the plane
    at speed 1 (linf) or |w_i| (l2) until they meet the box. Coordinates with w_i = 0 stay; if the
    plane misses the box, the others go to the corner nearest to it.

    Args:
        t: points [N, d] in [0, 1].
        w: normals [N, d].
        b: offsets [N].
        norm: of the distance.

    Returns:
        Displacements [N, d], and whether the plane meets the box [N].
    """
    return _displacement(t, w, (w * t).sum(1) - b, norm)


def _displacement(t: Tensor, w: Tensor, gap: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Project as ``project_hyperplane``, from gap = w.t - b [N]: more exact near the plane than b.

    After a time l coordinate i has moved min(l s_i, p_i), s_i its speed and p_i its way to the box,
    and the gap has shrunk by G(l) = sum_i |w_i| min(l s_i, p_i). A sum of minima is the least of
    the lines that clip the k coordinates first at the box, so G(l) = |gap| holds at the largest of
    their solutions. One sort and two cumulative sums give all lines.
    """
    scale = w.abs().amax(1, keepdim=True)  # squares of small gradients would underflow
    w = w / torch.where(scale > 0, scale, 1.0)
    need = gap[:, None].abs() / torch.where(scale > 0, scale, 1.0)
    towards = -gap.sign()[:, None] * w.sign()
    way = torch.where(towards > 0, 1 - t, t)
    speed = torch.ones_like(w) if norm == "linf" else w.abs()
    rate = w.abs() * speed

    arrival, order = torch.where(rate > 0, way / speed, 0.0).sort(1, descending=True)
    rates = rate.gather(1, order)
    slopes = rates.cumsum(1)
    gains = (rates * arrival).cumsum(1)
    feasible = need <= gains[:, -1:]
    times = (need - gains[:, -1:] + gains) / slopes.clamp_min(torch.finfo(w.dtype).tiny)
    moved = torch.where(feasible, torch.minimum(times.amax(1, keepdim=True) * speed, way), way)
    return towards * moved, feasible.squeeze(1)


@dataclass(frozen=True)
class Boundary:
    """The nearest boundary points of a batch, detached.

    Attributes:
        x: the nearest point found with phi < 0, [N, ...]; the sample itself where none was.
        distance: distance of ``x`` from the sample, [N]; inf where none was found.
        found: whether a point was found, [N], bool.
        phi: phi at the sample, [N].
        origin: where the function was linearised to get to ``x``, [N, ...].
    """

    x: Tensor
    distance: Tensor
    found: Tensor
    phi: Tensor
    origin: Tensor


@torch.no_grad()
def fab(
    phi: Phi,
    x: Tensor,
    *,
    norm: Norm,
    rng: torch.Generator,
    steps: int = 20,
    eps: float | Tensor = 8 / 255,
    start: SearchStart = "random",
    restarts: int = 1,
    eta: float = 1.05,
    beta: float = 0.9,
    alpha_max: float = 0.1,
    shared_bias: bool = False,
    official_order: bool = False,
) -> Boundary:
    """Search the zero level set of a scalar function of the input with FAB.

    Croce and Hein (2020), algorithm 1; DyART's ``FAB_scalar_boundary.py``. Each step projects the
    iterate u and the sample x onto the boundary linearised at u, overshoots both by eta, and takes
    their mean, weighted 1 - alpha to alpha; alpha is small where u is much nearer to the boundary
    than x. A point with phi < 0 is kept if it is the nearest yet, and u goes back to
    x + beta (u - x).

    Each step costs one forward and one backward: where both sources test every iterate with a
    forward of its own, here the forward that linearises at u also tests it. So the boundary is
    linearised before u goes back, not after, which is the same for linear functions; a random
    start is tested too. Outside the steps there is a forward of ``x`` and one of each restart's
    last iterate. Nothing waits for the device. ``official_order`` has the sources' order instead,
    at twice the forwards: step, test, go back, then linearise; the start is not tested.

    Samples with phi(x) <= 0 are not searched. The nearest point of a linear function comes out
    about 0.5% too far, because of eta and alpha.

    Args:
        phi: maps points [N, ...] to [N]; a sample's value depends on its own point only.
        x: samples [N, ...] in [0, 1].
        norm: of the distance.
        rng: draws the random starts.
        steps: gradient steps per restart.
        eps: a random start is min(eps, nearest distance yet) / 2 away; a number, or [N].
        start: of the first restart; the others are random.
        restarts: searches; the nearest point of all is kept.
        eta: overshoot.
        beta: share of the way from x that is left after going back.
        alpha_max: largest weight of the sample's own projection.
        shared_bias: all take alpha of the first sample that is searched, as DyART's code does.
        official_order: test and go back before linearising, as both sources do.
    """
    best = _none_found(x, phi(x))
    if len(x) == 0:
        return best
    search = _Search(x, best.phi > 0, norm, eta, beta, alpha_max, shared_bias)

    def linearise(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            value = phi(u.requires_grad_(True))
            (grad,) = torch.autograd.grad(value.sum(), u)
        value = value.detach().to(x.dtype)
        return value, value, grad

    for restart in range(restarts):
        u = x
        if start == "random" or restart > 0:
            u = _around(x, best.distance.clamp(max=eps) / 2, norm, rng)
        run = search.run_official if official_order else search.run
        best = run(phi, linearise, u, best, steps)
    return best


@torch.no_grad()
def fab_all_classes(
    logits: Phi,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    steps: int = 100,
    eta: float = 1.05,
    beta: float = 0.9,
    alpha_max: float = 0.1,
) -> Boundary:
    """Search the nearest of all classes with FAB, from the sample: AutoAttack's untargeted FAB.

    Each step linearises z_y - z_j for all K - 1 other classes, one backward each, and goes for the
    class with the smallest |z_y - z_j| / ||grad_x (z_y - z_j)||_q. Where u goes back, that is the
    distance of the point it goes back to: just beyond a boundary the nearest one is always the one
    just crossed. Otherwise as ``fab``.

    Args:
        logits: maps points [N, ...] to logits [N, K].
        x: samples [N, ...] in [0, 1].
        y: labels [N].
        norm: of the distance.
        steps: number of steps, of K - 1 gradients each.
        eta: overshoot.
        beta: share of the way from x that is left after going back.
        alpha_max: largest weight of the sample's own projection.
    """
    start = _none_found(x, margin(logits(x), y))

    def side(u: Tensor) -> Tensor:
        return margin(logits(u), y)

    def linearise(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            z = logits(u.requires_grad_(True))
            rivals = without_true(z, y).argsort(1, descending=True)[:, :-1]
            gaps = true_value(z, y)[:, None] - z.gather(1, rivals)
            totals = gaps.sum(0).unbind()
        value = margin(z.detach(), y)
        back = torch.where(per_sample(value < 0, u), (1 - beta) * (x - u.detach()), 0.0)
        nearest = x.new_full((len(x),), torch.inf)
        best_gap, best_grad = torch.zeros_like(nearest), torch.zeros_like(x)
        for gap, total in zip(gaps.detach().to(x.dtype).unbind(1), totals, strict=True):
            (grad,) = torch.autograd.grad(total, u, retain_graph=True)
            ahead = gap + (grad * back).flatten(1).sum(1)
            distance = ahead.abs() / dual_norm(grad, norm)
            nearer = distance < nearest
            nearest = torch.where(nearer, distance, nearest)
            best_gap = torch.where(nearer, gap, best_gap)
            best_grad = torch.where(per_sample(nearer, x), grad, best_grad)
        return value, best_gap, best_grad

    search = _Search(x, start.phi > 0, norm, eta, beta, alpha_max)
    return search.run(side, linearise, x, start, steps)


@torch.no_grad()
def linearised(phi: Phi, x: Tensor, *, norm: Norm) -> Boundary:
    """Project onto the boundary linearised at the sample: one forward and one backward.

    The point is on the linear boundary, not checked to be beyond the true one. Not found: samples
    with phi(x) <= 0, and those whose linear boundary misses the box.

    Args:
        phi: maps points [N, ...] to [N]; a sample's value depends on its own point only.
        x: samples [N, ...] in [0, 1].
        norm: of the distance.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        value = phi(point)
        (grad,) = torch.autograd.grad(value.sum(), point)
    value = value.detach().to(x.dtype)
    move, meets = _displacement(x.flatten(1), grad.flatten(1), value, norm)
    nearest = x + move.view_as(x)
    found = meets & (value > 0)
    distance = torch.where(found, lp_norm(nearest - x, norm), torch.inf)
    return Boundary(torch.where(per_sample(found, x), nearest, x), distance, found, value, x)


def _none_found(x: Tensor, phi: Tensor) -> Boundary:
    """Start a search: the samples themselves, at distance inf."""
    distance = x.new_full((len(x),), torch.inf)
    found = torch.zeros_like(distance, dtype=torch.bool)
    return Boundary(x.detach(), distance, found, phi.detach().to(x.dtype), x.detach())


def _around(x: Tensor, radius: Tensor, norm: Norm, rng: torch.Generator) -> Tensor:
    """Draw random points at distance ``radius`` [N], then clip them to [0, 1]."""
    draw = uniform_ball(x, torch.ones_like(radius), norm, rng)
    return (x + per_sample(radius / lp_norm(draw, norm).clamp_min(1e-12), x) * draw).clamp(0, 1)


@dataclass(frozen=True)
class _Search:
    """The loop of FAB. ``x`` [N, ...], ``searched`` [N] bool; the rest as in ``fab``."""

    x: Tensor
    searched: Tensor
    norm: Norm
    eta: float
    beta: float
    alpha_max: float
    shared_bias: bool = False

    def run(
        self, side: Phi, linearise: Linearise, u: Tensor, best: Boundary, steps: int
    ) -> Boundary:
        """Search from ``u`` and improve on ``best``.

        Args:
            side: negative [N] beyond the boundary.
            linearise: at fresh points [N, ...]: ``side``, the value [N] and the gradient [N, ...]
                of the function whose zero is aimed at.
            u: first iterate.
            best: nearest points so far.
            steps: gradients to take.
        """
        origin = self.x
        for _ in range(steps):
            value, gap, grad = linearise(u.detach())
            best = self._nearer(best, u, origin, value < 0)
            origin, u = u, self._step(u, value < 0, gap, grad)
        return self._nearer(best, u, origin, side(u) < 0)

    def run_official(
        self, side: Phi, linearise: Linearise, u: Tensor, best: Boundary, steps: int
    ) -> Boundary:
        """Search as ``run`` does, in the order of FAB_scalar_boundary.py."""
        for _ in range(steps):
            _, gap, grad = linearise(u.detach())
            origin, u = u, self._step(u, torch.zeros_like(self.searched), gap, grad)
            beyond = side(u) < 0
            best = self._nearer(best, u, origin, beyond)
            u = torch.where(per_sample(beyond, u), self.x + self.beta * (u - self.x), u)
        return best

    def _nearer(self, best: Boundary, u: Tensor, origin: Tensor, beyond: Tensor) -> Boundary:
        distance = lp_norm(u - self.x, self.norm)
        better = self.searched & beyond & (distance < best.distance)
        chosen = per_sample(better, u)
        return Boundary(
            torch.where(chosen, u, best.x),
            torch.where(better, distance, best.distance),
            best.found | better,
            best.phi,
            torch.where(chosen, origin.detach(), best.origin),
        )

    def _step(self, u: Tensor, beyond: Tensor, gap: Tensor, grad: Tensor) -> Tensor:
        sharing = self.searched if self.shared_bias else None
        return fab_step(
            self.x, u, beyond, gap, grad, self.norm, self.eta, self.beta, self.alpha_max, sharing
        )


def fab_step(
    x: Tensor,
    u: Tensor,
    beyond: Tensor,
    gap: Tensor,
    grad: Tensor,
    norm: Norm,
    eta: float = 1.05,
    beta: float = 0.9,
    alpha_max: float = 0.1,
    sharing: Tensor | None = None,
) -> Tensor:
    """Take one step of FAB: back where ``u`` is beyond, then to the mean of the two projections.

    Args:
        x: samples [N, ...] in [0, 1].
        u: iterates [N, ...].
        beyond: whether they are misclassified, [N] bool.
        gap: value at ``u`` of the function whose zero is aimed at, [N].
        grad: its gradients at ``u``, [N, ...].
        norm: of the distance.
        eta: overshoot.
        beta: share of the way from x that is left after going back.
        alpha_max: largest weight of the sample's own projection.
        sharing: all take alpha of the first sample in this mask [N].
    """
    gap_x = gap + (grad * (x - u)).flatten(1).sum(1)
    gap_u = torch.where(beyond, gap_x + beta * (gap - gap_x), gap)
    u = torch.where(per_sample(beyond, u), x + beta * (u - x), u)

    both, normals = torch.cat([u, x]).flatten(1), grad.flatten(1).repeat(2, 1)
    moves, _ = _displacement(both, normals, torch.cat([gap_u, gap_x]), norm)
    length_u, length_x = lp_norm(moves, norm).clamp_min(1e-8).chunk(2)
    alpha = (length_u / (length_u + length_x)).clamp_max(alpha_max)
    if sharing is not None:
        alpha = alpha.gather(0, sharing.int().argmax(0, keepdim=True)).expand(len(x))
    from_u, from_x = (both + eta * moves).view(2, *x.shape).unbind(0)
    weight = per_sample(alpha, x)
    return ((1 - weight) * from_u + weight * from_x).clamp(0, 1)


@torch.no_grad()
def kkt_filter(x: Tensor, x_b: Tensor, grad: Tensor, phi_b: Tensor) -> Tensor:
    """Select boundary points close to the nearest in linf by DyART's high-quality filter, [N] bool.

    DyART's ``find_bdr_Linf``. With delta = x_b - x and J the coordinates with |delta_i| > 0.8
    ||delta||_inf, a point is kept if

    - -0.3 < phi < 0: just beyond the boundary;
    - more than 90% of J has delta_i grad_i < -1e-7: there phi falls along delta, as stationarity
      of the distance asks;
    - some coordinate outside J has |grad_i| <= 0.1 (0 at the nearest point). A point without such
      coordinates is dropped, as in the code; so use this filter on images, not on toy data
      of few dimensions.

    Args:
        x: samples [N, ...].
        x_b: boundary points [N, ...].
        grad: gradients of phi at the boundary points, [N, ...].
        phi_b: phi at the boundary points, [N].
    """
    delta, grad = (x_b - x).flatten(1), grad.flatten(1)
    active = delta.abs() > 0.8 * delta.abs().amax(1, keepdim=True)
    falls = active & (delta * grad < -1e-7)
    flat = ~active & (grad.abs() <= 0.1)
    return (phi_b > -0.3) & (phi_b < 0) & (falls.sum(1) > 0.9 * active.sum(1)) & flat.any(1)
