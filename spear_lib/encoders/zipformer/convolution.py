"""Convolution module of a layer: gated linear unit, depthwise convolution, SwooshR, projection.

Shapes: B utterances, T frames, D channels, K kernel (odd).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.activations import swoosh_linear
from spear_lib.encoders.zipformer.cpu_convolutions import depthwise_conv1d
from spear_lib.encoders.zipformer.modules import scaled_linear
from spear_lib.encoders.zipformer.regularisers import Balancer, BalancerLimits, ChannelMoments, apply_limits
from spear_lib.encoders.zipformer.whitening import Whiten
from spear_lib.kernels import fused


class ChunkCausalDepthwiseConv1d(nn.Module):
    """Causal depthwise convolution plus a symmetric one inside each chunk (Zipformer)."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        half = (kernel + 1) // 2
        self.causal_conv = nn.Conv1d(dim, dim, half, groups=dim)
        nn.init.uniform_(self.causal_conv.bias, -0.1, 0.1)
        self.chunkwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, padding=kernel // 2)
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, dim, kernel))

    def _edge_scale(self, chunk: int) -> Tensor:
        """(D, chunk): 1 plus learned corrections near the two ends of a chunk."""
        left, right = self.chunkwise_conv_scale[0], self.chunkwise_conv_scale[1]
        if chunk < self.kernel:
            return 1.0 + left[:, :chunk] + right[:, self.kernel - chunk :]
        missing = chunk - self.kernel
        return 1.0 + F.pad(left, (0, missing)) + F.pad(right, (missing, 0))

    def _own_edge_scale(self, lengths: Tensor, num_frames: int) -> Tensor:
        """(B, D, T): as ``_edge_scale`` where each utterance is one chunk that ends at its own length."""
        left, right = self.chunkwise_conv_scale[0], self.chunkwise_conv_scale[1]
        index = torch.arange(num_frames, device=lengths.device) - lengths.unsqueeze(1) + self.kernel
        inside = (index >= 0) & (index < self.kernel)
        right = right[:, index.clamp(0, self.kernel - 1)] * inside
        return 1.0 + F.pad(left, (0, num_frames - self.kernel)).unsqueeze(0) + right.transpose(0, 1)

    def forward(self, x: Tensor, chunk_size: int | Tensor = -1, left: Tensor | None = None) -> Tensor:
        """Both convolutions.

        Args:
          x: (B, T, D).
          chunk_size: frames of the stack per chunk, -1 = one chunk of T frames; or (B,) int64, each utterance
            is one chunk of its own length.
          left: (B, K // 2, D), the frames before x; zeros where None.

        Returns:
          (B, T, D).
        """
        x = x.transpose(1, 2)
        batch, dim, num_frames = x.shape
        before = F.pad(x, (self.kernel // 2, 0)) if left is None else torch.cat([left.transpose(1, 2), x], 2)
        causal = self.causal_conv(before)
        if isinstance(chunk_size, Tensor):
            scale = self._own_edge_scale(chunk_size, num_frames).to(x.dtype)
            return (causal + self.chunkwise_conv(x) * scale).transpose(1, 2)
        if chunk_size < 0:
            chunk_size = num_frames
        missing = -num_frames % chunk_size
        chunks = F.pad(x, (0, missing)).view(batch, dim, -1, chunk_size)
        chunks = chunks.transpose(1, 2).reshape(-1, dim, chunk_size)
        chunks = self.chunkwise_conv(chunks) * self._edge_scale(chunk_size)
        chunks = chunks.view(batch, -1, dim, chunk_size).transpose(1, 2).reshape(batch, dim, -1)
        return (causal + chunks[..., :num_frames]).transpose(1, 2)


class _GatedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected, valid, limits):
        rows = projected.reshape(-1, projected.shape[-1]).contiguous()
        flags = None if valid is None else valid.expand(*projected.shape[:-1], 1).reshape(-1)
        coefficients = None
        if limits is not None:
            moments = ChannelMoments()
            moments.add(rows[:, rows.shape[1] // 2 :])
            coefficients = moments.coefficients(limits)
        ctx.save_for_backward(rows, flags, coefficients)
        return torch.ops.spear.gated(rows, flags).view(*projected.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, flags, coefficients = ctx.saved_tensors
        change = grad.reshape(rows.shape[0], -1).contiguous()
        change = torch.ops.spear.gated_gradient(rows, flags, change, coefficients)
        return change.view(*grad.shape[:-1], -1), None, None


def gated(projected: Tensor, valid: Tensor | None = None, limits: BalancerLimits | None = None) -> Tensor:
    """values x sigmoid(gates), zero on padding.

    Args:
      projected: (B, T, 2 D), values, then gates.
      valid: (B, T, 1) bool, or None without padding.
      limits: of the Balancer on the gates, or None where it does not act.

    Returns:
      (B, T, D).
    """
    if fused("gated", projected):
        return _GatedFunction.apply(projected, valid, limits)
    values, gate = projected.chunk(2, dim=-1)
    values = values * (gate if limits is None else apply_limits(gate, -1, limits)).sigmoid()
    return values if valid is None else values * valid.to(values.dtype)


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return torch.ops.spear.depthwise(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        sums = torch.ops.spear.depthwise_weights_gradient(x, grad, weight.shape[2]).sum(0, dtype=weight.dtype)
        grad_weight, grad_bias = sums.split([weight.numel(), weight.shape[0]])
        return torch.ops.spear.depthwise_gradient(grad, weight), grad_weight.view(weight.shape), grad_bias


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution over time with zero padding K // 2; x (B, T, C), weight (C, 1, K), bias (C,)."""
    if x.numel() > 0 and fused("depthwise", x):
        return _DepthwiseFunction.apply(x, weight, bias)
    return depthwise_conv1d(x, weight, bias)


class ConvolutionModule(nn.Module):
    """Convolution module (Zipformer)."""

    def __init__(
        self, context: StepContext, dim: int, kernel: int, causal: bool, balancer: bool, whiten: bool
    ):
        super().__init__()
        self.causal = causal
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.balancer1 = Balancer(
            context,
            -1,
            Schedule((0, 0.05), (8000, 0.025)),
            1.0,
            1.5,
            Schedule((0, 5.0), (8000, 10.0), default=1.0),
            enabled=balancer,
        )
        if causal:
            self.depthwise_conv = ChunkCausalDepthwiseConv1d(dim, kernel)
        else:
            self.depthwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, padding=kernel // 2)
        self.balancer2 = Balancer(
            context,
            -1,
            Schedule((0, 0.1), (8000, 0.05)),
            1.0,
            Schedule((0, 0.2), (20000, 0.5)),
            10.0,
            enabled=balancer,
        )
        self.whiten = Whiten(context, Schedule((0, 7.5), (20000, 15.0), default=7.5), 0.01, enabled=whiten)
        self.out_proj = scaled_linear(dim, dim, 0.05)

    def forward(self, x: Tensor, valid: Tensor | None = None, chunk_size: int | Tensor = -1) -> Tensor:
        """x (B, T, D), valid (B, T, 1) bool or None -> (B, T, D)."""
        projected = self.in_proj(x)
        values = gated(projected, valid, self.balancer1.limits(projected.requires_grad))
        if self.causal:
            values = self.depthwise_conv(values, chunk_size)
        else:
            values = convolve(values, self.depthwise_conv.weight, self.depthwise_conv.bias)
        values = self.whiten(self.balancer2(values))
        return swoosh_linear(values, self.out_proj.weight, self.out_proj.bias, "R")
