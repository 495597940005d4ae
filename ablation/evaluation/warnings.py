"""Collect the warnings of the attack packages, each once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
    """Reduce messages that differ in their numbers only to the one with the largest number.

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
