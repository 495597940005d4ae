"""Multi-layer perceptron."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ablation.models.blocks import Body, Size, check_positive


@dataclass(frozen=True)
class Mlp:
    """Flatten, then ``hidden`` times Linear and ReLU: the MLP of EMR, section 3.

    With the defaults, 28x28 grey images and ten classes: 784-1024-1024-1024-1024-10, 3,962,890
    parameters. The paper gives layers and widths; it is not in the released code. Bias,
    no normalisation layer, no dropout, PyTorch's initialisation: unstated, our choice.

    Args:
        hidden: number of hidden layers.
        width: units of each hidden layer.
    """

    hidden: int = 4
    width: int = 1024

    def __post_init__(self) -> None:
        check_positive(hidden=self.hidden, width=self.width)

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body; any image size will do."""
        inputs = [channels * size[0] * size[1], *[self.width] * (self.hidden - 1)]
        layers = {
            f"hidden{number}": nn.Sequential(nn.Linear(n, self.width), nn.ReLU(inplace=True))
            for number, n in enumerate(inputs, start=1)
        }
        return Body({"flatten": nn.Flatten(), **layers}, self.width)
