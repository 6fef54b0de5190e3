"""Small building blocks: BiasNorm, bypass, down- and up-sampling, scaled initialisation.

Shapes: B utterances, T frames, D channels; everything is batch-major (B, T, D).
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.encoders.step_context import Schedule, StepContext, as_schedule
from spear_lib.encoders.zipformer.regularisers import Limiter
from spear_lib.kernels import fused
from spear_lib.kernels.choice import FORMATS
from spear_lib.kernels.operations import MOST_GRADIENTS
from spear_lib.runtime.devices import recording

_WIDEST_NORM = 8192  # channels, that a kernel holds at once


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is already: an encoder in float64 is a witness for float32."""
    return x if x.dtype == torch.float64 else x.float()


def product_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product of ``x`` is computed in: autocast's number format where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _BiasNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, log_scale):
        with torch.autocast(x.device.type, enabled=False):
            x32 = at_least_float32(x)
            square = torch.linalg.vector_norm(x32 - bias, dim=-1, keepdim=True).square() / x.shape[-1]
            # Far below float32 noise of any real activation: only keeps an all-zero frame finite.
            square = square.clamp_(min=1.0e-20)
            gain = log_scale.exp() * square.rsqrt()
            ctx.save_for_backward(x, bias, gain, square)
            return x32 * gain

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, bias, gain, square = ctx.saved_tensors
        x32, grad32 = at_least_float32(x), at_least_float32(grad)
        product = gain * (grad32 * x32).sum(dim=-1, keepdim=True)
        weight = product / (square * x.shape[-1])
        centred = (x32 - bias).mul_(weight)
        grad_bias = centred.flatten(0, -2).sum(dim=0)
        grad_x = torch.addcmul(centred.neg_(), grad32, gain)
        return grad_x.to(x.dtype), grad_bias, product.sum()


class _FusedNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, log_scale):
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.save_for_backward(rows, bias, log_scale)
        return torch.ops.spear.bias_norm(rows, bias, log_scale).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, bias, log_scale = ctx.saved_tensors
        change = grad.reshape(rows.shape).contiguous()
        grad_x, sums = torch.ops.spear.bias_norm_gradient(rows, bias, log_scale, change)
        sums = sums.sum(dim=0)
        return grad_x.view(grad.shape), sums[:-1].to(bias.dtype), sums[-1].to(log_scale.dtype)


def bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """x * exp(log_scale) / sqrt(mean((x - bias)^2)) over the last axis; float32 (Zipformer)."""
    fits = x.numel() > 0 and x.shape[-1] <= _WIDEST_NORM
    function = _FusedNormFunction if fits and fused("bias_norm", x) else _BiasNormFunction
    return function.apply(x, bias, log_scale)


class BiasNorm(nn.Module):
    """Normalisation by the RMS of the input less a learned bias; the bias is not subtracted (Zipformer)."""

    def __init__(self, context: StepContext, dim: int, limit_gradients: bool = True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.empty(dim).normal_(mean=0.0, std=1.0e-4))
        limiter = Limiter("log_scale", as_schedule(-1.5), 1.5, context.new_coin())
        self.limiter = limiter if limit_gradients else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D), float32 unless the encoder was cast to something else."""
        return bias_norm(x, self.bias, self.log_scale).to(self.bias.dtype)


def _half(x: Tensor) -> torch.dtype | None:
    """What autocast would make of x, where that is another format."""
    dtype = product_dtype(x)
    return dtype if dtype != x.dtype and dtype in FORMATS else None


class _ResidualFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, mask, dtype):
        ctx.dtype, ctx.is_read = branch.dtype, dtype is not None
        mask = None if mask is None else mask.reshape(-1).float()
        ctx.save_for_backward(mask)
        y, rounded = torch.ops.spear.residual(x.contiguous(), branch.contiguous(), mask, dtype)
        return (y, rounded) if ctx.is_read else (y, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_rounded):
        rounded = grad_rounded.contiguous() if ctx.is_read else None
        (mask,) = ctx.saved_tensors
        return *torch.ops.spear.residual_gradient(grad.contiguous(), rounded, mask, ctx.dtype), None, None


def add(x: Tensor, branch: Tensor, mask: Tensor | None = None, is_read: bool = True) -> tuple[Tensor, Tensor]:
    """x + branch mask: what the next sum or bypass takes, and what the next branch reads.

    Both are the same tensor, or the second is rounded already to what autocast would make of it.

    Args:
      x, branch: (B, T, D).
      mask: 0/1 mask (B, 1, 1), or None where nothing is dropped.
      is_read: whether a branch reads the sum.
    """
    if x.numel() > 0 and branch.dtype in FORMATS and fused("residual", x):
        y, rounded = _ResidualFunction.apply(x, branch, mask, _half(x) if is_read else None)
        return y, y if rounded is None else rounded
    y = x + branch if mask is None else x + branch * mask
    return y, y


class _InterpolationFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, scale, mask, dtype):
        x, h = x.contiguous(), h.contiguous()
        scales = scale.reshape(-1, scale.shape[-1]).float()
        mask = None if mask is None else mask.reshape(-1).float()
        ctx.save_for_backward(x, h, scales, mask)
        ctx.scale_like, ctx.is_read = (scale.shape, scale.dtype), dtype is not None
        y, rounded = torch.ops.spear.bypass(x, h, scales, mask, dtype)
        return (y, rounded) if ctx.is_read else (y, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_rounded):
        x, h, scales, mask = ctx.saved_tensors
        given = grad.contiguous(), grad_rounded.contiguous() if ctx.is_read else None
        grad_x, grad_h, sums = torch.ops.spear.bypass_gradient(x, h, scales, mask, *given)
        shape, dtype = ctx.scale_like
        sums = sums.sum(dim=(0, 1) if scales.shape[0] == 1 else 1)
        return grad_x, grad_h, sums.view(shape).to(dtype), None, None


def interpolate(
    x: Tensor, h: Tensor, scale: Tensor, mask: Tensor | None = None, is_read: bool = False
) -> tuple[Tensor, Tensor]:
    """x + (h - x) scale in the format of x, twice, as ``add``.

    Args:
      x, h: (B, T, D). scale: (D,) or (B, 1, D).
      mask: 0/1 mask (B, 1), or None where nothing is dropped; the scale of a whole utterance.
      is_read: whether a branch reads the result.
    """
    if x.numel() > 0 and h.dtype in FORMATS and fused("bypass", x):
        y, rounded = _InterpolationFunction.apply(x, h, scale, mask, _half(x) if is_read else None)
        return y, y if rounded is None else rounded
    if mask is not None:
        scale = scale * mask.unsqueeze(-1)
    if h.dtype != x.dtype:
        h = h.to(x.dtype)
    y = torch.lerp(x, h, scale.to(x.dtype).expand(1, 1, -1) if scale.dim() == 1 else scale.to(x.dtype))
    return y, y


class _ForkFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype):
        ctx.set_materialize_grads(False)
        ctx.dtype = x.dtype
        read = x.view_as(x) if dtype is None else x.to(dtype)
        return *(x.view_as(x) for _ in range(MOST_GRADIENTS - 2)), read, read.view_as(read)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        grads = [grad.contiguous() for grad in grads if grad is not None]
        if len(grads) < 2:
            return (grads[0].to(ctx.dtype) if grads else None), None
        return torch.ops.spear.sum_of_gradients(grads, ctx.dtype), None


def fork(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x five times, so that the gradients of its consumers are added up at once: three times as it is, for
    sums and bypasses, and twice as branches read it, rounded already to what autocast would make of it."""
    if x.numel() > 0 and fused("residual", x):
        return _ForkFunction.apply(x, _half(x))
    return x, x, x, x, x


class Bypass(nn.Module):
    """y = x + (h - x) * scale with one learned scale per channel (Zipformer).

    ``skip_rate``: probability per utterance that y = x instead (layer skipping).
    """

    def __init__(
        self,
        context: StepContext,
        dim: int,
        skip_rate: Schedule | None = None,
        limit_gradients: bool = True,
        stochastic: bool = True,
    ):
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))
        self.context = context
        limiter = Limiter("bypass_scale", Schedule((0, 0.9), (20000, 0.2)), 1.0, context.new_coin())
        self.limiter = limiter if limit_gradients else None
        self.skip_rate = skip_rate
        self.stochastic = stochastic
        self.draw = context.new_draws(rate=skip_rate) if skip_rate is not None else None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """x, h (B, T, D) -> (B, T, D)."""
        return self.both(x, h, is_read=False)[0]

    def both(self, x: Tensor, h: Tensor, is_read: bool = True) -> tuple[Tensor, Tensor]:
        """What the next sum takes, and what the next branch reads, as ``add``."""
        mask = None
        if self.training and self.stochastic and self.skip_rate is not None:
            skip_rate = self.skip_rate(self.context.batch_count)
            mask = self.context.keep(self.draw, skip_rate) if skip_rate > 0.0 else None
        return interpolate(x, h, self.bypass_scale, mask, is_read)


class Downsample(nn.Module):
    """Weighted mean over groups of ``factor`` frames; the last frame fills the last group (Zipformer)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor, valid: Tensor | None = None, last: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, ceil(T / factor), D).

        With ``valid`` (B, T, 1) bool and ``last`` (B,) int64, padded frames are first replaced by frame
        ``last`` of their utterance, so that each utterance is down-sampled as if it were alone (ours).
        """
        batch, num_frames, dim = x.shape
        if valid is not None:
            index = last.clamp(min=0).view(batch, 1, 1).expand(batch, 1, dim)
            x = torch.where(valid, x, x.gather(1, index))
        missing = -num_frames % self.factor
        if recording() or missing:
            x = torch.cat([x, x[:, -1:].expand(batch, missing, dim)], dim=1)
        weights = self.bias.softmax(dim=0).to(x.dtype)
        return torch.einsum("btfd,f->btd", x.reshape(batch, -1, self.factor, dim), weights)


def upsample(x: Tensor, factor: int, num_frames: int) -> Tensor:
    """Repeat each frame of x (B, T, D) ``factor`` times and keep ``num_frames`` frames."""
    if factor == 1:
        return x[:, :num_frames]
    batch, short, dim = x.shape
    repeated = x.unsqueeze(2).expand(batch, short, factor, dim).reshape(batch, short * factor, dim)
    return repeated[:, :num_frames]


def scale_initialisation(module: nn.Linear | nn.Conv1d | nn.Conv2d, scale: float) -> None:
    """Multiply the default initial weight by ``scale``; bias uniform within 0.1 scale (Zipformer)."""
    with torch.no_grad():
        module.weight.mul_(scale)
        if module.bias is not None:
            nn.init.uniform_(module.bias, -0.1 * scale, 0.1 * scale)


def scaled_linear(inputs: int, outputs: int, scale: float, bias: bool = True) -> nn.Linear:
    """A linear layer with scaled initialisation."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    scale_initialisation(layer, scale)
    return layer
