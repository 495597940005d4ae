"""Switch: max-margin adversarial training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ablation.budgets import Fixed, Remembered
from ablation.components.attacks import ADVERSARIAL, replaced_pgd
from ablation.crafters import Ascended, AttackSoftMargin, Bisection
from ablation.crafters.bisection import RADIUS
from ablation.terms import CrossEntropy
from ablation.training.method import CLEAN, STEP, Component, Method, Pass, Slot
from ablation.types import AttackMode, Fraction
from ablation.weights import Counted

DIRECTION, TERM = "direction", "clean_ce"
"""Names of the first attack and its view, and of the loss term of the clean images."""


@dataclass(frozen=True)
class Mma(Component):
    """Train on each example's own nearest boundary point (Ding et al., 2020; trainer.py).

    The classification term that is also the robust one (CE of AT, BCE of MART) is taken of points
    on the boundary for correct examples (``crafters.Bisection``), of the clean image for the rest,
    and does not count correct examples with a radius of ``d_max`` or more. The attack that finds
    the direction has the radius that each example had when it was last seen, steps of
    2.5 / ``steps`` of it, a uniform start, and ascends MMA's own loss: of the keys of ``attack``
    only ``bn`` and, unless set here, ``steps`` count.

    Args:
        d_max: hinge of the margin, in pixel units: 12, 20 or 32/255 in the official scripts.
        minimum: smallest radius of the attack, in pixel units.
        clean: share of the clean loss, 1/3 (0 is OMMA); the rest is the boundary points'.
        steps: of the attack; ``None`` means ``attack.steps``.
        bisection_steps: of the bisection.
        bisection_bn: mode of the bisection; the official one is ``train``, see ``Bisection``.
        clamped: boundary points are clamped to [0, 1]; the official ones are not.
    """

    after: ClassVar[tuple[str, ...]] = (  # what it cannot be combined with must be there to be seen
        *("boosted_cross_entropy", "gairat", "margin_loss", "margin_weighted_epsilon", "wat"),
    )

    d_max: Fraction = 32 / 255
    minimum: Fraction = 0.005
    clean: Fraction = 1 / 3
    steps: int | None = None
    bisection_steps: int = 10
    bisection_bn: AttackMode = "eval"
    clamped: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.clean < 1:
            raise ValueError(f"clean={self.clean:g}: a share in [0, 1)")

    def apply(self, method: Method) -> Method:
        """Replace the attack and the radii, weigh the robust term, and add the clean one."""
        pgd = replaced_pgd(method, "mma")
        robust = method.roles.get("robust")
        if robust is None or method.roles.get("classify") != robust:
            raise ValueError(
                "the method's adversarial term does not classify (TRADES has a KL there), so "
                "boundary points have no label to learn; set method=at or mart, or "
                "component/mma=disabled"
            )
        if not isinstance(method.budget, Fixed):
            raise ValueError(
                "it searches each example's radius itself; set "
                "component/margin_weighted_epsilon=disabled or component/mma=disabled"
            )
        steps = pgd.steps if self.steps is None else self.steps
        search = replace(
            pgd,
            losses={"soft_margin": Ascended(AttackSoftMargin())},
            steps=steps,
            step_size=2.5 / max(1, steps),
            start="uniform",
        )
        boundary = Bisection(
            d_max=self.d_max,
            minimum=self.minimum,
            steps=self.bisection_steps,
            clamped=self.clamped,
            direction=DIRECTION,
            view=ADVERSARIAL,
            bn=self.bisection_bn,
        )
        method = method.with_weight("robust", Counted(ADVERSARIAL))
        slot = method.terms[robust]
        terms = {
            TERM: Slot(CrossEntropy(CLEAN), self.clean),
            **method.terms,
            robust: replace(slot, coef=slot.coef * (1 - self.clean)),
        }
        return replace(
            method,
            crafters={**method.crafters, DIRECTION: search, ADVERSARIAL: boundary},
            budget=Remembered(RADIUS, self.minimum),
            passes=_passes(method.passes),
            terms=terms,
        )


def _passes(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The clean pass first, which tells the correct examples; both crafters in the attack's."""
    clean, attack = Pass("view", CLEAN), Pass("craft", ADVERSARIAL)
    step = passes.index(STEP) if STEP in passes else len(passes)  # behind it for BatchNorm alone
    kept = [entry for entry in passes[:step] if entry != clean] + [*passes[step:]]
    place = kept.index(attack)
    return (clean, *kept[:place], Pass("craft", DIRECTION), *kept[place:])
