"""Heads: features to logits, plain ones and those with a margin for classification terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.numerics.functional import true_value
from ablation.types import HeadFactory

SHORTEST = 1e-6
"""Lower bound of a norm in a denominator (features may all be zero); its powers fit into fp32."""


class Head(Protocol):
    """The layer on top of the features; an ``nn.Module``.

    Attacks, KL terms and evaluation use ``forward``. A head with a margin for the true class
    (L-Softmax, HE) puts it into ``loss_logits``, which classification terms use.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Compute the plain logits [N, K] of ``features`` [N, D]."""

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the logits [N, K] for classification terms.

        Args:
            features: [N, D], in fp32 or better also under autocast.
            logits: output of ``forward``, [N, K], in fp32 or better.
            y: labels [N].
        """


@runtime_checkable
class Annealed(Protocol):
    """A head whose margin is annealed in over training steps."""

    def share(self, step: int) -> float:
        """Give the margin's share at a step of the run, in [0, 1]; the rest is plain logits."""


class LinearHead(nn.Module):
    """z = W f + b.

    Args:
        features: D.
        classes: K.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits [N, K] of ``features`` [N, D]."""
        logits: Tensor = self.linear(features)
        return logits

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Return the plain logits: there is no margin."""
        return logits


@dataclass(frozen=True)
class Hypersphere:
    """Head factory of Hypersphere Embedding (Pang et al., 2020; ShawnXYang/AT_HE).

    z = s cos(W_j, f), without a bias, so that |z| <= s: what attacks, KL terms and evaluation see.
    Classification terms see s (cos - m) for the true class: their cross-entropy is HE's loss

        -log exp(s (cos_y - m)) / (exp(s (cos_y - m)) + sum_{j != y} exp(s cos_j)).

    Departures from the official code: it attacks in evaluation the cosines alone (s = 1), whose
    softmax is nearly flat; here s is part of the logits throughout. Predictions are the same,
    attacks on a flat softmax are not. And it overwrites W by its normalised rows in every forward,
    see ``weights``.

    Args:
        scale: s; the official commands have 10 for AT, 15 for TRADES.
        margin: m, in units of the cosine; 0.2 in both.
        weights: ``normalized``, the gradient of the formula; ``projected``, the rows are set to
            norm 1 in every training forward and the gradient is that of a linear layer with these
            rows, as in the official code.

    Raises:
        ValueError: scale is not positive, or the margin negative.
    """

    scale: float = 10.0
    margin: float = 0.2
    weights: Literal["normalized", "projected"] = "normalized"

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.margin < 0:
            raise ValueError(
                f"scale={self.scale:g} must be positive, margin={self.margin:g} not negative"
            )

    def __call__(self, features: int, classes: int) -> nn.Module:
        """Build a head from [N, features] to [N, classes]."""
        return HypersphereHead(features, classes, self)


class HypersphereHead(nn.Module):
    """z = s cos(W_j, f), the head that ``Hypersphere`` builds.

    Args:
        features: D.
        classes: K.
        settings: scale, margin and how W is normalised.
    """

    def __init__(self, features: int, classes: int, settings: Hypersphere) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes, bias=False)
        self.settings = settings

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits [N, K] of ``features`` [N, D], between -s and s."""
        return self.settings.scale * F.linear(_unit(features), self._rows())

    def _rows(self) -> Tensor:
        """Normalise the rows of W to norm 1, [K, D]."""
        weight = self.linear.weight
        if self.settings.weights == "normalized":
            return _unit(weight)
        if self.training:  # evaluation changes nothing
            weight.data.copy_(F.normalize(weight.data))
        return weight + (F.normalize(weight) - weight).detach()

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Lower the true class's cosine by the margin, [N, K]."""
        lowered = true_value(logits, y) - self.settings.scale * self.settings.margin
        return logits.scatter(1, y[:, None], lowered[:, None])


@dataclass(frozen=True)
class Annealing:
    """lambda(i) = max(floor, base (1 + gamma i)^-power) at step i (L-Softmax's Caffe code).

    The true class's logit is (lambda W_y f + ||W_y|| ||f|| psi) / (1 + lambda). The defaults are
    the authors' for MNIST.

    Raises:
        ValueError: an entry is negative.
    """

    base: float = 1000.0
    gamma: float = 2.5e-5
    power: float = 35.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if min(self.base, self.gamma, self.power, self.floor) < 0:
            raise ValueError(f"{self}: no entry may be negative")

    def __call__(self, step: int) -> float:
        """Give lambda at a step of the run."""
        return max(self.floor, self.base * math.pow(1 + self.gamma * step, -self.power))


@dataclass(frozen=True)
class LargeMargin:
    """Head factory of the Large-Margin Softmax (Liu et al., 2016; wy1iu/LargeMargin_Softmax_Loss).

    z = W f without a bias; attacks, KL terms and evaluation see it. For the true class,
    classification terms see ||W_y|| ||f|| psi(theta) instead, theta the angle between W_y and f:

        psi(theta) = (-1)^k cos(m theta) - 2 k   for theta in [k pi / m, (k + 1) pi / m].

    With m = 1 psi is the cosine, and this is the ordinary softmax without a bias.

    Args:
        m: multiplier of theta, at least 1; EMR, section 3, has 4 for its MLP, 1 for its CNN.
        annealing: schedule of the margin over the steps of the whole run; ``None`` has all of it
            from the first step. EMR states m alone.

    Raises:
        ValueError: m is below 1.
    """

    m: int = 4
    annealing: Annealing | None = None

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"m={self.m}: at least 1, which is the ordinary softmax")

    def __call__(self, features: int, classes: int) -> nn.Module:
        """Build a head from [N, features] to [N, classes]."""
        return LargeMarginHead(features, classes, self)


class LargeMarginHead(nn.Module):
    """z = W f, with the margin of L-Softmax in classification terms; built by ``LargeMargin``.

    Args:
        features: D.
        classes: K.
        settings: margin and annealing.
    """

    def __init__(self, features: int, classes: int, settings: LargeMargin) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes, bias=False)
        self.settings = settings

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits [N, K] of ``features`` [N, D]."""
        logits: Tensor = self.linear(features)
        return logits

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Multiply the true class's angle by m, [N, K]."""
        if self.settings.m == 1:
            return logits
        weight = self.linear.weight.to(features.dtype)[y]
        norms = weight.norm(dim=1) * features.norm(dim=1)
        cosine = (weight * features).sum(1) / norms.clamp_min(SHORTEST**2)
        target = norms * psi(cosine, self.settings.m)
        return logits.scatter(1, y[:, None], target.to(logits.dtype)[:, None])

    def share(self, step: int) -> float:
        """Give the margin's share at a step of the run, 1 / (1 + lambda); 1 without annealing."""
        annealing = self.settings.annealing
        return 1.0 if annealing is None else 1 / (1 + annealing(step))


def psi(cosine: Tensor, m: int) -> Tensor:
    """(-1)^k cos(m theta) - 2 k of cos(theta), any shape: falls from 1 at 0 to 1 - 2 m at pi.

    cos(m theta) is Chebyshev's polynomial T_m of the cosine, so gradients are finite everywhere;
    the angle itself only gives the constant k. (L-Softmax, eq. 5-7.)
    """
    theta = torch.acos(cosine.detach().clamp(-1, 1))
    k = (m * theta / torch.pi).floor().clamp(max=m - 1)
    before, chebyshev = torch.ones_like(cosine), cosine
    for _ in range(m - 1):
        before, chebyshev = chebyshev, 2 * cosine * chebyshev - before
    return (1 - 2 * (k % 2)) * chebyshev - 2 * k


def _unit(vectors: Tensor) -> Tensor:
    """Scale rows to norm 1; a zero row stays zero, and can be differentiated twice."""
    return vectors * vectors.square().sum(1, keepdim=True).clamp_min(SHORTEST**2).rsqrt()


HEADS: dict[str, HeadFactory] = {
    "linear": LinearHead,
    "hypersphere": Hypersphere(),
    "large_margin": LargeMargin(),
}
"""Values of ``model.head`` and their head factories."""
