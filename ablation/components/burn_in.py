"""Switch: burn-in by standard training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ablation.schedules import Constant
from ablation.terms import CrossEntropy
from ablation.training.method import CLEAN, STEP, Component, Method, Pass, Phase, Slot


@dataclass(frozen=True)
class BurnIn(Component):
    """Add a phase of standard training before the method: margins then start on correct samples.

    DOSE, sections 2.4 and 3.2; DyART. Its epochs come on top of ``epochs`` and are never selected.
    With one seed, batch size and ``lr`` all arms go through the same burn-in, step by step. To
    compute it once, train it as a run of its own (``method=standard epochs=25 schedule=constant``)
    and start the others with ``init_from=<that run>`` instead.

    Args:
        epochs: length of the burn-in, at least 1.
        optimizer: the method starts with a ``fresh`` optimiser and schedule, and the burn-in has
            a constant learning rate; or both share one of each (``keep``).
        lr: learning rate of a fresh burn-in; ``None`` means the run's.
        clip: largest gradient norm of a fresh burn-in, whatever the method's; ``None`` is none.
    """

    epochs: int = 25
    optimizer: Literal["fresh", "keep"] = "fresh"
    lr: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(
                f"epochs={self.epochs}: at least 1; without it: component/burn_in=disabled"
            )
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr={self.lr:g} must be positive")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip={self.clip:g} must be positive; null means no clipping")
        if self.optimizer == "keep" and (self.lr, self.clip) != (None, None):
            raise ValueError(
                f"lr={self.lr}, clip={self.clip}: optimizer=keep goes on with the run's; set both "
                f"to null, or optimizer=fresh"
            )

    def apply(self, method: Method) -> Method:
        """Leave the method as it is: ``arrange`` adds the phase."""
        return method

    def arrange(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Put the burn-in before the phases."""
        first, *rest = phases
        standard = replace(
            first.method,
            crafters={},
            passes=(Pass("view", CLEAN), STEP),
            terms={"ce": Slot(CrossEntropy(CLEAN))},
            roles={"classify": "ce"},
            ascent=None,
        )
        fresh = self.optimizer == "fresh"
        burn_in = Phase(
            "burn_in",
            self.epochs,
            standard,
            selectable=False,
            lr=self.lr,
            schedule=Constant() if fresh else None,
            clip=(math.inf if self.clip is None else self.clip) if fresh else None,
        )
        return (burn_in, replace(first, optim="fresh") if fresh else first, *rest)
