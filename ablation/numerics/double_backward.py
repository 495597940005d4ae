"""A forward pass that is cheap to differentiate twice: to the input, then to the parameters.

Penalties on input gradients (EMR, IGR) need it. Two layers are the bulk of its cost in torch:

- The derivative of a convolution's input gradient is a convolution and a weight gradient. torch
  computes the latter as a convolution of transposed tensors, not by the kernel made for it.
- BatchNorm in evaluation mode is an affine map per channel, but its second derivative goes through
  that of batch statistics, operation by operation.

The results are those of torch's layers up to rounding. On a GPU these layers, and linear ones,
multiply fp32 numbers as they are in every pass: a context around the forward alone would leave the
backward passes, which run later, to TF32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair as pair
from torch.overrides import TorchFunctionMode

from ablation.numerics.precision import without_tf32


class TwiceDifferentiable(TorchFunctionMode):
    """Replace 2d convolutions, linear layers and evaluation-mode BatchNorm by those of this module.

    Meant for a forward pass whose input gradient is differentiated once more. Gradients of
    parameters cannot be differentiated again: autograd says so.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the cheaper form of ``func`` where there is one, else ``func`` itself."""
        del types
        return CHEAPER.get(func, func)(*args, **(kwargs or {}))


class _Shape(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: Any
    padding: Any
    dilation: Any
    groups: int


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Compute ``torch.conv2d`` such that an input gradient leaves out the parameters' gradients."""
    if isinstance(padding, str) or not torch.is_grad_enabled():
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    shape = _Shape(pair(stride), pair(padding), pair(dilation), groups)
    out = _ToParameters.apply(x.detach(), weight, bias, shape)
    result: Tensor = _ToInput.apply(out, x, weight, shape)
    return result


def _gradients(
    out: Tensor, x: Tensor, weight: Tensor, shape: _Shape, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute those gradients of input, weight and bias that are wanted, from that of ``out``."""
    with _exactly(x):
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            out,
            x,
            weight,
            [weight.shape[0]],
            *(shape.stride, shape.padding, shape.dilation),
            False,
            (0, 0),
            shape.groups,
            wanted,
        )
    return gradients


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
    with _exactly(x):
        return torch.conv2d(x, weight, bias, *shape)


def _exactly(x: Tensor) -> AbstractContextManager[None]:
    """Keep TF32 from products of ``x``; a CPU has none."""
    return nullcontext() if x.device.type == "cpu" else without_tf32()


class _ToParameters(Function):
    """The convolution, as a function of weight and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return _convolved(x, weight, bias, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, weight, bias, _ = ctx.needs_input_grad
        _, to_weight, to_bias = _gradients(grad, *ctx.saved_tensors, ctx.shape, False, weight, bias)
        return None, to_weight, to_bias, None


class _ToInput(Function):
    """The convolution's values, as a function of the input."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, shape: _Shape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        ctx.mark_dirty(out)  # the next layer may work in place, which a view would forbid
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return grad, _InputGradient.apply(grad, x.detach(), weight, ctx.shape), None, None


class _InputGradient(Function):
    """The input gradient of a convolution, linear in the output's and in the weight."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, shape: _Shape) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.shape = shape
        return _gradients(grad, x, weight, shape, True, False, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, second: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        to_grad = _convolved(second, weight, None, ctx.shape)
        to_weight = None
        if ctx.needs_input_grad[2]:
            to_weight = _gradients(grad, second, weight, ctx.shape, False, True, False)[1]
        return to_grad, None, to_weight, None


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``F.batch_norm``; in evaluation mode as the affine map of the running statistics."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    factor = torch.rsqrt(running_var + eps)
    if weight is not None:
        factor = factor * weight
    offset = -running_mean * factor  # autograd keeps the negative: the mean itself may move on
    if bias is not None:
        offset = offset + bias
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    return torch.addcmul(offset.view(per_channel), x, factor.view(per_channel))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.linear`` of ``x`` [N, D]; its products are exact in backward passes, too."""
    if x.device.type == "cpu" or x.dim() != 2 or not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight.mT)
    return out if bias is None else out + bias


class _Product(Function):
    """a @ b, to be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with _exactly(a):
            return a @ b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        to_a, to_b = ctx.needs_input_grad
        return (
            _Product.apply(grad, b.mT) if to_a else None,
            _Product.apply(a.mT, grad) if to_b else None,
        )


CHEAPER: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
}
"""torch function -> its cheaper form."""
