"""Ascents: are the weights moved before the gradient is taken?"""

from ablation.ascents.awp import AdversarialWeightPerturbation

__all__ = ["AdversarialWeightPerturbation"]
