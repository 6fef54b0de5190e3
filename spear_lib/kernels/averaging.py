"""Products of attention weights with values of all heads, which are read and written in rows of frames.

Legend: B utterances, H heads, T frames, D width of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 64


@triton.jit
def _head(x, b, h, frame, dim, frames, batch_stride, head_stride, frame_stride, DIM: tl.constexpr):
    """(R, D) float32 of one head."""
    inside = (frame < frames)[:, None] & (dim < DIM)[None, :]
    at = x + b * batch_stride + h * head_stride + frame[:, None] * frame_stride + dim[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _average(
    weights, values, result, frames, heads, batch_stride, head_stride, frame_stride,
    TRANSPOSED: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(1).to(tl.int64)
    b, h = both // heads, both % heads
    row, dim = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, DIM_BLOCK)
    weights += both * frames * frames
    total = tl.zeros([TILE, DIM_BLOCK], tl.float32)
    start = 0
    while start < frames:
        column = start + tl.arange(0, TILE)
        if TRANSPOSED:
            inside = (column < frames)[:, None] & (row < frames)[None, :]
            at = weights + column[:, None].to(tl.int64) * frames + row[None, :]
            w = tl.trans(tl.load(at, mask=inside, other=0.0).to(tl.float32))
        else:
            inside = (row < frames)[:, None] & (column < frames)[None, :]
            at = weights + row[:, None].to(tl.int64) * frames + column[None, :]
            w = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        value = _head(values, b, h, column, dim, frames, batch_stride, head_stride, frame_stride, DIM)
        total += tl.dot(w, value, input_precision=PRECISION)
        start += TILE
    at = result + ((b * frames + row[:, None]) * heads + h) * DIM + dim[None, :]
    inside = (row < frames)[:, None] & (dim < DIM)[None, :]
    tl.store(at, total.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _products(
    x, y, result, frames, heads, x_batch, x_head, x_frame, y_batch, y_head, y_frame,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(2).to(tl.int64)
    b, h = both // heads, both % heads
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * TILE + tl.arange(0, TILE)
    dim = tl.arange(0, DIM_BLOCK)
    left = _head(x, b, h, row, dim, frames, x_batch, x_head, x_frame, DIM)
    right = _head(y, b, h, column, dim, frames, y_batch, y_head, y_frame, DIM)
    total = tl.dot(left, tl.trans(right), input_precision=PRECISION)
    at = result + both * frames * frames + row[:, None].to(tl.int64) * frames + column[None, :]
    inside = (row < frames)[:, None] & (column < frames)[None, :]
    tl.store(at, total.to(result.dtype.element_ty), mask=inside)


def _constants(x: Tensor) -> dict[str, int | str]:
    dim = x.shape[3]
    return {
        "DIM": dim,
        "DIM_BLOCK": max(16, triton.next_power_of_2(dim)),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "TILE": _TILE,
    }


def head_average(weights: Tensor, values: Tensor, transposed: bool) -> Tensor:
    """See ``operations``."""
    batch, heads, frames, dim = values.shape
    result = values.new_empty((batch, frames, heads, dim))
    _average[(triton.cdiv(frames, _TILE), batch * heads)](
        weights, values, result, frames, heads, *values.stride()[:3],
        TRANSPOSED=transposed, **_constants(values),
    )  # fmt: skip
    return result


def head_products(x: Tensor, y: Tensor) -> Tensor:
    """See ``operations``."""
    batch, heads, frames, _ = x.shape
    result = x.new_empty((batch, heads, frames, frames))
    tiles = triton.cdiv(frames, _TILE)
    _products[(tiles, tiles, batch * heads)](
        x, y, result, frames, heads, *x.stride()[:3], *y.stride()[:3], **_constants(x)
    )
    return result
