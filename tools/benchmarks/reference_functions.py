"""Activations and regularisers as the reference computes them, written from the specification (scaling.md).

k2's Swoosh kernels are stood in for by operators ``spear_stand_in::``, which a count of kernels takes as one
each; on a CPU they compute the same with several.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.encoders.zipformer.regularisers import BalancerLimits

_SHIFT = {"L": (4.0, 0.035), "R": (1.0, 0.313261687)}


def _define(name: str, compute: Any, pretend: Any) -> Any:
    operator = torch.library.custom_op(f"spear_stand_in::{name}", compute, mutates_args=())
    operator.register_fake(pretend)
    return operator


def _forward(x: Tensor, kind: str) -> Tensor:
    shift, offset = _SHIFT[kind]
    x = x.float()
    return F.softplus(x - shift) - 0.08 * x - offset


def _forward_and_slope(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return _forward(x, kind), torch.sigmoid(x.float() - _SHIFT[kind][0]) - 0.08


def _forward_and_code(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    slope = torch.sigmoid(x.float() - _SHIFT[kind][0])
    return _forward(x, kind), (slope * (255 / 1.005) + torch.rand_like(slope)).to(torch.uint8)


def _backward(code: Tensor, grad: Tensor) -> Tensor:
    return grad * (code * (1.005 / 255) - 0.08)


def _wide(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


swoosh_forward = _define("swoosh_forward", _forward, lambda x, kind: _wide(x))
swoosh_forward_and_slope = _define(
    "swoosh_forward_and_slope", _forward_and_slope, lambda x, kind: (_wide(x), _wide(x))
)
swoosh_forward_and_code = _define(
    "swoosh_forward_and_code",
    _forward_and_code,
    lambda x, kind: (_wide(x), torch.empty_like(x, dtype=torch.uint8)),
)
swoosh_backward = _define("swoosh_backward", _backward, lambda code, grad: torch.empty_like(grad))


class Swoosh(torch.autograd.Function):
    """Of the front end: the derivative is kept in 8 bits (scaling.md 2)."""

    @staticmethod
    def forward(ctx, x, kind):
        y, code = swoosh_forward_and_code(x, kind)
        ctx.save_for_backward(code)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx, grad):
        return swoosh_backward(ctx.saved_tensors[0], grad).to(ctx.dtype), None


class SwooshLinear(torch.autograd.Function):
    """Activation, dropout and linear layer as one unit (scaling.md 3)."""

    @staticmethod
    def forward(ctx, x, weight, bias, kind, mask):
        ctx.save_for_backward(x, weight, mask)
        ctx.kind = kind
        ctx.bias_dtype = bias.dtype
        y = swoosh_forward(x, kind)
        y = y if mask is None else y * mask
        return F.linear(y, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask = ctx.saved_tensors
        y, slope = swoosh_forward_and_slope(x, ctx.kind)
        y = y if mask is None else y * mask
        rows = grad.reshape(-1, grad.shape[-1])
        y = y.reshape(-1, y.shape[-1])
        grad_weight = torch.matmul(rows.t(), y.to(grad.dtype))
        grad_y = torch.matmul(grad, weight.to(grad.dtype))
        grad_x = grad_y * slope
        grad_x = grad_x if mask is None else grad_x * mask
        return (
            grad_x.to(x.dtype),
            grad_weight.to(weight.dtype),
            rows.sum(dim=0).to(ctx.bias_dtype),
            None,
            None,
        )


class Balance(torch.autograd.Function):
    """scaling.md 7, its gradient by the autograd engine."""

    @staticmethod
    def forward(ctx, x, dim, limits):
        ctx.save_for_backward(x)
        ctx.dim, ctx.limits = dim, limits
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        limits: BalancerLimits = ctx.limits
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.float().detach().requires_grad_()
            axes = [axis for axis in range(x.dim()) if axis != ctx.dim % x.dim()]
            square = (x**2).mean(dim=axes, keepdim=True)
            mean = x.mean(dim=axes, keepdim=True)
            deviation = (square - mean * mean).clamp(min=1.0e-20).sqrt()
            rms = square.clamp(min=1.0e-20).sqrt()
            ratio = mean / deviation
            loss = (ratio - ratio.clamp(min=limits.min_mean, max=limits.max_mean)).abs()
            bounded = rms.clamp(min=limits.min_rms, max=limits.max_rms)
            loss = loss + (bounded / rms).log().abs()
            loss.backward(torch.ones_like(loss))
            change = x.grad
            size = (change**2).mean(dim=axes, keepdim=True) ** 0.5
            change = change * (limits.grad_scale / size.clamp(min=1.0e-20))
            wide = grad.float()
            return (wide + wide.abs() * change).to(grad.dtype), None, None


class White(torch.autograd.Function):
    """scaling.md 8, its gradient by the autograd engine; the host reads the metric."""

    @staticmethod
    def forward(ctx, x, groups, limit, scale):
        ctx.save_for_backward(x)
        ctx.settings = groups, limit, scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        groups, limit, scale = ctx.settings
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.float().detach().requires_grad_()
            rows = x.reshape(-1, x.shape[-1])
            rows = rows.reshape(rows.shape[0], groups, -1).transpose(0, 1)
            rows = rows - rows.mean(dim=1, keepdim=True)
            covariance = torch.matmul(rows.transpose(1, 2), rows)
            diagonal = covariance.diagonal(dim1=1, dim2=2).mean()
            power = (covariance**2).sum() / (groups * covariance.shape[1])
            metric = power / (diagonal**2 + 1.0e-20)
            if float(metric.detach()) < limit:
                return grad, None, None, None
            metric.backward()
            change, wide = x.grad, grad.float()
            change = change * (scale * (wide.norm() / (change.norm() + 1.0e-20)))
            return (wide + change).to(grad.dtype), None, None, None


class Limit(torch.autograd.Function):
    """scaling.md 6: of a parameter, in each call."""

    @staticmethod
    def forward(ctx, value, low, high):
        ctx.save_for_backward(value)
        ctx.bounds = low, high
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        (value,), (low, high) = ctx.saved_tensors, ctx.bounds
        grad = grad * torch.where((grad > 0) & (value < low), -1.0, 1.0)
        return grad * torch.where((grad < 0) & (value > high), -1.0, 1.0), None, None


class Softmax(torch.autograd.Function):
    """scaling.md 10."""

    @staticmethod
    def forward(ctx, scores, dtype):
        weights = scores.float().softmax(dim=-1).to(dtype)
        ctx.save_for_backward(weights)
        ctx.dtype = scores.dtype
        return weights

    @staticmethod
    def backward(ctx, grad):
        with torch.autocast(grad.device.type, enabled=False):
            weights, grad = ctx.saved_tensors[0].float(), grad.float()
            product = grad * weights
            return (product - weights * product.sum(dim=-1, keepdim=True)).to(ctx.dtype), None


class BiasNormByAutograd(torch.autograd.Function):
    """zipformer.md 10, its gradient by the autograd engine."""

    @staticmethod
    def forward(ctx, x, bias, log_scale):
        with torch.autocast(x.device.type, enabled=False):
            gain = ((x - bias) ** 2).mean(dim=-1, keepdim=True) ** -0.5 * log_scale.exp()
            ctx.save_for_backward(x, bias, log_scale, gain)
            return x * gain

    @staticmethod
    def backward(ctx, grad):
        x, bias, log_scale, gain = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            given = [each.detach().requires_grad_() for each in (x, bias, log_scale)]
            x, bias, log_scale = given
            gain = ((x - bias) ** 2).mean(dim=-1, keepdim=True) ** -0.5 * log_scale.exp()
            (x * gain).backward(grad.to(x.dtype))
            return tuple(each.grad for each in given)


class ScaleGradient(torch.autograd.Function):
    """scaling.md 11."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.scale, None
