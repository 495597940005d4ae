"""What an evaluation holds constant around the attacks, and what it checks after them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ablation.evaluation.attacks import AttackError
from ablation.types import Norm


class _Keep(logging.Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """Collect a logger's warnings instead of printing them, whatever the caller set it to."""
    logger, kept = logging.getLogger(name), list[str]()
    handlers, level, propagate, disabled = (
        logger.handlers,
        logger.level,
        logger.propagate,
        logger.disabled,
    )
    logger.handlers, logger.propagate, logger.disabled = [_Keep(kept)], False, False
    logger.setLevel(logging.WARNING)
    try:
        yield kept
    finally:
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


def distinct(messages: Iterable[str]) -> tuple[str, ...]:
    """One line for messages that differ in their numbers only: the one with the largest number.

    The package reports zero gradients for every batch and target anew.
    """
    groups: dict[str, list[str]] = {}
    for message in messages:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "#", message), []).append(message)
    return tuple(
        max(group, key=_numbers) + (f" (reported {len(group)} times)" if len(group) > 1 else "")
        for group in groups.values()
    )


def _numbers(message: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", message)]


@torch.no_grad()
def check_points(x_adv: Tensor, x: Tensor, eps: float, norm: Norm, attack: str) -> None:
    """Are the points of an attack allowed?

    Args:
        x_adv: its points, [N, C, H, W].
        x: the images.
        eps: radius; rounding may exceed it by eps * 1e-5 + 1e-6.
        norm: of the ball.
        attack: its name, for the message.

    Raises:
        AttackError: wrong shape, not finite, outside [0, 1] or outside the ball.
    """
    if x_adv.shape != x.shape:
        raise AttackError(f"{attack}: shape {tuple(x_adv.shape)} for images {tuple(x.shape)}")
    flat = (x_adv - x).flatten(1).double()
    length = flat.abs().amax() if norm == "linf" else flat.norm(dim=1).amax()
    # One look at the device for all of it; a NaN fails every comparison.
    low, high, far = torch.stack([x_adv.amin().double(), x_adv.amax().double(), length]).tolist()
    if not (low >= 0 and high <= 1):
        raise AttackError(f"{attack}: pixels in [{low:g}, {high:g}], outside [0, 1]")
    if not far <= eps * (1 + 1e-5) + 1e-6:
        raise AttackError(f"{attack}: {norm} distance {far:.8g} exceeds eps={eps:.8g}")
