"""Residual sums, bypass and BiasNorm, forward and backward, one sweep each; sums over frames in two steps."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.operations import MOST_GRADIENTS, NORM_GROUPS, SUM_GROUPS
from spear_lib.kernels.tiles import Tiles

_FLOOR = 1.0e-20


@triton.jit(do_not_specialize=["rows", "frames"])
def _sum(
    x, branch, mask, y, rounded, rows, channels, frames, mask_stride,
    MASKED: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    place = row * channels + channel
    added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    if MASKED:
        added *= tl.load(mask + row // frames * mask_stride, mask=row < rows, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + added
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
    if ROUNDED:
        tl.store(rounded + place, value.to(rounded.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "frames"])
def _sum_gradient(
    grad, rounded, mask, grad_x, grad_branch, rows, channels, frames, mask_stride,
    MASKED: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    place = row * channels + channel
    change = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    if ROUNDED:
        change += tl.load(rounded + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x + place, change.to(grad_x.dtype.element_ty), mask=inside)
    if MASKED:
        change *= tl.load(mask + row // frames * mask_stride, mask=row < rows, other=0.0)
    tl.store(grad_branch + place, change.to(grad_branch.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "frames"])
def _bypass(
    x, h, scale, mask, y, rounded, rows, channels, frames, scale_stride, mask_stride,
    MASKED: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    place = row * channels + channel
    s = tl.load(scale + row // frames * scale_stride + channel, mask=inside, other=0.0)
    if MASKED:
        s *= tl.load(mask + row // frames * mask_stride, mask=row < rows, other=0.0)
    before = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    after = tl.load(h + place, mask=inside, other=0.0).to(tl.float32)
    # As torch.lerp: exact at both ends.
    value = tl.where(s < 0.5, before + s * (after - before), after - (after - before) * (1.0 - s))
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
    if ROUNDED:
        tl.store(rounded + place, value.to(rounded.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["frames", "parts", "steps"])
def _bypass_gradient(
    x, h, scale, mask, grad, rounded, grad_x, grad_h, sums, frames, channels, parts, steps, scale_stride,
    mask_stride,
    MASKED: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (utterance, part; channels) walks through the tiles part, part + P, ... of its utterance."""
    both = tl.program_id(0).to(tl.int64)
    b, part = both // parts, both % parts
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    s = tl.load(scale + b * scale_stride + channel, mask=exists, other=0.0)[None, :]
    kept = 1.0
    if MASKED:
        kept = tl.load(mask + b * mask_stride)
    s *= kept
    total = tl.zeros([CHANNELS], tl.float32)
    step = 0
    while step < steps:
        frame = (part + step * parts) * ROWS + tl.arange(0, ROWS)
        inside = (frame < frames)[:, None] & exists[None, :]
        place = (b * frames + frame[:, None]) * channels + channel[None, :]
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        if ROUNDED:
            g += tl.load(rounded + place, mask=inside, other=0.0).to(tl.float32)
        before = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        after = tl.load(h + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(g * (after - before), axis=0)
        tl.store(grad_x + place, (g * (1.0 - s)).to(grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_h + place, (g * s).to(grad_h.dtype.element_ty), mask=inside)
        step += 1
    tl.store(sums + both * channels + channel, total * kept, mask=exists)


@triton.jit(do_not_specialize=["elements"])
def _sum_of_gradients(
    first, second, third, fourth, fifth, result, elements, NUMBER: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    total = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(second + place, mask=inside, other=0.0).to(tl.float32)
    if NUMBER > 2:
        total += tl.load(third + place, mask=inside, other=0.0).to(tl.float32)
    if NUMBER > 3:
        total += tl.load(fourth + place, mask=inside, other=0.0).to(tl.float32)
    if NUMBER > 4:
        total += tl.load(fifth + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + place, total.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x, bias, log_scale, y, rows, channels, FLOOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    place = row[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    centre = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    centred = value - centre[None, :]
    square = tl.maximum(tl.sum(centred * centred, axis=1) / channels, FLOOR)
    gain = tl.exp(tl.load(log_scale).to(tl.float32)) / tl.sqrt(square)
    tl.store(y + place, value * gain[:, None], mask=inside)


@triton.jit(do_not_specialize=["rows", "steps"])
def _norm_gradient(
    x, bias, log_scale, grad, grad_x, sums, rows, channels, steps,
    FLOOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    group, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.arange(0, WIDTH)
    exists = channel < channels
    centre = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    factor = tl.exp(tl.load(log_scale).to(tl.float32))
    by_bias = tl.zeros([WIDTH], tl.float32)
    by_scale = tl.zeros([ROWS], tl.float32)
    step = 0
    while step < steps:
        row = (group + step * groups) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & exists[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        centred = value - centre
        square = tl.maximum(tl.sum(centred * centred, axis=1) / channels, FLOOR)
        gain = factor / tl.sqrt(square)
        product = gain * tl.sum(g * value, axis=1)
        centred *= (product / (square * channels))[:, None]
        by_bias += tl.sum(centred, axis=0)
        by_scale += product
        change = g * gain[:, None] - centred
        tl.store(grad_x + place, change.to(grad_x.dtype.element_ty), mask=inside)
        step += 1
    tl.store(sums + group * (channels + 1) + channel, by_bias, mask=exists)
    tl.store(sums + group * (channels + 1) + channels, tl.sum(by_scale, axis=0))


def _stride(mask: Tensor | None) -> int:
    return 0 if mask is None else mask.stride(0)


def residual(
    x: Tensor, branch: Tensor, mask: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    y = torch.empty_like(x)
    rounded = torch.empty_like(x, dtype=dtype) if dtype else x.new_empty(0)
    tiles = Tiles.of(x)
    _sum[tiles.grid](
        x, branch, x if mask is None else mask, y, rounded, tiles.rows, tiles.channels, x.shape[1],
        _stride(mask), MASKED=mask is not None, ROUNDED=dtype is not None, **tiles.constants,
    )  # fmt: skip
    return y, rounded


def residual_gradient(
    grad: Tensor, rounded: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    grad_x, grad_branch = torch.empty_like(grad), torch.empty_like(grad, dtype=dtype)
    tiles = Tiles.of(grad)
    _sum_gradient[tiles.grid](
        grad, grad if rounded is None else rounded, grad if mask is None else mask, grad_x, grad_branch,
        tiles.rows, tiles.channels, grad.shape[1], _stride(mask),
        MASKED=mask is not None, ROUNDED=rounded is not None, **tiles.constants,
    )  # fmt: skip
    return grad_x, grad_branch


def bypass(
    x: Tensor, h: Tensor, scale: Tensor, mask: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    y = torch.empty_like(x)
    rounded = torch.empty_like(x, dtype=dtype) if dtype else x.new_empty(0)
    tiles = Tiles.of(x)
    stride = scale.stride(0) if scale.shape[0] > 1 else 0
    _bypass[tiles.grid](
        x, h, scale, scale if mask is None else mask, y, rounded, tiles.rows, tiles.channels, x.shape[1],
        stride, _stride(mask), MASKED=mask is not None, ROUNDED=dtype is not None, **tiles.constants,
    )  # fmt: skip
    return y, rounded


def bypass_gradient(
    x: Tensor, h: Tensor, scale: Tensor, mask: Tensor | None, grad: Tensor, rounded: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``operations``."""
    batch, frames, channels = x.shape
    tiles = Tiles.of(x)
    parts = min(SUM_GROUPS, triton.cdiv(frames, 32))
    grad_x, grad_h = torch.empty_like(x), torch.empty_like(h)
    sums = x.new_empty((batch, parts, channels), dtype=torch.float32)
    steps = triton.cdiv(triton.cdiv(frames, tiles.row_block), parts)
    stride = scale.stride(0) if scale.shape[0] > 1 else 0
    _bypass_gradient[(batch * parts, tiles.grid[1])](
        x, h, scale, scale if mask is None else mask, grad, grad if rounded is None else rounded,
        grad_x, grad_h, sums, frames, channels, parts, steps, stride, _stride(mask),
        MASKED=mask is not None, ROUNDED=rounded is not None, **tiles.constants,
    )  # fmt: skip
    return grad_x, grad_h, sums


def sum_of_gradients(grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    """See ``operations``."""
    result = torch.empty_like(grads[0], dtype=dtype)
    elements = result.numel()
    given = [*grads, *grads[:1] * (MOST_GRADIENTS - len(grads))]  # what is missing is not read
    if elements:
        _sum_of_gradients[(triton.cdiv(elements, 1024),)](
            *given, result, elements, NUMBER=len(grads), BLOCK=1024
        )
    return result


def _norm_constants(channels: int) -> dict[str, int | float]:
    width = triton.next_power_of_2(channels)
    return {"FLOOR": _FLOOR, "ROWS": max(1, 2048 // width), "WIDTH": width}


def bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """See ``operations``."""
    y = torch.empty_like(x, dtype=torch.float32)
    rows, channels = x.shape
    constants = _norm_constants(channels)
    _norm[(triton.cdiv(rows, constants["ROWS"]),)](x, bias, log_scale, y, rows, channels, **constants)
    return y


def bias_norm_gradient(x: Tensor, bias: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    rows, channels = x.shape
    constants = _norm_constants(channels)
    groups = min(NORM_GROUPS, triton.cdiv(rows, 4))
    steps = triton.cdiv(triton.cdiv(rows, constants["ROWS"]), groups)
    grad_x, sums = torch.empty_like(x), x.new_empty((groups, channels + 1), dtype=torch.float32)
    _norm_gradient[(groups,)](x, bias, log_scale, grad, grad_x, sums, rows, channels, steps, **constants)
    return grad_x, sums
