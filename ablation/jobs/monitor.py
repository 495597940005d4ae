"""Monitor training at each validation: margins, logit gaps, vanishing gradients.

Measured wherever the run is validated, on the same weights (averaged, where it averages), and
written beside the accuracies. Nothing is chosen by these numbers, and they change nothing: the
network is copied, and random starts have a stream of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ablation.data import ImageSet, sent, to_float
from ablation.errors import InterruptedRunError
from ablation.evaluation import Pgd
from ablation.evaluation.judge import never
from ablation.numerics.functional import cross_entropy
from ablation.numerics.margins import Survey, effective_margin, summarise, survey
from ablation.numerics.modes import evaluating
from ablation.numerics.precision import exact_arithmetic
from ablation.random import generator
from ablation.runs.state_dicts import on_host
from ablation.types import Norm


@dataclass(frozen=True)
class Curves:
    """Accuracies, and the loss under attack, of fixed images over the epochs.

    Attributes:
        images: by split.
        attack: PGD on the cross-entropy.
        eps: its radius, in pixels.
        norm: of the ball.
        seed: of its starts, which are the same in every epoch.
        stop: asked before every batch.
    """

    images: Mapping[str, ImageSet]
    attack: Pgd
    eps: float
    norm: Norm
    seed: int
    stop: Callable[[], bool] = never

    def sums(self, net: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Sum over each split: right, right also under attack, the loss there; [3], in fp64."""
        with evaluating(net):
            return {split: self._sums(net, images, device) for split, images in self.images.items()}

    def _sums(self, net: nn.Module, images: ImageSet, device: torch.device) -> Tensor:
        rng = generator(self.seed, "curves", 0, device)
        sums = torch.zeros(3, dtype=torch.double, device=device)
        for x, y in _batches(images, device, self.stop):
            point = self.attack(net, x, y, self.eps, self.norm, rng)
            with torch.no_grad():
                right, logits = net(x).argmax(1) == y, net(point)
            robust = right & (logits.argmax(1) == y)
            sums += torch.stack(
                [right.sum(), robust.sum(), cross_entropy(logits, y).double().sum()]
            )
        return sums

    def row(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """``curve_<split>_clean`` and ``_robust`` in percent, ``_robust_loss`` in nats."""
        row: dict[str, float] = {}
        for split, images in self.images.items():
            clean, robust, loss = (sums[split] / len(images)).tolist()
            row |= {f"curve_{split}_clean": 100 * clean, f"curve_{split}_robust": 100 * robust}
            row[f"curve_{split}_robust_loss"] = loss
        return row


BATCH = 250
"""Images measured at once."""
QUANTILES = (0, 25, 50, 75, 100)
"""Of the margins, in percent."""


@dataclass
class Monitor:
    """Measures a network; the same images every time.

    Args:
        images: what margins, gaps and gradients are measured on; at least one.
        split: whose images these are, ``val`` or ``train``.
        norm: of the margins.
        effective: images by split, ``train`` and ``test``, whose effective margins (EMR, eq. 3;
            L2) are measured too.
        curves: accuracies and loss under attack; ``None`` measures none.
        stop: asked before every batch.

    Attributes:
        margins: of the last measurement, in pixels, one per image; none before the first.
    """

    images: ImageSet
    split: str
    norm: Norm
    effective: Mapping[str, ImageSet]
    curves: Curves | None = None
    stop: Callable[[], bool] = never
    margins: Sequence[float] = ()

    def __call__(self, net: nn.Module) -> dict[str, float | str]:
        """The numbers of one epoch, for its line in ``metrics.jsonl``.

        ``margin_q0`` to ``margin_q100``: quantiles of the signed Taylor margin towards the highest
        other class (``margins.top_margin``), in pixels. ``logit_gap_mean`` and ``logit_gap_p99``
        of z_(1) - z_(2). ``zero_gradient``: share of images in [0, 1] at which grad_x of the
        cross-entropy is exactly 0. ``margin_split``, ``margin_norm``: of what.
        ``margin_train``, ``margin_test`` and ``..._std``: effective margins of the correctly
        classified images. ``curve_...``: see ``Curves``.

        Args:
            net: images [N, C, H, W] in [0, 1] to logits [N, K].

        Raises:
            InterruptedRunError: ``stop`` said so.
        """
        # A head may normalise its weights in every forward pass, which rounds them.
        net = copy.deepcopy(net)
        device = next(net.parameters()).device
        with exact_arithmetic(device):
            margins = {"": self._survey(net, device)}
            for split, images in self.effective.items():
                margins[split] = _effective(net, _batches(images, device, self.stop))
            sums = {} if self.curves is None else self.curves.sums(net, device)
        margins, sums = on_host((margins, sums))  # one wait for the device
        margin, gap, dead = margins.pop("")
        row: dict[str, float | str] = {
            "margin_split": self.split,
            "margin_norm": self.norm,
            **numbers(Survey(margin, gap, dead.bool())),
        }
        for split, (value, gone) in margins.items():
            mean, std = summarise(value, (value > 0) & ~gone.bool())
            row |= {f"margin_{split}": mean, f"margin_{split}_std": std}
        if self.curves is not None:
            row |= self.curves.row(sums)
        self.margins = margin.tolist()
        return row

    def _survey(self, net: nn.Module, device: torch.device) -> Tensor:
        """Margins, gaps and vanished gradients, [3, N]."""
        found = (survey(net, x, y, self.norm) for x, y in _batches(self.images, device, self.stop))
        return _columns([(each.margin, each.logit_gap, each.zero_gradient) for each in found])


def numbers(found: Survey) -> dict[str, float]:
    """A survey in a few numbers; see ``Monitor``."""
    levels = torch.tensor(QUANTILES, dtype=torch.double, device=found.margin.device) / 100
    quantiles = torch.quantile(found.margin.double(), levels).tolist()
    gap = found.logit_gap.double()
    return {
        **{f"margin_q{q}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
        "logit_gap_mean": gap.mean().item(),
        "logit_gap_p99": torch.quantile(gap, 0.99).item(),
        "zero_gradient": found.zero_gradient.double().mean().item(),
    }


def fixed_subset(images: ImageSet, n: int | None, seed: int) -> ImageSet:
    """At most ``n`` random images, a function of ``seed`` and their number alone."""
    order = torch.randperm(len(images), generator=generator(seed, "monitor"))
    return images.subset(order[:n])


def _effective(net: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Effective margins and vanished gradients, [2, N]."""
    found = (effective_margin(net, x, y) for x, y in batches)
    return _columns([(each.value, each.zero_gradient) for each in found])


def _columns(parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Put numbers of each image, batch by batch, into rows of fp64."""
    return torch.cat([torch.stack([each.double() for each in part]) for part in parts], 1)


def _batches(
    images: ImageSet, device: torch.device, stop: Callable[[], bool]
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(images), BATCH):
        if stop():
            raise InterruptedRunError("stopped while margins were measured")
        rows = slice(start, start + BATCH)
        yield to_float(sent(images.images[rows], device)), sent(images.labels[rows], device)
