"""Convolutions with few channels per group as matrix products, for CPUs (ours).

Library kernels for depthwise and single-channel convolutions run far below a CPU's matrix speed, above all
backwards. A tile of neighbouring outputs is the product of inputs with a small banded (Toeplitz) matrix;
the zeros cost less than the kernels do. Same numbers as the library's up to rounding; accelerators and half
precision use the library.

Shapes: B utterances, T frames, C channels, K kernel (odd), M frequency positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spear_lib.runtime.devices import on_host

_TILE = 16  # outputs per matrix product along the convolved axis
_FREQUENCY_TILE = 8


def use_matrix_products(x: Tensor) -> bool:
    """Whether this module's functions are the faster choice for ``x``."""
    return on_host(x) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _banded(weight: Tensor, tile: int) -> Tensor:
    """(..., K + tile - 1, tile) with entry (s, t) = weight[..., s - t], of weight (..., K)."""
    kernel = weight.shape[-1]
    width = kernel + tile - 1
    rows = F.pad(weight, (0, tile)).unsqueeze(-2).expand(*weight.shape[:-1], tile, kernel + tile)
    rows = rows.reshape(*weight.shape[:-1], -1)[..., : tile * width]
    return rows.reshape(*weight.shape[:-1], tile, width).transpose(-1, -2)


def _sum_of_bands(matrix: Tensor, kernel: int) -> Tensor:
    """Transpose of ``_banded``: (..., K), sums over t of entries (t + k, t) of (..., K + tile - 1, tile)."""
    tile = matrix.shape[-1]
    matrix = matrix.contiguous()
    strides = (*matrix.stride()[:-2], tile, tile + 1)
    return matrix.as_strided((*matrix.shape[:-2], kernel, tile), strides).sum(dim=-1)


def _channel_first(x: Tensor, before: int, total: int) -> Tensor:
    """(B, T, C) as a zero-padded (C, B, total) with frame 0 at position ``before``."""
    batch, num_frames, channels = x.shape
    padded = x.new_zeros(channels, batch, total)
    padded[:, :, before : before + num_frames] = x.permute(2, 0, 1)
    return padded


def _windows(padded: Tensor, kernel: int) -> Tensor:
    """Overlapping windows (C, B * tiles, K + tile - 1) of (C, B, tiles * tile + K - 1)."""
    width = kernel + _TILE - 1
    return padded.unfold(2, width, _TILE).reshape(padded.shape[0], -1, width)


class _DepthwiseConv1dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        batch, num_frames, channels = x.shape
        kernel = weight.shape[-1]
        tiles = -(-num_frames // _TILE)
        padded = _channel_first(x, kernel // 2, tiles * _TILE + kernel - 1)
        windows = _windows(padded, kernel)
        ctx.save_for_backward(padded, weight)
        y = torch.bmm(windows, _banded(weight[:, 0], _TILE)).view(channels, batch, -1)
        return torch.add(y[:, :, :num_frames].permute(1, 2, 0), bias, out=x.new_empty(x.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        padded, weight = ctx.saved_tensors
        batch, num_frames, channels = grad.shape
        kernel = weight.shape[-1]
        half = kernel // 2
        padded_grad = _channel_first(grad, half, padded.shape[2])
        inner = padded_grad[:, :, half : padded.shape[2] - half].reshape(channels, -1, _TILE)
        grad_bands = torch.bmm(_windows(padded, kernel).transpose(1, 2), inner)
        grad_weight = _sum_of_bands(grad_bands, kernel).unsqueeze(1)
        grad_x = torch.bmm(_windows(padded_grad, kernel), _banded(weight[:, 0].flip(-1), _TILE))
        grad_x = grad_x.view(channels, batch, -1)[:, :, :num_frames].permute(1, 2, 0).contiguous()
        return grad_x, grad_weight, grad.sum(dim=(0, 1))


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution over time with zero padding K // 2, channels last.

    Args:
      x: (B, T, C). weight: (C, 1, K). bias: (C,).

    Returns:
      (B, T, C).
    """
    if use_matrix_products(x):
        return _DepthwiseConv1dFunction.apply(x, weight, bias)
    padding = weight.shape[-1] // 2
    return F.conv1d(x.transpose(1, 2), weight, bias, padding=padding, groups=x.shape[2]).transpose(1, 2)


class _FirstConv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        batch, num_frames, bins = x.shape
        channels, _, kernel, _ = weight.shape
        tile = _FREQUENCY_TILE
        tiles = -(-bins // tile)
        padded = F.pad(x, (1, tiles * tile - bins + 1))
        bands = _FirstConv2dFunction._bands(weight)
        y = torch.addmm(bias.repeat(tile), _FirstConv2dFunction._windows(padded, tiles), bands)
        ctx.save_for_backward(padded, weight)
        ctx.bins = bins
        y = y.view(batch, num_frames - 2, tiles * tile, channels)
        return y if tiles * tile == bins else y[:, :, :bins].contiguous()

    @staticmethod
    def _bands(weight: Tensor) -> Tensor:
        """(3 * (tile + 2), tile * C) of weight (C, 1, 3, 3)."""
        bands = _banded(weight[:, 0], _FREQUENCY_TILE)  # (C, 3, tile + 2, tile)
        return bands.permute(1, 2, 3, 0).reshape(3 * (_FREQUENCY_TILE + 2), -1)

    @staticmethod
    def _windows(padded: Tensor, tiles: int) -> Tensor:
        """(B * (F - 2) * tiles, 3 * (tile + 2)) of the padded input (B, F, tiles * tile + 2)."""
        batch, num_frames, width = padded.shape
        size = (batch, num_frames - 2, tiles, 3, _FREQUENCY_TILE + 2)
        strides = (num_frames * width, width, _FREQUENCY_TILE, width, 1)
        return padded.as_strided(size, strides).reshape(-1, 3 * (_FREQUENCY_TILE + 2))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        padded, weight = ctx.saved_tensors
        batch, num_frames, width = padded.shape
        channels, tile = weight.shape[0], _FREQUENCY_TILE
        tiles = (width - 2) // tile
        if tiles * tile != ctx.bins:
            grad = F.pad(grad, (0, 0, 0, tiles * tile - ctx.bins))
        grad = grad.reshape(-1, tile * channels)
        grad_bands = torch.mm(_FirstConv2dFunction._windows(padded, tiles).t(), grad)
        grad_bands = grad_bands.view(3, tile + 2, tile, channels).permute(3, 0, 1, 2)
        grad_weight = _sum_of_bands(grad_bands, 3).unsqueeze(1)
        grad_bias = grad.sum(dim=0).view(tile, channels).sum(dim=0)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias
        windows = torch.mm(grad, _FirstConv2dFunction._bands(weight).t())
        windows = windows.view(batch, num_frames - 2, tiles, 3, tile + 2)
        grad_x = padded.new_zeros(padded.shape)
        inner, edge = (batch, num_frames - 2, tiles, tile), (batch, num_frames - 2, tiles, 2)
        strides = (num_frames * width, width, tile, 1)
        for shift in range(3):
            grad_x.as_strided(inner, strides, shift * width).add_(windows[:, :, :, shift, :tile])
            grad_x.as_strided(edge, strides, shift * width + tile).add_(windows[:, :, :, shift, tile:])
        return grad_x[:, :, 1 : ctx.bins + 1], grad_weight, grad_bias


def first_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3 x 3 convolution of a one-channel image, zero padding in frequency only, channels last.

    Args:
      x: (B, F, M). weight: (C, 1, 3, 3). bias: (C,).

    Returns:
      (B, F - 2, M, C).
    """
    if use_matrix_products(x):
        return _FirstConv2dFunction.apply(x, weight, bias)
    return F.conv2d(x.unsqueeze(1), weight, bias, padding=(0, 1)).permute(0, 2, 3, 1)
