"""A copy of the network for searches in evaluation mode, BatchNorm folded into the convolutions.

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
    """Keeps a folded copy of a network; ``refresh`` brings it up to the network's weights.

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
        mine = self.net.state_dict(keep_vars=True)
        self._kept = [name for name in mine if not any(name.startswith(f) for f in folded)]

    @torch.no_grad()
    def refresh(self) -> Net:
        """The copy with the network's present weights, in evaluation mode."""
        theirs = self._source.state_dict()
        mine = self.net.state_dict()
        for name in self._kept:
            mine[name].copy_(theirs[name])
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
            mine[f"body.{conv_name}.weight"].copy_(weight)
            mine[f"body.{conv_name}.bias"].copy_(bias)
        return self.net


def _fold(body: fx.GraphModule) -> list[tuple[str, str]]:
    """Drop every BatchNorm that alone reads a convolution; returns (conv, norm) names."""
    modules, pairs = dict(body.named_modules()), []
    for node in list(body.graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and node.op == before.op == "call_module"):
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        if not (isinstance(conv, Conv) and isinstance(norm, Norm) and len(before.users) == 1):
            continue
        if not (norm.affine and norm.track_running_stats):
            continue
        if conv.bias is None:
            zeros = conv.weight.new_zeros(conv.out_channels)
            conv.bias = nn.Parameter(zeros, requires_grad=False)
        node.replace_all_uses_with(before)
        body.graph.erase_node(node)
        pairs.append((str(before.target), str(node.target)))
    body.delete_all_unused_submodules()
    body.recompile()
    return pairs
