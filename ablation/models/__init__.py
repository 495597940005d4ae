"""Models: architectures as specifications, heads, and the network that wraps them."""

from ablation.models.blocks import Body, Size
from ablation.models.build import ModelSpec, build_model
from ablation.models.cnn import Cnn, TinyCnn
from ablation.models.fit import overrun, refusal
from ablation.models.heads import HEADS, Annealing, Head, Hypersphere, LargeMargin, LinearHead
from ablation.models.mlp import Mlp
from ablation.models.net import Net
from ablation.models.preact_resnet import PreActResNet
from ablation.models.resnet import ResNet
from ablation.models.vgg import Vgg
from ablation.models.wide_resnet import WideResNet

__all__ = [
    "HEADS",
    "Annealing",
    "Body",
    "Cnn",
    "Head",
    "Hypersphere",
    "LargeMargin",
    "LinearHead",
    "Mlp",
    "ModelSpec",
    "Net",
    "PreActResNet",
    "ResNet",
    "Size",
    "TinyCnn",
    "Vgg",
    "WideResNet",
    "build_model",
    "overrun",
    "refusal",
]
