"""Switch: PMHR, as far as it can be told from another paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ablation import terms
from ablation.components.attacks import ADVERSARIAL, check_adversarial
from ablation.components.ema_logits import check_alpha
from ablation.components.emr import check_coef
from ablation.training.method import CLEAN, Component, Method, Slot
from ablation.types import Fraction
from ablation.weights import PredictionChange, Similarity

TERM, DECAY = "pmhr", "weight_norm"
"""Names of the loss terms."""


@dataclass(frozen=True)
class ReconstructedPmhr(Component):
    """Add mean_i s_i mean_c mHuber(z'_ic - z_ic) and a penalty on the weights to a method.

    PMHR-AT is of Atsague et al. (ICIP 2023), whose text and code were not available. LMA
    (sections 2 and 5) says that it takes mHuber of the logits, an l2 penalty on the network's
    weights, and modulates its strength by the similarity of the two predictions; not by which
    similarity, nor in which direction. So this is a reconstruction, and its numbers say so.

    Args:
        coef: beta, of mHuber.
        alpha: of mHuber.
        weighs: s_i, detached from nothing: see ``weights.PredictionChange``.
        weight_decay: gamma of gamma / 2 ||W||^2 over convolutions and linear layers, in place of
            the optimiser's: a config with both is refused.
    """

    note: ClassVar[str] = (
        "component pmhr is reconstructed: its paper and code were not available, and LMA, which "
        "compares with it, leaves its weights open"
    )

    coef: Fraction = 86.0
    alpha: float = 5.345
    weighs: Similarity = "one_minus_cosine"
    weight_decay: float = 3.5e-3

    def __post_init__(self) -> None:
        check_coef(TERM, self.coef)
        check_alpha(self.alpha)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay:g} must not be negative")

    def apply(self, method: Method) -> Method:
        """Add both terms, and a pass of the clean images where the method has none."""
        check_adversarial(method, TERM)
        term = terms.LogitPairing(self.alpha, clean=CLEAN, view=ADVERSARIAL)
        weight = PredictionChange(self.weighs, CLEAN, ADVERSARIAL)
        method = method.with_term(TERM, Slot(term, self.coef, weight))
        if self.weight_decay == 0:
            return method
        return method.with_term(DECAY, Slot(terms.WeightNorm(), self.weight_decay))
