"""The gated linear unit of the convolution module, with the mask of padding and the Balancer on its gates;
and the two gates of the non-linear attention."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.tiles import Tiles


@triton.jit
def _kept(valid, row, rows, MASKED: tl.constexpr):
    """1 or 0 for every row."""
    if MASKED:
        return tl.load(valid + row, mask=row < rows, other=0).to(tl.float32)
    else:
        return tl.where(row < rows, 1.0, 0.0)


@triton.jit(do_not_specialize=["rows"])
def _forward(
    projected, valid, y, rows, channels,
    MASKED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    at = projected + row * 2 * channels + channel
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32) * _kept(valid, row, rows, MASKED)
    value *= tl.sigmoid(tl.load(at + channels, mask=inside, other=0.0).to(tl.float32))
    tl.store(y + row * channels + channel, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    projected, valid, grad, coefficients, result, rows, channels,
    MASKED: tl.constexpr, BALANCED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    at = row * 2 * channels + channel
    change = tl.load(grad + row * channels + channel, mask=inside, other=0.0).to(tl.float32)
    change *= _kept(valid, row, rows, MASKED)
    value = tl.load(projected + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(projected + at + channels, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    by_gate = change * value * share * (1.0 - share)
    if BALANCED:
        offset = tl.load(coefficients + channel, mask=channel < channels, other=0.0)
        slope = tl.load(coefficients + channels + channel, mask=channel < channels, other=0.0)
        by_gate += tl.abs(by_gate) * (offset + slope * gate)
    tl.store(result + at, (change * share).to(result.dtype.element_ty), mask=inside)
    tl.store(result + at + channels, by_gate.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit(do_not_specialize=["rows"])
def _product(
    values, gates, y, rows, channels, value_stride, gate_stride, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    value = tl.load(values + row * value_stride + channel, mask=inside, other=0.0).to(tl.float32)
    value *= _tanh(tl.load(gates + row * gate_stride + channel, mask=inside, other=0.0).to(tl.float32))
    tl.store(y + row * channels + channel, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _product_backward(
    values, gates, grad, grad_values, grad_gates, rows, channels, value_stride, gate_stride,
    TANH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    place = row * channels + channel
    value = tl.load(values + row * value_stride + channel, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gates + row * gate_stride + channel, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    by_gate = change * value
    if TANH:
        gate = _tanh(gate)
        by_gate *= 1.0 - gate * gate
    tl.store(grad_values + place, (change * gate).to(grad_values.dtype.element_ty), mask=inside)
    tl.store(grad_gates + place, by_gate.to(grad_gates.dtype.element_ty), mask=inside)


def _flags(valid: Tensor | None, other: Tensor) -> Tensor:
    """Bytes of the mask, or some address, which is not read."""
    return other if valid is None else valid.view(torch.uint8)


def gated(projected: Tensor, valid: Tensor | None) -> Tensor:
    """See ``operations``."""
    y = projected.new_empty((projected.shape[0], projected.shape[1] // 2))
    if y.numel():
        tiles, masked = Tiles.of(y), valid is not None
        flags = _flags(valid, y)
        _forward[tiles.grid](
            projected, flags, y, tiles.rows, tiles.channels, MASKED=masked, **tiles.constants
        )
    return y


def gated_gradient(
    projected: Tensor, valid: Tensor | None, grad: Tensor, coefficients: Tensor | None
) -> Tensor:
    """See ``operations``."""
    result = torch.empty_like(projected)
    if grad.numel():
        tiles = Tiles.of(grad)
        balanced = grad if coefficients is None else coefficients
        _backward[tiles.grid](
            projected, _flags(valid, grad), grad, balanced, result, tiles.rows, tiles.channels,
            MASKED=valid is not None, BALANCED=coefficients is not None, **tiles.constants,
        )  # fmt: skip
    return result


def tanh_gated(values: Tensor, gates: Tensor) -> Tensor:
    """See ``operations``."""
    y = torch.empty_like(values, memory_format=torch.contiguous_format)
    tiles = Tiles.of(y)
    strides = values.stride(0), gates.stride(0)
    _product[tiles.grid](values, gates, y, tiles.rows, tiles.channels, *strides, **tiles.constants)
    return y


def product_gradients(values: Tensor, gates: Tensor, grad: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    results = torch.empty_like(grad, dtype=values.dtype), torch.empty_like(grad, dtype=gates.dtype)
    tiles = Tiles.of(grad)
    strides = values.stride(0), gates.stride(0)
    _product_backward[tiles.grid](
        values, gates, grad, *results, tiles.rows, tiles.channels, *strides, TANH=tanh, **tiles.constants
    )
    return results
