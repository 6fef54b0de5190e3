"""What shapes gradients beside the loss: Balancer, score penalty, scale, limiter of parameters; not Whiten,
which has a page of its own.

All of them act in training only, and all but the limiter are identities with a backward pass of their own.
The gradients are closed forms of the Zipformer definitions; statistics are computed in the forward pass in
float32, so that the backward pass is one sweep.
"""

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.encoders.step_context import Schedule, StepContext, as_schedule
from spear_lib.kernels import fused

_FLOOR = 1.0e-20
_RMS_OF_ABS = 1.25331413732  # RMS / mean absolute value of a Gaussian: sqrt(pi / 2)
PENALTY_LIMIT = 25.0  # of attention scores


def mean_over_std_limit(proportion_positive: float) -> float:
    """Mean over standard deviation of a channel with this share of positive values (Zipformer's formula)."""
    p, epsilon = proportion_positive, 1.0e-10
    return 0.8139535143 * 0.5 * (math.log(2 * p + epsilon) - math.log(2 - 2 * p + epsilon))


@dataclass(frozen=True)
class BalancerLimits:
    """Ranges of one call of a Balancer, in the quantities that it measures.

    Attributes:
      min_mean, max_mean: range of mean / standard deviation.
      min_rms, max_rms: range of the RMS.
      grad_scale: size of the added gradient relative to the gradient itself.
    """

    min_mean: float
    max_mean: float
    min_rms: float
    max_rms: float
    grad_scale: float

    @classmethod
    def of(
        cls, positive: tuple[float, float], absolute: tuple[float, float], grad_scale: float
    ) -> "BalancerLimits":
        """From ranges of the share of positive values and of the mean absolute value."""
        mean = [mean_over_std_limit(value) for value in positive]
        return cls(*mean, *(_RMS_OF_ABS * value for value in absolute), grad_scale)

    def coefficients(self, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Of mean x and mean x^2 of each channel (C,): offset and slope (C,), so that the gradient g becomes
        g + |g| (offset + slope x)."""
        std2 = (square - mean * mean).clamp_(min=_FLOOR)
        std = std2.sqrt()
        square = square.clamp(min=_FLOOR)
        rms = square.sqrt()
        ratio = mean / std
        alpha = (ratio > self.max_mean).to(mean.dtype) - (ratio < self.min_mean).to(mean.dtype)
        omega = (rms > self.max_rms).to(mean.dtype) - (rms < self.min_rms).to(mean.dtype)
        slope = omega / square - alpha * ratio / std2
        offset = alpha * (1.0 / std + ratio * mean / std2)
        size = ((offset + slope * mean).square() + slope.square() * std2).sqrt()
        factor = self.grad_scale / size.clamp_(min=_FLOOR)
        return offset * factor, slope * factor


class ChannelMoments:
    """Adds up x and x^2 of the channels over the parts that it is given."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """rows (n, C)."""
        self.count += rows.shape[0]
        if fused("balancer", rows):
            self.sums.append(torch.ops.spear.channel_moments(_adjacent(rows)))
        else:
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            self.sums.append(torch.stack([rows.sum(dim=0), rows.square().sum(dim=0)]).unsqueeze(0))

    def coefficients(self, limits: BalancerLimits) -> Tensor:
        """Offset and slope (2, C) of what was added."""
        sums = self.sums[0] if len(self.sums) == 1 else torch.cat(self.sums)
        if fused("balancer", sums):
            return torch.ops.spear.balancer_coefficients(sums, self.count, list(astuple(limits)))
        return torch.stack(limits.coefficients(*(sums.sum(dim=0) / self.count)))


def _adjacent(rows: Tensor) -> Tensor:
    """rows (n, C) with the channels side by side in memory."""
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def balanced_gradient(rows: Tensor, grad: Tensor, coefficients: Tensor) -> Tensor:
    """rows, grad (n, C), coefficients (2, C) -> what the Balancer makes of the gradient, in its format."""
    if fused("balancer", rows):
        return torch.ops.spear.balancer_gradient(_adjacent(rows), _adjacent(grad), coefficients)
    wide = grad.to(coefficients.dtype)
    change = torch.addcmul(coefficients[0], coefficients[1], rows.to(coefficients.dtype))
    return torch.addcmul(wide, wide.abs(), change).to(grad.dtype)


class _BalancerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, channel_dim, limits):
        ctx.by_rows = channel_dim % x.dim() == x.dim() - 1 and fused("balancer", x)
        with torch.autocast(x.device.type, enabled=False):
            if ctx.by_rows:
                moments = ChannelMoments()
                moments.add(x.reshape(-1, x.shape[-1]))
                ctx.save_for_backward(x, moments.coefficients(limits))
                return x.view_as(x)
            shape = [1] * x.dim()
            shape[channel_dim] = x.shape[channel_dim]
            others = [dim for dim in range(x.dim()) if dim != channel_dim % x.dim()]
            x32 = x.float()
            count = x.numel() // x.shape[channel_dim]
            offset, slope = limits.coefficients(x32.mean(dim=others), x32.square().sum(dim=others) / count)
            ctx.save_for_backward(x, offset.reshape(shape), slope.reshape(shape))
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.by_rows:
            x, coefficients = ctx.saved_tensors
            rows = x.reshape(-1, x.shape[-1])
            return balanced_gradient(rows, grad.reshape(rows.shape), coefficients).view(x.shape), None, None
        x, offset, slope = ctx.saved_tensors
        change = torch.addcmul(offset, slope, x.float())
        return torch.addcmul(grad.float(), grad.abs(), change).to(grad.dtype), None, None


class Balancer(nn.Module):
    """Keeps each channel's share of positive values and mean absolute value in a range (Zipformer).

    Measured, as in the reference, on what one process sees of the batch (so is Whiten).

    Args:
      context: the shared clock and coins.
      channel_dim: the channel axis of the input.
      min_positive, max_positive: range of the share of positive values.
      min_abs, max_abs: range of the mean absolute value.
      prob: share of the training calls in which it acts.
      grad_scale: size of the added gradient relative to the gradient itself.
      enabled: false makes it an identity.
    """

    def __init__(
        self,
        context: StepContext,
        channel_dim: int,
        min_positive: Schedule | float,
        max_positive: Schedule | float,
        min_abs: Schedule | float,
        max_abs: Schedule | float,
        prob: Schedule | float | None = None,
        grad_scale: float = 0.04,
        enabled: bool = True,
    ):
        super().__init__()
        self.context = context
        self.channel_dim = channel_dim
        self.min_positive = as_schedule(min_positive)
        self.max_positive = as_schedule(max_positive)
        self.min_abs = as_schedule(min_abs)
        self.max_abs = as_schedule(max_abs)
        self.prob = Schedule((0, 0.5), (8000, 0.125), default=0.4) if prob is None else as_schedule(prob)
        self.grad_scale = grad_scale
        self.enabled = self.measures_share = enabled
        self.coin = context.new_coin()

    def limits(self, requires_grad: bool = True) -> BalancerLimits | None:
        """The limits of this call, or None where it does nothing."""
        if not (self.training and self.enabled and requires_grad):
            return None
        count = self.context.batch_count
        if self.context.coin(self.coin) >= self.prob(count):
            return None
        positive = (self.min_positive(count), self.max_positive(count))
        return BalancerLimits.of(positive, (self.min_abs(count), self.max_abs(count)), self.grad_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Identity on x (any shape)."""
        limits = self.limits(x.requires_grad)
        return x if limits is None else apply_limits(x, self.channel_dim, limits)


def apply_limits(x: Tensor, channel_dim: int, limits: BalancerLimits) -> Tensor:
    """Identity on x; the backward pass applies the Balancer with these limits."""
    return _BalancerFunction.apply(x, channel_dim, limits)


def balance(
    x: Tensor,
    channel_dim: int,
    positive: tuple[float, float],
    absolute: tuple[float, float],
    grad_scale: float = 0.04,
) -> Tensor:
    """Identity on x; the backward pass applies the Balancer with these limits."""
    return apply_limits(x, channel_dim, BalancerLimits.of(positive, absolute, grad_scale))


def limit_gradient(value: Tensor, grad: Tensor, minimum: float, maximum: float) -> Tensor:
    """``grad``, negated where value is out of range and descent would move it further out (same shapes)."""
    wrong = ((value < minimum) & (grad > 0)) | ((value > maximum) & (grad < 0))
    return torch.where(wrong, -grad, grad)


@dataclass(frozen=True)
class Limiter:
    """Bounds of one parameter whose gradient is limited in 60 % of the steps (Zipformer).

    The reference does so in the backward pass, on the gradient of one process. Ours does it once per step on
    the gradient of the global batch (``limit_gradients``), so that it does not depend on the number of
    processes.
    """

    parameter_name: str
    minimum: Schedule
    maximum: float
    coin: int
    probability: float = 0.6


@torch.no_grad()
def limit_gradients(module: nn.Module, context: StepContext) -> None:
    """Apply the limiters of all submodules (attribute ``limiter``) to the gradients, in place.

    Parameters with the same bounds are limited together: a few kernels per step, not a few per parameter.
    """
    chosen: dict[tuple[float, float], list[tuple[Tensor, Tensor]]] = {}
    for part in module.modules():
        limiter = getattr(part, "limiter", None)
        if limiter is None or context.coin(limiter.coin) >= limiter.probability:
            continue
        parameter = getattr(part, limiter.parameter_name)
        if parameter.grad is not None:
            bounds = (limiter.minimum(context.batch_count), limiter.maximum)
            chosen.setdefault(bounds, []).append((parameter.flatten(), parameter.grad.view(-1)))
    for (minimum, maximum), pairs in chosen.items():
        values, grads = zip(*pairs)
        limited = limit_gradient(torch.cat(values), torch.cat(grads), minimum, maximum)
        torch._foreach_copy_(grads, limited.split([grad.numel() for grad in grads]))


def score_penalty(scores: Tensor, limit: float = PENALTY_LIMIT, penalty: float = 1.0e-4) -> Tensor:
    """The gradient of penalty * sum(max(|scores| - limit, 0)) (Zipformer)."""
    return (scores.abs() > limit) * scores.sign() * penalty


class _ScaleGradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.scale, None


class ScaleGrad(nn.Module):
    """Identity whose gradient is multiplied by ``scale`` in training (Zipformer front end)."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Identity on x (any shape)."""
        return _ScaleGradFunction.apply(x, self.scale) if self.training and x.requires_grad else x
