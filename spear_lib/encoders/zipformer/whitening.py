"""Whiten: keeps the channels of activations from collapsing onto few directions (Zipformer).

An identity whose backward pass adds to the gradient what makes the covariance of the channels whiter, where a
metric of it is above a limit. Statistics are computed in the forward pass.

Shapes: n rows, C channels in G groups of d.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.encoders.step_context import Schedule, StepContext, as_schedule
from spear_lib.encoders.zipformer.modules import at_least_float32
from spear_lib.kernels import fused
from spear_lib.runtime.devices import on_host

_FLOOR = 1.0e-20
# Whiten looks at its input in this share of the calls. The reference lowers the share to 0.025 while the
# metric is below the limit; that only saves time and is state that a resumed run would have to restore.
WHITEN_PROBABILITY = 0.25


def _centred_covariance(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Group means (G, 1, d) and unnormalised group covariances (G, d, d) of x (n, C) float32."""
    mean = x.mean(dim=0)
    grouped = x.reshape(x.shape[0], num_groups, -1).transpose(0, 1)
    group_mean = mean.reshape(num_groups, 1, -1)
    centred = grouped - group_mean
    return group_mean, torch.matmul(centred.transpose(1, 2), centred)


def _whitening_metric(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The metric (>= 1, equal for white data) and the mean diagonal entry of (G, d, d) covariances."""
    num_channels = covariance.shape[0] * covariance.shape[1]
    mean_diagonal = covariance.diagonal(dim1=1, dim2=2).mean()
    metric = covariance.square().sum() / num_channels / (mean_diagonal.square() + _FLOOR)
    return metric, mean_diagonal


def whitening_metric(x: Tensor, num_groups: int = 1) -> Tensor:
    """How far the channels (last axis) of x are from white, per group: 1 is white, larger is less so."""
    x32 = at_least_float32(x.detach()).reshape(-1, x.shape[-1])
    return _whitening_metric(_centred_covariance(x32, num_groups)[1])[0]


class _WhitenFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, num_groups, limit, grad_scale):
        with torch.autocast(x.device.type, enabled=False):
            x32 = at_least_float32(x).reshape(-1, x.shape[-1])
            mean, covariance = _centred_covariance(x32, num_groups)
            metric, mean_diagonal = _whitening_metric(covariance)
            ctx.active = True
            # On a CPU the branch is free; on a device and in a compiled graph the scale below is 0 instead.
            if on_host(x) and not torch.compiler.is_compiling() and metric.item() < limit:
                ctx.active = False
                return x.view_as(x)
            direction = covariance - torch.eye(covariance.shape[1], device=x.device, dtype=x32.dtype) * (
                metric * mean_diagonal
            )
            ctx.num_groups = num_groups
            ctx.save_for_backward(
                x, direction, torch.matmul(mean, direction), torch.where(metric < limit, 0.0, grad_scale)
            )
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if not ctx.active:
            return grad, None, None, None
        x, direction, offset, grad_scale = ctx.saved_tensors
        grad32 = at_least_float32(grad)
        x32 = at_least_float32(x).reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            if ctx.num_groups == 1:
                change = torch.addmm(offset[0], x32, direction[0], beta=-1)
            else:
                grouped = x32.reshape(x32.shape[0], ctx.num_groups, -1).transpose(0, 1)
                change = (torch.matmul(grouped, direction) - offset).transpose(0, 1).reshape(x32.shape)
            # The norm of the product itself: a closed form of it costs a product of d x d matrices.
            size = grad_scale * torch.linalg.vector_norm(grad32)
            change = change.mul_(size / (torch.linalg.vector_norm(change) + _FLOOR)).reshape(x.shape)
            return change.add_(grad32).to(grad.dtype), None, None, None


class _FusedWhitenFunction(torch.autograd.Function):
    """``_WhitenFunction`` by two kernels each way; whether it acts is known to them alone."""

    @staticmethod
    def forward(ctx, x, num_groups, limit, grad_scale):
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        kind = x.device.type
        ctx.precise = x.dtype == torch.float32 and not torch.is_autocast_enabled(kind)
        ctx.limit, ctx.grad_scale = float(limit), float(grad_scale)
        found = torch.ops.spear.whitening_products(rows, num_groups, ctx.precise)
        ctx.save_for_backward(rows, *torch.ops.spear.whitening_statistics(*found, rows.shape[0]))
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, covariance, mean, squares = ctx.saved_tensors
        flat = grad.reshape(rows.shape).contiguous()
        change, norms = torch.ops.spear.whitening_change(
            rows, flat, covariance, mean, squares, ctx.limit, ctx.precise
        )
        result = torch.ops.spear.whitening_gradient(flat, change, norms, squares, ctx.limit, ctx.grad_scale)
        return result.view(grad.shape), None, None, None


def whiten(x: Tensor, num_groups: int, limit: float, grad_scale: float) -> Tensor:
    """Identity on x (..., C); the backward pass applies Whiten with this limit."""
    function = _FusedWhitenFunction if x.numel() > 0 and fused("whiten", x) else _WhitenFunction
    return function.apply(x, num_groups, limit, grad_scale)


class Whiten(nn.Module):
    """Stops the covariance of the channels (last axis) from collapsing onto few directions (Zipformer)."""

    def __init__(
        self,
        context: StepContext,
        limit: Schedule | float,
        grad_scale: float,
        num_groups: int = 1,
        enabled: bool = True,
    ):
        super().__init__()
        self.context = context
        self.limit = as_schedule(limit)
        self.grad_scale = grad_scale
        self.num_groups = num_groups
        self.enabled = self.measures_share = enabled
        self.coin = context.new_coin()

    def forward(self, x: Tensor) -> Tensor:
        """Identity on x (..., C)."""
        if not (self.training and self.enabled and x.requires_grad):
            return x
        if self.context.coin(self.coin) >= WHITEN_PROBABILITY:
            return x
        return whiten(x, self.num_groups, self.limit(self.context.batch_count), self.grad_scale)
