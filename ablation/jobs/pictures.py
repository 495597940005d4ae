"""A few adversarial examples as one picture: image, adversarial image, scaled perturbation.

Drawn with Pillow, so that a job does without matplotlib, which takes as long to import as a small
evaluation. The same examples give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablation.text import class_name

if TYPE_CHECKING:
    from PIL import Image

TILE = 96
"""Pixels: small images are enlarged by a whole factor to about this height."""

LETTER, LINE, MARGIN, GAP = 13, 17, 104, 6
"""Pixels: height of a letter and of a line, width of the names of the rows, between tiles."""

NAME = 10
"""Characters of a class' name, so that ``as <name>`` fits a tile."""


@dataclass(frozen=True)
class Adversarial:
    """One image under attack.

    Attributes:
        clean: image, shape [C, H, W], in [0, 1].
        adversarial: the same shape.
        label: the true class.
        before: class that the network takes the image for.
        after: class that it takes the adversarial image for.
    """

    clean: Tensor
    adversarial: Tensor
    label: int
    before: int
    after: int


def sheet(examples: Sequence[Adversarial], names: Sequence[str] = ()) -> bytes:
    """Draw a column per example, as PNG.

    Perturbations share one scale: grey is none, black or white the largest of all.

    Args:
        examples: at least one, of one shape.
        names: of the classes; without them their numbers are written.
    """
    from PIL import Image, ImageDraw, ImageFont

    moved = [each.adversarial - each.clean for each in examples]
    largest = max(float(each.abs().max()) for each in moved)
    factor = 0.5 / largest if largest > 0 else 1.0
    columns = [
        [_tile(pixels) for pixels in (each.clean, each.adversarial, 0.5 + factor * delta)]
        for each, delta in zip(examples, moved, strict=True)
    ]
    width, height = columns[0][0].size
    step = max(width, TILE) + GAP
    top, block = LINE + GAP, height + LINE + GAP
    whole = (MARGIN + step * len(examples), top + 3 * block - LINE)
    picture = Image.new("RGB", whole, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTER)

    def write(x: int, y: int, text: str) -> None:
        draw.text((x, y), text, fill="black", font=font)

    rows = ("image", "adversarial", f"perturbation\nx {factor:.3g}")
    for place, text in enumerate(rows):
        write(GAP, top + place * block + height // 2 - LINE, text)
    write(GAP, LINE // 4, "class")
    for turn, (each, tiles) in enumerate(zip(examples, columns, strict=True)):
        x = MARGIN + turn * step
        write(x, LINE // 4, class_name(each.label, names, NAME, ".."))
        for place, tile in enumerate(tiles):
            picture.paste(tile, (x, top + place * block))
        for place, seen in enumerate((each.before, each.after)):
            write(x, top + place * block + height, f"as {class_name(seen, names, NAME, '..')}")
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _tile(pixels: Tensor) -> Image.Image:
    """An image [C, H, W] in [0, 1], enlarged; of several channels the first three."""
    from PIL import Image

    colour = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    values = colour.clamp(0, 1).mul(255).round().to(torch.uint8)
    image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    scale = max(1, TILE // image.height)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)
