"""Fold BatchNorm into the convolutions of a network's copy, for attacks in evaluation mode.

In evaluation mode BatchNorm is an affine map, so conv followed by BatchNorm is one convolution:

    w' = w * gamma / sqrt(var + eps),   b' = (b - mean) * gamma / sqrt(var + eps) + beta

An attack's many passes then skip every foldable BatchNorm; the copy's weights carry no gradient,
so a backward pass computes that of the input alone. The result is that of the network up to
rounding. Pre-activation networks fold where a convolution feeds a BatchNorm and nothing else.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, fx, nn

from ablation.models.heads import LinearHead
from ablation.models.net import Net
from ablation.numerics.compiled import compile_passes

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights autocast rounds."""


class Folded:
    """Folded copies of a network to search on: one for each type that weights are stored in.

    Args:
        net: the network that is trained; its body must be traceable by torch.fx.
        compiled: rows of a batch that the copies' bodies are compiled for; ``None``: they are not.
    """

    def __init__(self, net: Net, compiled: int | None = None) -> None:
        self._source, self._compiled = net, compiled
        self._copies: dict[torch.dtype | None, _Copy] = {}

    def refresh(self, low: torch.dtype | None = None) -> Net:
        """Update a copy with the network's present weights and return it, in evaluation mode.

        Args:
            low: type that autocast rounds the factors of products to (``product_type``): weights
                are stored in it, so that the many passes of a search need not round them.
        """
        if low not in self._copies:
            self._copies[low] = _Copy(self._source, low)
            if self._compiled is not None:
                body = self._copies[low].net.body
                compile_passes(body, self._compiled, training=False)
        return self._copies[low].refresh()


class _Copy:
    """One folded copy, with weights of products in the type ``low`` if that is given."""

    def __init__(self, net: Net, low: torch.dtype | None) -> None:
        self._source = net
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        body = fx.symbolic_trace(self.net.body)
        self.pairs = _fold(body)
        self.net.body = body
        if low is not None:
            _store_in(low, self.net, body)
        folded = {f"body.{name}." for pair in self.pairs for name in pair}
        self._kept: dict[torch.dtype, list[str]] = {}
        for name, value in self.net.state_dict().items():
            if not any(name.startswith(each) for each in folded):
                self._kept.setdefault(value.dtype, []).append(name)
        convs = [self._layers(pair)[0] for pair in self.pairs]
        self._no_bias = [
            torch.zeros(conv.out_channels, dtype=conv.weight.dtype, device=conv.weight.device)
            for conv in convs
        ]

    def _layers(self, pair: tuple[str, str]) -> tuple[Conv, Norm]:
        """The convolution and the BatchNorm of the network, by their names."""
        find = self._source.body.get_submodule
        return cast(Conv, find(pair[0])), cast(Norm, find(pair[1]))

    @torch.no_grad()
    def refresh(self) -> Net:
        """Update the copy in place: its tensors stay where they are."""
        source, folded = self._source.state_dict(), self.net.state_dict()
        for names in self._kept.values():  # a list of one type is one launch on a GPU
            torch._foreach_copy_([folded[n] for n in names], [source[n] for n in names])
        if not self.pairs:
            return self.net
        layers = [self._layers(pair) for pair in self.pairs]
        means = [cast(Tensor, norm.running_mean) for _, norm in layers]
        variances = [cast(Tensor, norm.running_var) for _, norm in layers]
        gammas, betas = ([getattr(norm, name) for _, norm in layers] for name in ("weight", "bias"))
        # The operations of torch's fuse_conv_bn_weights, in its order: the same bits.
        spread = torch._foreach_add(variances, [norm.eps for _, norm in layers])
        torch._foreach_rsqrt_(spread)
        scales = torch._foreach_mul(gammas, spread)
        biases = [
            zeros if conv.bias is None else conv.bias
            for (conv, _), zeros in zip(layers, self._no_bias, strict=True)
        ]
        shifts = torch._foreach_sub(biases, means)
        torch._foreach_mul_(shifts, spread)
        torch._foreach_mul_(shifts, gammas)
        torch._foreach_add_(shifts, betas)
        names = [f"body.{conv}" for conv, _ in self.pairs]
        torch._foreach_copy_([folded[f"{name}.bias"] for name in names], shifts)
        for name, (conv, _), scale in zip(names, layers, scales, strict=True):
            shape = (-1,) + (1,) * (conv.weight.dim() - 1)
            torch.mul(conv.weight, scale.view(shape), out=folded[f"{name}.weight"])
        return self.net


def search_copy(net: nn.Module) -> nn.Module:
    """Return a network of the same function, up to rounding, that is cheaper to search on.

    A frozen copy in evaluation mode and channels last, with every ``Net`` in it folded. A network
    without a ``Net``, or with one that torch.fx cannot trace, is returned as it is.
    """
    names = [name for name, module in net.named_modules() if isinstance(module, Net)]
    if not names:
        return net
    copied = copy.deepcopy(net).requires_grad_(False).eval()
    for name in names:
        try:
            folded = Folded(cast(Net, net.get_submodule(name))).refresh()
        except fx.proxy.TraceError:
            return net
        if not name:
            copied = folded
        else:
            copied.set_submodule(name, folded)
    return copied.to(memory_format=torch.channels_last)


def _store_in(low: torch.dtype, net: Net, body: fx.GraphModule) -> None:
    """Store the weights that autocast would round in its type: the same bits, rounded once."""
    names = [f"body.{call.target}" for call in body.graph.nodes if call.op == "call_module"]
    if isinstance(net.head, LinearHead):
        names.append("head.linear")
    for module in map(net.get_submodule, names):
        if type(module) in PRODUCTS and module.weight.dtype == torch.float32:
            module.to(low)


def _fold(body: fx.GraphModule) -> list[tuple[str, str]]:
    """Remove each BatchNorm that is the only reader of a convolution; return (conv, norm) names."""
    modules, pairs = dict(body.named_modules()), []
    for call in list(body.graph.nodes):
        before = call.args[0] if call.args else None
        if not (isinstance(before, fx.Node) and call.op == before.op == "call_module"):
            continue
        conv, norm = modules[str(before.target)], modules[str(call.target)]
        if not (isinstance(conv, Conv) and isinstance(norm, Norm) and len(before.users) == 1):
            continue
        if not (norm.affine and norm.track_running_stats):
            continue
        if conv.bias is None:
            zeros = conv.weight.new_zeros(conv.out_channels)
            conv.bias = nn.Parameter(zeros, requires_grad=False)
        call.replace_all_uses_with(before)
        body.graph.erase_node(call)
        pairs.append((str(before.target), str(call.target)))
    body.delete_all_unused_submodules()
    body.recompile()
    return pairs
