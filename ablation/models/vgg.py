"""VGG with BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ablation.models.blocks import Body, GlobalAverage, Size, check_positive, check_size
from ablation.models.foreign import HEAD, Names


@dataclass(frozen=True)
class Vgg:
    """Stages of (conv 3x3 with bias, BatchNorm, ReLU), each closed by a 2x2 max-pool (VGG, 2015).

    The defaults are VGG-16 as DOSE uses it ("batch normalisation on all layers", section 4.1):
    13 convolutions, 32x32 images end as 1x1, one linear layer on top, 14,728,266 parameters with
    ten classes. Head, dropout and initialisation are unstated there: this is the usual CIFAR form,
    without dropout, with PyTorch's initialisation. Larger images are averaged over the pixels that
    are left.

    Args:
        convs: convolutions in each stage.
        width: channels of the first stage; they double from stage to stage, up to 8 x width.
    """

    convs: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64

    def __post_init__(self) -> None:
        check_positive(convs=self.convs, width=self.width)

    @property
    def names(self) -> Names:
        """``features`` of torchvision's vgg_bn and kuangliu's VGG, and one linear classifier."""
        rules, place = [], 0
        for number, count in enumerate(self.convs, start=1):
            rules += [
                (rf"features\.{place + inner}\.", f"stage{number}.{inner}.")
                for inner in range(3 * count)
            ]
            place += 3 * count + 1  # the pooling
        return Names([*rules, (r"(?:classifier|linear|fc)\.(?:0\.)?", HEAD)])

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """Build the body for images of ``size`` (height, width).

        Raises:
            InputError: the max-pools leave nothing of the image (below 32x32 by default).
        """
        check_size("Vgg", size, 2 ** len(self.convs))
        layers: dict[str, nn.Module] = {}
        inputs = channels
        for number, count in enumerate(self.convs):
            outputs = self.width * min(2**number, 8)
            stage: list[nn.Module] = []
            for _ in range(count):
                stage += [
                    nn.Conv2d(inputs, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                inputs = outputs
            layers[f"stage{number + 1}"] = nn.Sequential(*stage, nn.MaxPool2d(2))
        return Body({**layers, "average": GlobalAverage()}, inputs)
