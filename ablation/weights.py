"""Per-example weights [N] of a loss term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.numerics.functional import (
    Constants,
    kl_divergence,
    probability_margin,
    true_value,
)
from ablation.types import Views


@dataclass(frozen=True)
class ProbabilisticMargin:
    """c sigmoid(slope (bias - PM)), PM = p_y(view) - max_{j != y} p_j(view), shape [N] (MAIL).

    Liu et al. (2021), eq. 6 and 8; mail_loss.py: samples near the boundary or beyond it count
    more. Constant in the weights of the network. The paper normalises them over the batch, the
    code multiplies by 3 instead. Most weights are then far below 1, which acts like a smaller
    learning rate.

    Args:
        slope: steepness of the sigmoid (gamma in the paper).
        bias: the margin at its centre (beta in the paper).
        start: first epoch of the phase with weights; all are 1 before.
        normalize: ``constant``, c = 3; ``batch``, c makes the weights' mean 1.
        view: name of the view whose prediction is read.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its view must hold all of them."""

    slope: float = 10.0
    bias: float = -0.5
    start: int = 0
    normalize: Literal["constant", "batch"] = "constant"
    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the weight reads."""
        return (self.view,)

    @property
    def couples(self) -> bool:
        """Whether the weights depend on each other: their mean does."""
        return self.normalize == "batch"

    def __call__(self, views: Views) -> Tensor:
        """Compute the weights [N], detached."""
        z = views.logits(self.view).detach()
        if views.clock.epoch < self.start:
            return z.new_ones(len(z))
        probabilistic = probability_margin(z, views.y(self.view))
        weight = (self.slope * (self.bias - probabilistic)).sigmoid()
        return (
            3 * weight
            if self.normalize == "constant"
            else weight / (views.total(weight) / views.batch.count)
        )


@dataclass(frozen=True)
class OneMinusTrueProbability:
    """1 - p_y(view), shape [N] (MART, eq. 8): uncertain clean examples count more.

    Gradient flows through the weight, as in mart.py.

    Args:
        view: name of the view whose prediction is read.
        constants: ``official`` takes 1.0000001 - p_y as mart.py does.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its view must hold all of them."""

    view: str = "nat"
    constants: Constants = "exact"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the weight reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the weights [N]."""
        one = 1.0 if self.constants == "exact" else 1.0000001
        return one - true_value(F.softmax(views.logits(self.view), 1), views.y(self.view))


Similarity = Literal["one_minus_cosine", "cosine", "kl", "one"]


@dataclass(frozen=True)
class PredictionChange:
    """How much the attack changed the prediction, or the contrary, shape [N] (for PMHR).

    Gradient flows through the weight. Which one PMHR has is not in print; see its component.

    Args:
        kind: ``one_minus_cosine``, 1 - cos(p, p'); ``cosine``, cos(p, p'); ``kl``, KL(p || p');
            ``one``, no weight.
        clean: name of the view of the clean images, p.
        view: name of the view of the adversarial ones, p'.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its views must hold all of them."""

    kind: Similarity = "one_minus_cosine"
    clean: str = "nat"
    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the weight reads."""
        return (self.clean, self.view)

    def __call__(self, views: Views) -> Tensor:
        """Compute the weights [N]."""
        z, z_adv = views.logits(self.clean), views.logits(self.view)
        if self.kind == "kl":
            return kl_divergence(z, z_adv)
        if self.kind == "one":
            return z.new_ones(len(z))
        cosine = F.cosine_similarity(F.softmax(z, 1), F.softmax(z_adv, 1), 1)
        return cosine if self.kind == "cosine" else 1 - cosine


@dataclass(frozen=True)
class NegativeMargin:
    """exp(-a m'), m' = p_y(view) - max_{j != y} p_j(view), shape [N] (WAT).

    Zeng et al. (2021), section 3; AT_base/: examples beyond the boundary count more. Not
    normalised. Gradient flows through the weight, as in the code.

    Args:
        a: 0 weighs all alike.
        detach: the weight is constant in the weights of the network.
        view: name of the view whose prediction is read.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its view must hold all of them."""

    a: float = 0.5
    detach: bool = False
    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the weight reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the weights [N]."""
        weight = torch.exp(
            -self.a * probability_margin(views.logits(self.view), views.y(self.view))
        )
        return weight.detach() if self.detach else weight


@dataclass(frozen=True)
class Geometry:
    """(1 + tanh(lambda + 5 (1 - 2 kappa / K))) / 2, to mean 1 over the batch, shape [N] (GAIRAT).

    Zhang et al. (2021), eq. 6; GAIR.py. kappa counts the K steps of the attack at whose start the
    point was still classified correctly: examples that fall early count more. The crafter of the
    view counts them (``Pgd.counts``); the weight is constant in the weights of the network.

    Args:
        shift: lambda; -1 is GAIRAT's; at 50 all weights are 1.
        start: first epoch of the phase with weights; all are 1 before.
        view: name of the crafted view.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its view must hold all of them."""
    couples: ClassVar[bool] = True
    """The weights have the mean 1."""

    shift: float = -1.0
    start: int = 0
    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the weight reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Compute the weights [N]."""
        survived = views.crafted(self.view).aux["survived"]
        if views.clock.epoch < self.start:
            return torch.ones_like(survived)
        # (1 + tanh v) / 2 is sigmoid(2 v), which does not round to 0 where tanh is near -1.
        weight = torch.sigmoid(2 * (self.shift + 5 * (1 - 2 * survived)))
        return weight * (views.batch.count / views.total(weight))


@dataclass(frozen=True)
class Counted:
    """1 for the samples that a view's crafter counts, else 0, shape [N] (MMA's hinge).

    Args:
        view: name of the crafted view, whose ``aux["counted"]`` [N] says so.
    """

    whole: ClassVar[bool] = True
    """A weight for every sample of the batch: its view must hold all of them."""

    view: str = "adv"

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the train-mode views that the weight reads."""
        return (self.view,)

    def __call__(self, views: Views) -> Tensor:
        """Give the weights [N]."""
        return views.crafted(self.view).aux["counted"].to(views.batch.x.dtype)
