"""What a Balancer measures (one sweep over its input and one small kernel) and what it adds (one sweep)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.operations import MOMENT_GROUPS, MOMENT_ROWS
from spear_lib.kernels.tiles import Tiles

_FLOOR = 1.0e-20


@triton.jit(do_not_specialize=["rows", "steps"])
def _moments(x, sums, rows, channels, stride, steps, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Program (g, c) adds up ``steps`` tiles of rows, g, g + G, ...: neighbours read neighbouring rows."""
    group, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.zeros([CHANNELS], tl.float32)
    second = tl.zeros([CHANNELS], tl.float32)
    step = 0
    while step < steps:
        row = (group + step * groups) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        tile = tl.load(x + row[:, None] * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        first += tl.sum(tile, axis=0)
        second += tl.sum(tile * tile, axis=0)
        step += 1
    at = sums + group * 2 * channels + channel
    tl.store(at, first, mask=channel < channels)
    tl.store(at + channels, second, mask=channel < channels)


@triton.jit(do_not_specialize=["groups", "count"])
def _coefficients(
    sums, coefficients, channels, groups, count, min_mean, max_mean, min_rms, max_rms, grad_scale,
    FLOOR: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """As ``BalancerLimits.coefficients``."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mean = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    group = 0
    while group < groups:
        at = sums + group * 2 * channels + channel
        mean += tl.load(at, mask=inside, other=0.0)
        square += tl.load(at + channels, mask=inside, other=0.0)
        group += 1
    mean /= count
    square /= count
    variance = tl.maximum(square - mean * mean, FLOOR)
    deviation = tl.sqrt(variance)
    square = tl.maximum(square, FLOOR)
    rms = tl.sqrt(square)
    ratio = mean / deviation
    alpha = tl.where(ratio > max_mean, 1.0, 0.0) - tl.where(ratio < min_mean, 1.0, 0.0)
    omega = tl.where(rms > max_rms, 1.0, 0.0) - tl.where(rms < min_rms, 1.0, 0.0)
    slope = omega / square - alpha * ratio / variance
    offset = alpha * (1.0 / deviation + ratio * mean / variance)
    middle = offset + slope * mean
    size = tl.sqrt(middle * middle + slope * slope * variance)
    factor = grad_scale / tl.maximum(size, FLOOR)
    tl.store(coefficients + channel, offset * factor, mask=inside)
    tl.store(coefficients + channels + channel, slope * factor, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _gradient(
    x, grad, coefficients, result, rows, channels, x_stride, grad_stride,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    at = tl.load(x + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(grad + row * grad_stride + channel, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(coefficients + channel, mask=channel < channels, other=0.0)
    slope = tl.load(coefficients + channels + channel, mask=channel < channels, other=0.0)
    change += tl.abs(change) * (offset + slope * at)
    tl.store(result + row * channels + channel, change.to(result.dtype.element_ty), mask=inside)


def channel_moments(x: Tensor) -> Tensor:
    """See ``operations``."""
    rows, channels = x.shape
    groups = min(MOMENT_GROUPS, max(1, triton.cdiv(rows, MOMENT_ROWS)))
    sums = x.new_empty((groups, 2, channels), dtype=torch.float32)
    tiles = Tiles.of(x, elements=4096)
    steps = triton.cdiv(triton.cdiv(rows, tiles.row_block), groups)
    _moments[(groups, tiles.grid[1])](x, sums, rows, channels, x.stride(0), steps, **tiles.constants)
    return sums


def balancer_coefficients(sums: Tensor, count: int, limits: list[float]) -> Tensor:
    """See ``operations``."""
    groups, _, channels = sums.shape
    coefficients = sums.new_empty((2, channels))
    _coefficients[(triton.cdiv(channels, 128),)](
        sums, coefficients, channels, groups, count, *limits, FLOOR=_FLOOR, CHANNELS=128
    )
    return coefficients


def balancer_gradient(x: Tensor, grad: Tensor, coefficients: Tensor) -> Tensor:
    """See ``operations``."""
    result = torch.empty_like(grad, memory_format=torch.contiguous_format)
    if x.numel():
        tiles = Tiles.of(x)
        strides = x.stride(0), grad.stride(0)
        _gradient[tiles.grid](
            x, grad, coefficients, result, tiles.rows, tiles.channels, *strides, **tiles.constants
        )
    return result
