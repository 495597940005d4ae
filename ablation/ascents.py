"""Weight ascents: perturbations of the weights before a step's gradient is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ablation.ranks import present
from ablation.types import Clock, Closure


@dataclass(frozen=True)
class AdversarialWeightPerturbation:
    """theta <- theta + gamma * v, v = ||theta|| g / ||g|| per tensor, g = grad_theta loss (AWP).

    Wu et al. (2020), eq. 8-10; utils_awp.py. Only tensors with two or more dimensions whose name
    contains ``weight`` move. The official code takes one SGD step on a copy of the model and
    renormalises the difference; its proxy learning rate cancels, so the gradient is used directly
    and BatchNorm's buffers are put back. Gradient and optimiser step are taken at the perturbed
    weights, then gamma * v is subtracted.

    Args:
        gamma: relative size of the perturbation; 0.01 for AT, 0.005 for TRADES.
        start: first epoch (0-based) that perturbs.
        terms: names of the loss terms that are ascended; empty means all.
    """

    gamma: float = 0.01
    start: int = 0
    terms: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma={self.gamma:g} must not be negative")

    @contextmanager
    def __call__(self, net: nn.Module, closure: Closure, clock: Clock) -> Iterator[None]:
        """Perturb the weights on entry, subtract the perturbation on exit."""
        if clock.epoch < self.start or self.gamma == 0:
            yield
            return
        weights: list[Tensor] = [
            p for name, p in net.named_parameters() if p.dim() > 1 and "weight" in name
        ]
        saved = [buffer.clone() for buffer in net.buffers()]
        loss, _ = closure(net, self.terms or None)
        gradients: Sequence[Tensor | None] = [None] * len(weights)
        if loss.requires_grad:  # a term without points has no gradient
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            present().add_up([gradient for gradient in gradients if gradient is not None])
        with torch.no_grad():
            for buffer, value in zip(net.buffers(), saved, strict=True):
                buffer.copy_(value)
            moves = [
                torch.zeros_like(w)
                if g is None
                else g * (self.gamma * w.norm() / (g.norm() + 1e-20))
                for w, g in zip(weights, gradients, strict=True)
            ]
            torch._foreach_add_(weights, moves)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_sub_(weights, moves)
