"""Architectures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ablation.models import Body, Size


@dataclass(frozen=True)
class Linear:
    """Pixels straight to the head."""

    def build(self, *, channels: int, size: Size, classes: int) -> Body:
        """The body, for images of ``size`` (height, width)."""
        del classes
        return Body({"flatten": nn.Flatten()}, channels * size[0] * size[1])
