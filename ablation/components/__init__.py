"""Components: what a user switches."""

from ablation.components.awp import Awp

__all__ = ["Awp"]
