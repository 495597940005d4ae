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
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ablation.models.net import Net

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Folded:
    """A folded copy of a network; ``refresh`` updates it with the network's weights.

    Args:
        net: the network that is trained; its body must be traceable by torch.fx.
    """

    def __init__(self, net: Net) -> None:
        self._source = net
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        body = fx.symbolic_trace(self.net.body)
        self._pairs = _fold(body)
        self.net.body = body
        folded = {f"body.{name}." for pair in self._pairs for name in pair}
        names = self.net.state_dict(keep_vars=True)
        self._kept = [name for name in names if not any(name.startswith(f) for f in folded)]

    @torch.no_grad()
    def refresh(self) -> Net:
        """Update the copy with the network's present weights and return it, in evaluation mode."""
        source = self._source.state_dict()
        folded = self.net.state_dict()
        for name in self._kept:
            folded[name].copy_(source[name])
        for conv_name, norm_name in self._pairs:
            conv = cast(nn.Conv2d, self._source.body.get_submodule(conv_name))
            norm = cast(nn.BatchNorm2d, self._source.body.get_submodule(norm_name))
            weight, bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                cast(Tensor, norm.running_mean),
                cast(Tensor, norm.running_var),
                norm.eps,
                norm.weight,
                norm.bias,
            )
            folded[f"body.{conv_name}.weight"].copy_(weight)
            folded[f"body.{conv_name}.bias"].copy_(bias)
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
