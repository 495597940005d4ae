"""Components: what a user switches."""

from ablation.components.awp import Awp
from ablation.components.boosted_cross_entropy import BoostedCrossEntropy
from ablation.components.burn_in import BurnIn
from ablation.components.closed_form_gradient import ClosedFormGradient
from ablation.components.ema_logits import EmaLogits
from ablation.components.emr import Emr, EmrApproximate, EmrProbe
from ablation.components.eps_ramp import EpsRamp
from ablation.components.exponential_loss import ExponentialLoss
from ablation.components.fab_margin import FabMargin
from ablation.components.gairat import Gairat
from ablation.components.hypersphere import Hypersphere
from ablation.components.igr import Igr
from ablation.components.label_smoothing import LabelSmoothing
from ablation.components.large_margin_softmax import LargeMarginSoftmax
from ablation.components.mail import Mail
from ablation.components.margin_loss import MarginLoss
from ablation.components.margin_maximization import MarginMaximization
from ablation.components.margin_weighted_epsilon import MarginWeightedEpsilon
from ablation.components.mma import Mma
from ablation.components.pmhr import ReconstructedPmhr
from ablation.components.soft_boundary import SoftBoundary
from ablation.components.squeeze import Squeeze
from ablation.components.wat import Wat

__all__ = [
    "Awp",
    "BoostedCrossEntropy",
    "BurnIn",
    "ClosedFormGradient",
    "EmaLogits",
    "Emr",
    "EmrApproximate",
    "EmrProbe",
    "EpsRamp",
    "ExponentialLoss",
    "FabMargin",
    "Gairat",
    "Hypersphere",
    "Igr",
    "LabelSmoothing",
    "LargeMarginSoftmax",
    "Mail",
    "MarginLoss",
    "MarginMaximization",
    "MarginWeightedEpsilon",
    "Mma",
    "ReconstructedPmhr",
    "SoftBoundary",
    "Squeeze",
    "Wat",
]
