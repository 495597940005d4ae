"""Probes: attacks that only the checks ask for, chosen by the attacks of the request.

Small ones: next to AutoAttack they cost little. Rows are indices of images, masks are [all] bool
over all images, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ablation.evaluation.attacks import Attack, AttackBase, Family, Pgd, Predict
from ablation.evaluation.results import Attacked, Probe
from ablation.numerics.boundary import fab
from ablation.numerics.functional import margin, true_value, without_true
from ablation.types import Norm

SHARPNESS = 10.0
"""Rescaled logit gaps lie below this; at an image with the typical gap it is half, p_y = 0.99. Far
from the 16.6 where fp32 saturates, and no flatter than adversarially trained networks' own."""
RESCALED_IMAGES = 1000
"""APGD-CE on rescaled logits sees so many: a tenth of a test set tells a point from five."""
BOUNDARY_IMAGES = 200
RADIUS_IMAGES = 128
LARGE_RADIUS = 0.5
"""In linf: every pixel can become 0.5, and a grey image has one label. In l2 times sqrt(pixels)."""

NAMES = ("rescaled_apgd", "zero_radius", "large_radius", "boundary_distance")

Break = Callable[[str, Attack, Tensor, float, Norm], Tensor]
"""Name, attack, rows, radius and norm to the mask of images that it broke."""


def logit_gap(z: Tensor) -> Tensor:
    """Return z_(1) - z_(2), shape [N]; 0 with a single class."""
    top = z.topk(min(2, z.shape[1])).values
    return top[:, 0] - top[:, -1]


def rescale(z: Tensor, typical: float) -> Tensor:
    """Rescale logits [N, K] so that their gaps lie below ``SHARPNESS`` whatever their scale was.

    z * SHARPNESS / sg(gap + typical). The same for s z and s typical. A larger gap stays a larger
    gap, unlike with z / sg(std(z)), under which two classes would all have the same one.
    """
    scale = logit_gap(z.detach()) + typical
    return z * (SHARPNESS / torch.where(scale > 0, scale, SHARPNESS))[:, None]


@dataclass(frozen=True)
class Rescaled(AttackBase):
    """Run an attack on rescaled logits.

    Args:
        attack: what is run.
        typical: logit gap of a typical image of this network.
    """

    kind: ClassVar[str] = "rescaled"
    family: ClassVar[Family] = "adaptive steps"

    attack: Attack
    typical: float

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says."""

        def rescaled(point: Tensor) -> Tensor:
            return rescale(predict(point), self.typical)

        return self.attack(rescaled, x, y, eps, norm, rng)


@dataclass(frozen=True)
class Nearest(AttackBase):
    """Search with FAB for the boundary of all classes, then towards each rival.

    Returns a point beyond it if one lies within eps. From the image, with ``boundary.fab``:
    independent of AutoAttack's code and losses, and of the scale of the logits. Towards the rivals
    go only images of which nothing within eps is known.

    Args:
        steps: of each search; one forward and one backward.
        targets: rivals, at most; by their logits at the image.
    """

    kind: ClassVar[str] = "nearest"
    family: ClassVar[Family] = "minimum norm"

    steps: int = 30
    targets: int = 9

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` is not used."""
        with torch.no_grad():
            rivals = without_true(predict(x), y).argsort(1, descending=True)[:, :-1]
        nearest, left = x.clone(), torch.arange(len(x), device=x.device)
        for target in (None, *rivals[:, : self.targets].unbind(1)):
            if not len(left):
                break
            side = _side(predict, y[left], None if target is None else target[left])
            boundary = fab(side, x[left], norm=norm, rng=rng, steps=self.steps, start="clean")
            inside = boundary.distance <= eps
            nearest[left[inside]] = boundary.x[inside]
            left = left[~inside]
        return nearest


def _side(predict: Predict, y: Tensor, target: Tensor | None) -> Predict:
    """Map points to z_y less the largest other logit, or less the logit of ``target`` [N]; [N]."""

    def side(point: Tensor) -> Tensor:
        z = predict(point)
        return margin(z, y) if target is None else true_value(z, y) - true_value(z, target)

    return side


@dataclass(frozen=True)
class Prober:
    """Choose probes by the attacks that the request ran, and run them.

    Attributes:
        attacked: the request's attacks, in order.
        order: the evaluated rows in random order: a start of it is a random subset.
        correct: mask of the correctly classified images.
        typical: mean logit gap of the evaluated images.
        pixels: of an image, all channels.
        classes: of the network.
        broken: runs an attack.
    """

    attacked: tuple[Attacked, ...]
    order: Tensor
    correct: Tensor
    typical: float
    pixels: int
    classes: int
    broken: Break

    def run(self) -> dict[str, Probe | str]:
        """Return the probe of each check by name, or what it would have needed."""
        if not self.correct[self.order].any():
            return dict.fromkeys(NAMES, "needs a correctly classified image")
        zero, large = self._radii()
        return {
            "rescaled_apgd": self._rescaled(),
            "zero_radius": zero,
            "large_radius": large,
            "boundary_distance": self._boundary(),
        }

    def _rescaled(self) -> Probe | str:
        """Rescale the logits for what the request's APGD-CE, or an ensemble's first part, left."""
        for plain in sorted(self._at_a_radius(), key=lambda a: a.attack.family == "ensemble"):
            first = next(iter(plain.verdict.parts.values()))
            if not self._adapts_on_cross_entropy(first, plain.eps):
                continue
            rows = self._start(plain, RESCALED_IMAGES)
            before = self.correct & (plain.verdict.broken_by != 0)
            rescaled = Rescaled(first, self.typical)
            return self._against("rescaled_apgd", plain, rescaled, rows, before, before)
        return "needs apgd_ce or aa with a radius above 0"

    def _adapts_on_cross_entropy(self, attack: Attack, eps: float) -> bool:
        if attack.family != "adaptive steps":
            return False
        return attack.describe(eps, self.classes).get("loss") == "ce"

    def _boundary(self) -> Probe | str:
        """Compare an ensemble with the request's own FAB, else with a search on a few images."""
        for whole in self._at_a_radius("ensemble"):
            before = whole.verdict.robust
            for own in self._at_a_radius("minimum norm"):
                if (own.eps, own.norm) == (whole.eps, whole.norm):
                    rows = whole.verdict.chosen
                    rows = rows[torch.isin(rows, own.verdict.chosen)]
                    after = own.verdict.robust
                    return Probe(whole.metric, before[rows], after[rows], whole.eps)
            rows = self._start(whole, BOUNDARY_IMAGES)
            steps = min(Nearest.steps, whole.params.get("steps", Nearest.steps))
            search = Nearest(steps, whole.params.get("targets", Nearest.targets))
            return self._against("boundary_distance", whole, search, rows, self.correct, before)
        return "needs aa with a radius above 0"

    def _radii(self) -> tuple[Probe | str, Probe | str]:
        """Run PGD with no radius and with a very large one.

        It starts at the images: what breaks them is then the gradient, not a start full of noise.
        """
        with_gradients = [a for a in self.attacked if a.attack.family != "black box"]
        if not with_gradients:
            needs = "needs an attack with gradients, such as pgd20"
            return needs, needs
        norm = with_gradients[0].norm
        rows = self.order[:RADIUS_IMAGES].sort().values
        eps = LARGE_RADIUS * (1 if norm == "linf" else math.sqrt(self.pixels))
        still = ~self.broken("zero_radius", Pgd(1, 1.0, "clean"), rows, 0.0, norm)
        correct = rows[self.correct[rows]]
        fallen = self.broken("large_radius", Pgd(20, 0.25, "clean"), correct, eps, norm)
        before = self.correct[rows]
        return (
            Probe("clean", before, still[rows], 0.0),
            Probe("clean", before, before & ~fallen[rows], eps),
        )

    def _against(
        self,
        name: str,
        other: Attacked,
        attack: Attack,
        rows: Tensor,
        attacked: Tensor,
        before: Tensor,
    ) -> Probe:
        """Run a probe on those of ``rows`` in the mask ``attacked``, beside the mask ``before``."""
        broken = self.broken(name, attack, rows[attacked[rows]], other.eps, other.norm)
        return Probe(other.metric, before[rows], (attacked & ~broken)[rows], other.eps)

    def _at_a_radius(self, family: Family | None = None) -> Iterator[Attacked]:
        """Yield the attacks, of one family or all, that had a radius above 0."""
        for attacked in self.attacked:
            if attacked.eps > 0 and family in (None, attacked.attack.family):
                yield attacked

    def _start(self, other: Attacked, most: int) -> Tensor:
        """Return rows of a random subset of what another attack saw: a start of the order."""
        return self.order[: min(most, len(other.verdict.chosen))].sort().values
