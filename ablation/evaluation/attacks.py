"""The attacks of this package: FGSM, PGD (on cross-entropy or the CW margin) and SPSA.

Shapes: ``x`` [N, C, H, W] in [0, 1], ``y`` [N]; ``eps`` in pixels. The caller puts the network in
evaluation mode and freezes its parameters. An attack class declares its ``kind`` and ``family``:
masking checks, cost estimates and records go by these, never by a list of attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ablation.numerics.functional import (
    cross_entropy,
    cw_loss,
    gaussian_noise,
    margin,
    pgd,
    project,
    uniform_ball,
)
from ablation.types import Fraction, Norm, Start, StepSize

Predict = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] to logits [N, K]."""

Family = Literal[
    "one step", "fixed steps", "adaptive steps", "minimum norm", "black box", "ensemble"
]
"""How an attack searches: one gradient step; gradient steps of fixed length; gradient steps whose
length adapts (APGD); for the nearest boundary point; by queries alone; with several attacks in
turn, as an ``Ensemble``. All but ``black box`` use gradients."""

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "cw": cw_loss}


class AttackError(RuntimeError):
    """An attack returned points outside its ball or the pixel range: a bug, never a result."""


class Attack(Protocol):
    """Search for a misclassified point near each image; see ``AttackBase``, which has defaults."""

    kind: ClassVar[str]
    family: ClassVar[Family]

    @property
    def eps(self) -> float | None:
        """The attack's own perturbation radius in pixels; ``None`` inherits the evaluation's."""

    @property
    def norm(self) -> Norm | None:
        """The attack's own norm; ``None`` inherits the evaluation's."""

    @property
    def n(self) -> int | None:
        """The most examples to attack; ``None`` attacks all."""

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings that the metric's name leaves open, as plain data.

        Masking checks and cost estimates read ``loss``, ``steps``, ``targets``, ``restarts``,
        ``start`` and ``queries``; steps that are missing are assumed.

        Args:
            eps: perturbation radius in effect, in pixels.
            classes: of the network.

        Raises:
            InputError: the attack cannot be run on so many classes.
        """

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Return points within ``eps`` of ``x``, [N, C, H, W]; the caller judges success.

        Args:
            predict: the network.
            x: correctly classified images.
            y: their labels.
            eps: perturbation radius in pixels.
            norm: of the ball.
            rng: seeded anew for every batch, so that a result does not depend on earlier ones.
        """


@runtime_checkable
class RandomStart(Protocol):
    """Attack from random starts that the caller may draw.

    ``evaluate`` draws it from a stream of each image's own: a verdict depends neither on the
    batch size nor on which other images are attacked, and two networks see the same starts.
    """

    def offsets(self, like: Tensor, eps: float, norm: Norm, rng: torch.Generator) -> Tensor | None:
        """Draw starts minus images for ``like`` [M, C, H, W]: [restarts, M, C, H, W].

        ``None`` means that the attack starts at the image.
        """

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        eps: float,
        norm: Norm,
        rng: torch.Generator,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Search as ``Attack`` does; without ``offsets`` the start is drawn from ``rng``."""


@runtime_checkable
class Frugal(Protocol):
    """Search on a cheaper network, with random numbers of each image's own.

    ``evaluate`` provides both: a verdict then depends neither on the batch size nor on which other
    images are attacked.
    """

    def hunt(
        self,
        predict: Predict,
        searched: Predict,
        x: Tensor,
        y: Tensor,
        eps: float,
        norm: Norm,
        streams: Sequence[int],
    ) -> Tensor:
        """Search as ``Attack`` does.

        Args:
            predict: the network; no example is done that it still classifies correctly.
            searched: computes the same up to rounding, at less cost.
            x: images [N, C, H, W].
            y: their labels [N].
            eps: radius in pixels.
            norm: of the ball.
            streams: a seed per image.
        """


@runtime_checkable
class Ensemble(Protocol):
    """Run attacks in turn, each on the examples that all before it left robust."""

    def parts(self, classes: int) -> Mapping[str, Attack]:
        """Return the attacks in order, by name, for a network with so many classes."""


def check_common(eps: float | None, n: int | None) -> None:
    """Refuse a negative perturbation radius or an empty subset.

    Raises:
        ValueError: naming key, value and remedy.
    """
    if eps is not None and eps < 0:
        raise ValueError(f"eps={eps:g}: a radius is not negative; null inherits evaluation.eps")
    if n is not None and n < 1:
        raise ValueError(f"n={n}: attack at least one example; null attacks all")


def check_positive(**counts: int | float) -> None:
    """Refuse values below or equal to zero.

    Raises:
        ValueError: naming the first one.
    """
    for name, value in counts.items():
        if value <= 0:
            raise ValueError(f"{name}={value:g} must be positive")


@dataclass(frozen=True, kw_only=True)
class AttackBase:
    """Hold the settings that every attack has.

    Attributes:
        kind: the attack's name in results; never changed, saved evaluations are compared by it.
        family: how it searches; decides which masking checks it takes part in.

    Args:
        eps: perturbation radius in pixels; ``None`` inherits the evaluation's.
        norm: of the ball; ``None`` inherits the evaluation's.
        n: attack at most so many examples; ``None`` attacks all.
    """

    kind: ClassVar[str]
    family: ClassVar[Family]

    eps: Fraction | None = None
    norm: Norm | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        check_common(self.eps, self.n)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """Return the attack's own settings; see ``Attack``."""
        del eps, classes
        return {name: value for name, value in vars(self).items() if name not in _COMMON}


_COMMON = tuple(setting.name for setting in fields(AttackBase))


@dataclass(frozen=True)
class Fgsm(AttackBase):
    """Take one step of length eps along the gradient; no random start.

    x' = clip_[0,1](x + eps * direction(grad_x CE)) (Goodfellow et al., 2015).
    """

    kind: ClassVar[str] = "fgsm"
    family: ClassVar[Family] = "one step"

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` is not used."""
        del rng
        radius = x.new_full((len(x),), eps)
        return pgd(lambda p: cross_entropy(predict(p), y), x, x, radius, radius, 1, norm)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del classes
        return {"steps": 1, "step_size": eps, "start": "clean", "restarts": 1, "loss": "ce"}


@dataclass(frozen=True)
class Pgd(AttackBase):
    """Ascend the loss by projected gradient steps of fixed length; return the last iterate.

    x <- clip_[0,1](Pi_eps(x + step * direction(grad_x loss))), ``steps`` times (Madry et al.,
    2018, section 2.1). With ``loss: cw`` it ascends -max(z_y - max_{j!=y} z_j + 50,
    0), the CW attack of the MAIL and GAIRAT code (Carlini and Wagner's margin, not their L2 attack
    with Adam). Like them, and unlike Madry's code, it keeps no best point along the way.

    Args:
        steps: gradient steps, at least 1.
        step_size: step length as a fraction of eps, at least 0; in YAML ``eps/4`` or ``1/255``.
        start: ``clean``, ``uniform`` in the ball (clamped to [0, 1]), or ``gaussian``.
        restarts: independent starts; an example is broken if one of them breaks it.
        loss: cross-entropy, or the CW margin.
        start_std: deviation of the gaussian start, in pixels.
    """

    kind: ClassVar[str] = "pgd"
    family: ClassVar[Family] = "fixed steps"

    steps: int
    step_size: StepSize
    start: Start = "uniform"
    restarts: int = 1
    loss: Literal["ce", "cw"] = "ce"
    start_std: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(steps=self.steps, restarts=self.restarts)
        if self.step_size < 0:
            raise ValueError(f"step_size={self.step_size:g} must not be negative")
        if self.start == "clean" and self.restarts > 1:
            raise ValueError(f"restarts={self.restarts} from one start: set start: uniform")

    def offsets(self, like: Tensor, eps: float, norm: Norm, rng: torch.Generator) -> Tensor | None:
        """Draw the starts; see ``RandomStart``."""
        if self.start == "clean":
            return None
        flat = like.new_empty((self.restarts * len(like), *like.shape[1:]))
        if self.start == "gaussian":
            drawn = gaussian_noise(flat, self.start_std, rng)
        else:
            drawn = uniform_ball(flat, flat.new_full((len(flat),), eps), norm, rng)
        return drawn.view(self.restarts, *like.shape)

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        eps: float,
        norm: Norm,
        rng: torch.Generator,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Search as ``RandomStart`` says."""
        if offsets is None:
            offsets = self.offsets(x, eps, norm, rng)
        if self.restarts == 1 or offsets is None:
            return self._search(predict, x, y, eps, norm, None if offsets is None else offsets[0])
        x_adv, rows = x.clone(), torch.arange(len(x), device=x.device)
        for left, drawn in zip(reversed(range(self.restarts)), offsets, strict=True):
            x_adv[rows] = self._search(predict, x[rows], y[rows], eps, norm, drawn[rows])
            if left:  # the caller judges the last restart
                with torch.no_grad():
                    rows = rows[predict(x_adv[rows]).argmax(1) == y[rows]]
            if not len(rows):
                break
        return x_adv

    def _search(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, offset: Tensor | None
    ) -> Tensor:
        start = x if offset is None else x + offset
        if self.start == "uniform":
            start = start.clamp(0, 1)
        loss, radius = LOSSES[self.loss], x.new_full((len(x),), eps)
        step = radius * self.step_size
        return pgd(lambda p: loss(predict(p), y), x, start, radius, step, self.steps, norm)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del classes
        facts = {
            "steps": self.steps,
            "step_size": self.step_size * eps,
            "start": self.start,
            "restarts": self.restarts,
            "loss": self.loss,
        }
        return facts | ({"start_std": self.start_std} if self.start == "gaussian" else {})


@dataclass(frozen=True)
class Spsa(AttackBase):
    """Descend the margin by Adam on a gradient estimated from queries (Uesato et al., 2018).

    g = mean over v of [m(x + d + delta v) - m(x + d - delta v)] / (2 delta) * v with the margin
    m = z_y - max_{j!=y} z_j and v of random signs, shared across the images of a batch, then one
    Adam step on d to lower m, then projection. No random start, no early stop. After advertorch's
    LinfSPSAAttack; here all batches share their directions too, so that an image's result depends
    on neither batch nor neighbours. Costs 2 * samples * iterations forward passes.

    Args:
        samples: directions per iteration.
        iterations: Adam steps.
        delta: length of the probe, in pixels.
        lr: of Adam, in pixels.
        chunk: images per forward pass; bounds memory, does not change the result.
    """

    kind: ClassVar[str] = "spsa"
    family: ClassVar[Family] = "black box"

    samples: int
    iterations: int
    delta: float = 0.001
    lr: float = 0.01
    chunk: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(samples=self.samples, iterations=self.iterations, delta=self.delta)
        check_positive(lr=self.lr, chunk=self.chunk)

    @torch.no_grad()
    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says."""
        radius, point = x.new_full((len(x),), eps), x
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        for t in range(1, self.iterations + 1):
            signs = self._directions(x, rng)
            grad = self.gradient(predict, point, y, signs)
            # torch.optim.Adam with its default betas and epsilon.
            first = 0.9 * first + 0.1 * grad
            second = 0.999 * second + 0.001 * grad.square()
            deviation = (second / (1 - 0.999**t)).sqrt() + 1e-8
            step = self.lr * (first / (1 - 0.9**t)) / deviation
            point = project(point - step, x, radius, norm)
        return point

    def _directions(self, x: Tensor, rng: torch.Generator) -> Tensor:
        shape = (self.samples, *x.shape[1:])
        draw = torch.randint(0, 2, shape, generator=rng, device=x.device, dtype=torch.int8)
        return (2 * draw - 1).to(x.dtype)

    def gradient(self, predict: Predict, point: Tensor, y: Tensor, signs: Tensor) -> Tensor:
        """Estimate the margin's gradient [N, ...] at ``point`` from directions [S, ...]."""
        at_once = max(1, self.chunk // (2 * len(point)))
        slopes = []
        for block in torch.split(self.delta * signs, at_once):
            probes = torch.cat([point + block[:, None], point - block[:, None]])  # [2s, N, ...]
            z = predict(probes.flatten(0, 1))
            values = margin(z, y.repeat(len(probes))).view(2, len(block), len(point))
            slopes.append((values[0] - values[1]) / (2 * self.delta))
        # 1 / v = v for signs, so the mean over directions is one matrix product.
        total = torch.cat(slopes).T @ signs.flatten(1)
        return (total / len(signs)).view_as(point)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del eps, classes
        return {
            "samples": self.samples,
            "iterations": self.iterations,
            "queries": 2 * self.samples * self.iterations,
            "delta": self.delta,
            "lr": self.lr,
            "start": "clean",
            "restarts": 1,
            "loss": "margin",
        }


@torch.no_grad()
def check_points(x_adv: Tensor, x: Tensor, eps: float, norm: Norm, attack: str) -> None:
    """Refuse points outside the ball or the pixel range.

    Args:
        x_adv: its points, [N, C, H, W].
        x: the images.
        eps: perturbation radius; rounding may exceed it by eps * 1e-5 + 1e-6.
        norm: of the ball.
        attack: its name, for the message.

    Raises:
        AttackError: wrong shape, not finite, outside [0, 1] or outside the ball.
    """
    if x_adv.shape != x.shape:
        raise AttackError(f"{attack}: shape {tuple(x_adv.shape)} for images {tuple(x.shape)}")
    flat = (x_adv - x).flatten(1).double()
    length = flat.abs().amax() if norm == "linf" else flat.norm(dim=1).amax()
    # One look at the device for all of it; a NaN fails every comparison.
    low, high, far = torch.stack([x_adv.amin().double(), x_adv.amax().double(), length]).tolist()
    if not (low >= 0 and high <= 1):
        raise AttackError(f"{attack}: pixels in [{low:g}, {high:g}], outside [0, 1]")
    if not far <= eps * (1 + 1e-5) + 1e-6:
        raise AttackError(f"{attack}: {norm} distance {far:.8g} exceeds eps={eps:.8g}")
