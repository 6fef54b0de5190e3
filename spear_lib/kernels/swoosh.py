"""SwooshL and SwooshR with a dropout multiplier, forward and backward, one sweep each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.tiles import Tiles

_CONSTANTS = {"L": (4.0, 0.035), "R": (1.0, 0.313261687)}  # shift, offset


@triton.jit
def _value(x, SHIFT: tl.constexpr, OFFSET: tl.constexpr):
    z = x - SHIFT
    return tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z))) - 0.08 * x - OFFSET


@triton.jit
def _tile(rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Row (R, 1) and channel (1, C) of this program's elements, and which of them exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return row, channel, (row < rows) & (channel < channels)


@triton.jit
def _factor(multiplier, row, channel, inside, stride, frames):
    """Of the tile's elements, from (B, 1, C)."""
    return tl.load(multiplier + row // frames * stride + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "frames"])
def _forward(
    x, multiplier, y, rows, channels, frames, stride,
    SHIFT: tl.constexpr, OFFSET: tl.constexpr, MULTIPLIED: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel, inside = _tile(rows, channels, ROWS, CHANNELS)
    place = row * channels + channel
    value = _value(tl.load(x + place, mask=inside, other=0.0).to(tl.float32), SHIFT, OFFSET)
    if MULTIPLIED:
        value *= _factor(multiplier, row, channel, inside, stride, frames)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "frames"])
def _backward(
    x, grad, multiplier, grad_x, y, rows, channels, frames, stride,
    SHIFT: tl.constexpr, OFFSET: tl.constexpr, MULTIPLIED: tl.constexpr, BOTH: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel, inside = _tile(rows, channels, ROWS, CHANNELS)
    place = row * channels + channel
    at = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    change *= tl.sigmoid(at - SHIFT) - 0.08
    value = _value(at, SHIFT, OFFSET)
    if MULTIPLIED:
        factor = _factor(multiplier, row, channel, inside, stride, frames)
        change *= factor
        value *= factor
    tl.store(grad_x + place, change.to(grad_x.dtype.element_ty), mask=inside)
    if BOTH:
        tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


def _launch(
    kernel: triton.JITFunction,
    inputs: tuple[Tensor, ...],
    multiplier: Tensor | None,
    outputs: tuple[Tensor, ...],
    kind: str,
    **constants: bool,
) -> None:
    x = inputs[0]
    if x.numel() == 0:
        return
    tiles, (shift, offset) = Tiles.of(x), _CONSTANTS[kind]
    frames = tiles.rows // multiplier.shape[0] if multiplier is not None else tiles.rows
    factor = x if multiplier is None else multiplier  # some address, which is not read
    kernel[tiles.grid](
        *inputs,
        factor,
        *outputs,
        tiles.rows,
        tiles.channels,
        frames,
        0 if multiplier is None else multiplier.stride(0),
        SHIFT=shift,
        OFFSET=offset,
        MULTIPLIED=multiplier is not None,
        **constants,
        **tiles.constants,
    )


def swoosh(x: Tensor, multiplier: Tensor | None, kind: str, dtype: torch.dtype) -> Tensor:
    """See ``operations``."""
    y = torch.empty_like(x, dtype=dtype)
    _launch(_forward, (x,), multiplier, (y,), kind)
    return y


def swoosh_gradient(x: Tensor, grad: Tensor, multiplier: Tensor | None, kind: str) -> Tensor:
    """See ``operations``."""
    grad_x = torch.empty_like(x)
    _launch(_backward, (x, grad), multiplier, (grad_x, grad_x), kind, BOTH=False)
    return grad_x


def swoosh_both(x: Tensor, grad: Tensor, multiplier: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    grad_x, y = torch.empty_like(x), torch.empty_like(grad)
    _launch(_backward, (x, grad), multiplier, (grad_x, y), kind, BOTH=True)
    return grad_x, y
