"""Swoosh activations, alone and fused with linear layers, with backward passes that save memory.

On a device nothing is kept that can be recomputed from what is kept anyway: of an activation and its linear
layer only the input, of a network of two linear layers only the input of the first. On a CPU exponentials are
dear and memory is not (recomputing took 3 % of a Base step), so there the parts run one after the other.

Shapes: (..., C) with channels last; n rows.
"""

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spear_lib.encoders.zipformer.modules import at_least_float32, product_dtype
from spear_lib.encoders.zipformer.regularisers import (
    BalancerLimits,
    ChannelMoments,
    apply_limits,
    balanced_gradient,
)
from spear_lib.kernels import fused
from spear_lib.runtime.devices import on_host, recording

_LINEAR_TERM = 0.08
_SHIFT = {"L": 4.0, "R": 1.0}
_OFFSET = {"L": 0.035, "R": 0.313261687}
_K2_DEVICES = ("cuda",)  # what k2 saves is passes over device memory
_ROWS = 1 << 18  # of a pointwise network, computed at once: what keeps a device busy


def _recomputes(x: Tensor) -> bool:
    """Whether activations are computed again in the backward pass rather than kept."""
    return not on_host(x) and not recording()


@cache
def _k2() -> ModuleType | None:
    try:
        import k2
    except ImportError:  # absent, or built for another torch
        return None
    return k2


def _kernels(x: Tensor) -> ModuleType | None:
    """k2, where it is installed and has kernels that suit ``x``."""
    suits = x.device.type in _K2_DEVICES and x.dtype != torch.float64 and not torch.compiler.is_compiling()
    return _k2() if suits else None


def swoosh_kernels(device: torch.device) -> str:
    """Which Swoosh kernels ``device`` uses and why, for the first lines of a log."""
    if device.type not in _K2_DEVICES:
        return f"PyTorch's Swoosh (k2's are used on {' and '.join(_K2_DEVICES)})"
    k2 = _k2()
    if k2 is None:
        return "PyTorch's Swoosh (k2 is not installed for this torch; with it Swoosh is one kernel)"
    return "k2's Swoosh"


def _fused(x: Tensor, multiplier: Tensor | None) -> bool:
    """Whether one kernel computes Swoosh of x: it knows multipliers (B, 1, C) of (B, T, C)."""
    fits = multiplier is None or (x.dim() == 3 and multiplier.shape == (x.shape[0], 1, x.shape[2]))
    return fits and fused("swoosh", x)


def _contiguous(x: Tensor, multiplier: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if multiplier is not None and multiplier.stride(2) != 1:
        multiplier = multiplier.contiguous()
    return x.contiguous(), multiplier


def _swoosh_value(x: Tensor, kind: str, multiplier: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The value in ``dtype``."""
    if _fused(x, multiplier):
        return torch.ops.spear.swoosh(*_contiguous(x, multiplier), kind, dtype)
    k2 = _kernels(x)
    if k2 is not None:
        y = getattr(k2, f"swoosh_{kind.lower()}_forward")(x.contiguous())
    else:
        x32 = at_least_float32(x)
        y = F.softplus(x32 - _SHIFT[kind])
        y.sub_(x32, alpha=_LINEAR_TERM).sub_(_OFFSET[kind])
    return (y if multiplier is None else y.mul_(multiplier)).to(dtype)


def _swoosh_gradient(x: Tensor, kind: str, multiplier: Tensor | None, grad: Tensor) -> Tensor:
    """``grad`` times the derivative, in the number format of x."""
    if _fused(x, multiplier):
        x, multiplier = _contiguous(x, multiplier)
        return torch.ops.spear.swoosh_gradient(x, grad.contiguous(), multiplier, kind)
    k2 = _kernels(x)
    if k2 is not None:
        # The exact derivative; k2's own autograd function rounds it to 8 bits at random.
        slope = getattr(k2, f"swoosh_{kind.lower()}_forward_and_deriv")(x.contiguous())[1].mul_(grad)
    else:
        slope = (at_least_float32(x) - _SHIFT[kind]).sigmoid_().sub_(_LINEAR_TERM).mul_(grad)
    return (slope if multiplier is None else slope.mul_(multiplier)).to(x.dtype)


def _swoosh_both(x: Tensor, kind: str, multiplier: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor]:
    """``_swoosh_gradient``, and the value in the number format of ``grad``."""
    if _fused(x, multiplier):
        x, multiplier = _contiguous(x, multiplier)
        return torch.ops.spear.swoosh_both(x, grad.contiguous(), multiplier, kind)
    return _swoosh_gradient(x, kind, multiplier, grad), _swoosh_value(x, kind, multiplier, grad.dtype)


class _SwooshFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kind, multiplier):
        ctx.save_for_backward(x, multiplier)
        ctx.kind = kind
        return _swoosh_value(x, kind, multiplier, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, multiplier = ctx.saved_tensors
        return _swoosh_gradient(x, ctx.kind, multiplier, grad), None, None


def swoosh(x: Tensor, kind: str, multiplier: Tensor | None = None) -> Tensor:
    """Swoosh activation of kind "L" or "R" (Zipformer), times an optional dropout multiplier.

    L(x) = ln(1 + exp(x - 4)) - 0.08 x - 0.035; R(x) = ln(1 + exp(x - 1)) - 0.08 x - 0.313261687.
    """
    return _SwooshFunction.apply(x, kind, multiplier)


def _sum_of_rows(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(C,) of rows (n, C), added up in float32 at least and rounded once, to ``dtype`` if it is narrower."""
    return rows.sum(dim=0, dtype=torch.promote_types(rows.dtype, dtype))


class _SwooshLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, kind, multiplier):
        dtype = product_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            hidden = _swoosh_value(x, kind, multiplier, dtype)
            y = F.linear(hidden, weight.to(dtype), bias.to(dtype))
        ctx.save_for_backward(x, weight, multiplier)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, multiplier = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.matmul(grad, weight.to(grad.dtype)) if for_x else None
        if for_x and for_weight:
            grad_x, hidden = _swoosh_both(x, ctx.kind, multiplier, grad_hidden)
        elif for_x:
            grad_x = _swoosh_gradient(x, ctx.kind, multiplier, grad_hidden)
        elif for_weight:
            hidden = _swoosh_value(x, ctx.kind, multiplier, grad.dtype)
        if for_weight:
            grad_weight = torch.mm(rows.t(), hidden.reshape(-1, x.shape[-1])).to(weight.dtype)
        if for_bias:
            grad_bias = _sum_of_rows(rows, weight.dtype).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None


def swoosh_linear(
    x: Tensor, weight: Tensor, bias: Tensor, kind: str, multiplier: Tensor | None = None
) -> Tensor:
    """A linear layer on ``swoosh(x, kind, multiplier)``; on a device only x is kept for the backward pass.

    Args:
      x: (..., C). weight: (D, C). bias: (D,).
      kind: "L" or "R".
      multiplier: dropout multiplier, broadcastable to x.

    Returns:
      (..., D).
    """
    if _recomputes(x):
        return _SwooshLinearFunction.apply(x, weight, bias, kind, multiplier)
    return F.linear(swoosh(x, kind, multiplier), weight, bias)


class _PointwiseNetworkFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, limits):
        dtype = product_dtype(x)
        rows = x.reshape(-1, x.shape[-1])
        y = x.new_empty(rows.shape[0], weight2.shape[0], dtype=dtype)
        moments = ChannelMoments()
        with torch.autocast(x.device.type, enabled=False):
            first = (weight1.to(dtype), bias1.to(dtype))
            second = (weight2.to(dtype), bias2.to(dtype))
            for part in _row_slices(rows):
                hidden = F.linear(rows[part].to(dtype), *first)
                if limits is not None:
                    moments.add(hidden)
                y[part] = F.linear(_swoosh_value(hidden, "L", None, dtype), *second)
            coefficients = None if limits is None else moments.coefficients(limits)
        ctx.save_for_backward(x, weight1, bias1, weight2, coefficients)
        ctx.dtype = dtype
        return y.reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight1, bias1, weight2, coefficients = ctx.saved_tensors
        dtype = ctx.dtype
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        first, bias, second = weight1.to(dtype), bias1.to(dtype), weight2.to(dtype)
        grad_x = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grads = [torch.zeros_like(at_least_float32(each)) for each in (weight1, bias1, weight2)]
        for part in _row_slices(rows):
            part_x, part_grad = rows[part].to(dtype), grad[part].to(dtype)
            hidden = F.linear(part_x, first, bias)
            change, value = _swoosh_both(hidden, "L", None, torch.mm(part_grad, second))
            grads[2] += torch.mm(part_grad.t(), value)
            if coefficients is not None:
                change = balanced_gradient(hidden, change, coefficients)
            grads[0] += torch.mm(change.t(), part_x)
            grads[1] += _sum_of_rows(change)
            if grad_x is not None:
                grad_x[part] = torch.mm(change, first)
        grads.append(_sum_of_rows(grad))
        if grad_x is not None:
            grad_x = grad_x.reshape(x.shape)
        return grad_x, *(each.to(weight1.dtype) for each in grads), None


def _row_slices(rows: Tensor) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, rows.shape[0], _ROWS)]


def pointwise_network(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    limits: BalancerLimits | None = None,
) -> Tensor:
    """Linear, Balancer, SwooshL, linear.

    On a device the hidden values exist for some rows at a time, and only x is kept for the backward pass.

    Args:
      x: (..., C). weight1: (H, C). bias1: (H,). weight2: (D, H). bias2: (D,).
      limits: of the Balancer on the hidden values, or None where it does not act.

    Returns:
      (..., D).
    """
    if _recomputes(x):
        return _PointwiseNetworkFunction.apply(x, weight1, bias1, weight2, bias2, limits)
    hidden = F.linear(x, weight1, bias1)
    if limits is not None:
        hidden = apply_limits(hidden, -1, limits)
    return F.linear(swoosh(hidden, "L"), weight2, bias2)
