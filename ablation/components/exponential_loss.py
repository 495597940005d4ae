"""Switch: an exponential penalty on margins instead of a hinge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ablation import terms
from ablation.components.margin_maximization import TERM, taylor_margin
from ablation.training.method import Component, Method
from ablation.types import Fraction


@dataclass(frozen=True)
class ExponentialLoss(Component):
    """Small margins of correct samples first: exp(-alpha R) / alpha below gamma (DOSE, eq. 6-7).

    Over [0, 16/255] and with the papers' alpha of 3 the weight only falls from 1 to 0.83; what
    changes most against the hinge is that wrong samples are left out.

    Args:
        alpha: how fast the weight falls with the margin.
        gamma: margins beyond it cost nothing; ``None`` means the margin term's.
        reduction: mean over the ``correct`` samples (DOSE, eq. 7), or over the ``batch`` (DyART's
            code).
    """

    requires: ClassVar[tuple[str, ...]] = ("margin_maximization",)

    alpha: float = 3.0
    gamma: Fraction | None = None
    reduction: Literal["batch", "correct"] = "correct"

    def apply(self, method: Method) -> Method:
        """Exchange the penalty, and leave out misclassified samples.

        Raises:
            ValueError: the margin term's reduction says otherwise.
        """
        term = taylor_margin(method)
        assert isinstance(term.penalty, terms.Hinge)  # noqa: S101  only this switch changes it
        if (term.reduction, self.reduction) == ("correct", "batch"):
            raise ValueError(
                "reduction=batch: component.margin_maximization.reduction=correct says otherwise; "
                "set one of them"
            )
        penalty = terms.Exponential(
            self.alpha, term.penalty.gamma if self.gamma is None else self.gamma
        )
        changed = replace(term, penalty=penalty, wrong="exclude", reduction=self.reduction)
        return method.with_changed_term(TERM, changed)
