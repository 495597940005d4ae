"""Read state dicts under the names that others give the same layers.

Every architecture that is common in the field declares ``names``: how other code calls its layers
(``resnet.py`` of kuangliu, TRADES and MART, ``preactresnet.py`` of Rice et al., ``wideresnet.py``
of TRADES, torchvision's VGG with BatchNorm). Wrappers are looked through: DataParallel, ``model.``
as in RobustBench's zoo, and a normalisation in front of the network, whose constants are taken.
A network from outside (``outside.py``) keeps its own names; wrappers are looked through alike.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ablation.errors import InputError
from ablation.models.net import Net

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "1.")
"""Of wrappers; ``1.`` is the network in ``Sequential(normalisation, network)``."""
NORMALISATION = re.compile(r"(?:.*\.)?(mean|mu|std|sigma)$")
HEAD = "head.linear."
COUNTER = "num_batches_tracked"
"""BatchNorm's, which the forward pass does not read; older checkpoints lack it."""


@dataclass(frozen=True)
class Names:
    """How other code calls the layers of an architecture.

    Attributes:
        rules: regular expressions for the beginning of a name, and what stands there in
            ``Net.state_dict()``; the first that matches counts.
        inner: replaced anywhere behind it.
        unused: beginnings of names whose layers take no part in the forward pass.
    """

    rules: Sequence[tuple[str, str]]
    inner: Sequence[tuple[str, str]] = ()
    unused: Sequence[str] = ()


@runtime_checkable
class Named(Protocol):
    """A specification of an architecture that other code has under other names."""

    @property
    def names(self) -> Names:
        """How others call its layers."""


def translate(weights: Mapping[str, Tensor], net: Net, spec: object) -> dict[str, Tensor]:
    """Rename a state dict to the names of ``net``; those that no rule knows stay as they are.

    Args:
        weights: names to tensors, ours or somebody else's.
        net: the network they are for.
        spec: its architecture.

    Raises:
        InputError: the weights come with constants of a normalisation that ``net`` does not have.
    """
    own = net.state_dict()
    if set(weights) & {name for name in own if name.startswith(("body.", "head."))}:
        return dict(weights)
    bare = _without_prefixes(weights)
    renamed = _normalisation(bare, net)
    names = spec.names if isinstance(spec, Named) else Names(())
    for name, value in bare.items():
        if not NORMALISATION.match(name) and not name.startswith(tuple(names.unused)):
            renamed[_renamed(name, names)] = value
    return renamed | _counters(own, renamed)


def fitted(weights: Mapping[str, Tensor], net: Net) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a state dict to the names of a network from outside, ``net.body``.

    Wrappers are looked through on either side. Constants of a normalisation that the network has
    and the weights lack stay as they are.

    Args:
        weights: names to tensors.
        net: the network in its input normalisation, if that is not its own.

    Returns:
        The state of ``net.body``, and the constants of ``net``'s own normalisation that come with
        the weights.

    Raises:
        InputError: they come with constants of a normalisation that no layer has.
    """
    own: dict[str, Tensor] = net.body.state_dict()
    bare = _without_prefixes(weights, own)
    if not own.keys() & set(_layers(bare)):
        wrapped = dict(zip(_without_prefixes(own), own, strict=True))
        bare = {wrapped.get(name, name): value for name, value in bare.items()}
    apart = {name: bare[name] for name in bare if NORMALISATION.match(name) and name not in own}
    layers = {name: value for name, value in bare.items() if name not in apart}
    constants = {name: own[name] for name in own if NORMALISATION.match(name)}
    layers = {**constants, **layers}
    return layers | _counters(own, layers), _normalisation(apart, net)


def _counters(own: Mapping[str, Tensor], given: Container[str]) -> dict[str, Tensor]:
    """BatchNorm's counters that are not given, as zeros."""
    return {
        name: torch.zeros_like(value)
        for name, value in own.items()
        if name.endswith(COUNTER) and name not in given
    }


def _layers(names: Iterable[str]) -> list[str]:
    return [name for name in names if not NORMALISATION.match(name)]


def _without_prefixes(weights: Mapping[str, Tensor], own: Container[str] = ()) -> dict[str, Tensor]:
    """Remove what wrappers put before every name but those of a normalisation.

    Args:
        weights: names to tensors.
        own: names at which to stop, because a network has them.
    """
    bare = dict(weights)
    while True:
        layers = _layers(bare)
        shared = [prefix for prefix in PREFIXES if all(n.startswith(prefix) for n in layers)]
        if not layers or not shared or any(name in own for name in layers):
            return bare
        bare = {name.removeprefix(shared[0]): value for name, value in bare.items()}


def _renamed(name: str, names: Names) -> str:
    for pattern, ours in names.rules:
        match = re.match(pattern, name)
        if match:
            start = ours if ours.startswith("head.") else f"body.layers.{ours}"
            rest = name[match.end() :]
            for inner, replacement in names.inner:
                rest = re.sub(inner, replacement, rest)
            return match.expand(start) + rest
    return name


def _normalisation(weights: Mapping[str, Tensor], net: Net) -> dict[str, Tensor]:
    """Give ``mean`` and ``std`` that come with the weights, in the shape of ``net``'s."""
    constants: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = NORMALISATION.match(name)
        if match:
            ours = {"mu": "mean", "sigma": "std"}.get(match[1], match[1])
            constants[ours] = value.reshape(1, -1, 1, 1)
    if constants and net.mean is None:
        raise InputError(
            "the weights come with the constants of an input normalisation, and this network has "
            "none: set model.normalize=true, which takes them over"
        )
    return constants
