"""The classifier: input normalisation, body and head in one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ablation.models.heads import Annealed
from ablation.types import Output


class Net(nn.Module):
    """head(body((x - mean) / std)); implements ``types.Classifier``.

    Normalisation lives here so that eps, margins and input gradients keep pixel units. ``mean``
    and ``std`` are saved with the weights: loading them into a network that normalises
    differently fails instead of going unnoticed.

    Args:
        body: images [N, C, H, W] to features [N, D].
        head: features to logits [N, K]; see ``heads.Head``. A module without ``loss_logits``
            serves classification terms its plain logits.
        mean: per channel, in [0, 1] pixels; ``None`` means that the body sees raw pixels.
        std: per channel, in the same units; given exactly if ``mean`` is.

    Raises:
        ValueError: mean and std do not fit each other, or a std is not positive.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together: give both or neither")
        if mean is not None and std is not None:
            if len(mean) != len(std):
                raise ValueError(f"mean has {len(mean)} entries, std {len(std)}: one per channel")
            if min(std) <= 0:
                raise ValueError(f"std={list(std)} must be positive")
        self.body = body
        self.head = head
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("std", _per_channel(std))

    def forward(self, x: Tensor) -> Tensor:
        """Compute plain logits [N, K], fp32 or better, of pixels ``x`` [N, C, H, W] in [0, 1]."""
        return self._logits(self._features(x))

    def output(self, x: Tensor) -> Output:
        """Compute the logits of ``forward``, and the features [N, D] in the body's precision."""
        features = self._features(x)
        return Output(self._logits(features), features)

    def loss_logits(self, output: Output, y: Tensor, step: int | None = None) -> Tensor:
        """Compute logits [N, K] for classification terms: the head may use the labels [N].

        The head gets its features in fp32 or better: this may be called outside the autocast
        region of the forward pass, and margins are angles, which bf16 resolves too coarsely.
        A head may anneal its margin in over the steps; ``step=None`` means all of the margin.
        """
        adjust = getattr(self.head, "loss_logits", None)
        if adjust is None:
            return output.logits
        logits: Tensor = adjust(_single(output.features), output.logits, y)
        share = 1.0
        if step is not None and isinstance(self.head, Annealed):
            share = self.head.share(step)
        return logits if share == 1 else output.logits + share * (logits - output.logits)

    def _features(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        features: Tensor = self.body(x)
        return features

    def _logits(self, features: Tensor) -> Tensor:
        # Losses subtract logits of like size: bf16's 8 bits do not survive that.
        return _single(self.head(features))


def _per_channel(values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    return torch.tensor(values, dtype=torch.get_default_dtype()).view(1, -1, 1, 1)


def _single(values: Tensor) -> Tensor:
    """Convert to single precision, or leave double as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
