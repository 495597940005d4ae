"""Components: what a user switches."""

from ablation.components.awp import Awp
from ablation.components.burn_in import BurnIn
from ablation.components.closed_form_gradient import ClosedFormGradient
from ablation.components.exponential_loss import ExponentialLoss
from ablation.components.fab_margin import FabMargin
from ablation.components.margin_maximization import MarginMaximization
from ablation.components.soft_boundary import SoftBoundary

__all__ = [
    "Awp",
    "BurnIn",
    "ClosedFormGradient",
    "ExponentialLoss",
    "FabMargin",
    "MarginMaximization",
    "SoftBoundary",
]
