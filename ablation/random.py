"""Keyed random streams: every draw is a function of (seed, stream, step), never of history.

A private generator per key means that resuming needs no generator state, that adding a component
changes no other draws, and that the arms of an ablation are paired: same order, crops and starts.
"""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, stream: str, step: int) -> int:
    """Hash ``(seed, stream, step)`` to a 63-bit integer, the same on every platform."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(
    seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Make a fresh generator for one key.

    Args:
        seed: the run's seed.
        stream: name of what draws, for example ``"attack/adv"`` or ``"augment"``.
        step: the step or epoch of the draw.
        device: where the drawn tensors live. CPU and CUDA draw different numbers.
    """
    return torch.Generator(device=device).manual_seed(key(seed, stream, step))
