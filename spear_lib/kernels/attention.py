"""Attention weights with relative positions: scores, softmax and their backward pass without writing scores.

The weights themselves are written once, in the format of the queries: their three consumers read them. Sums
are in float32. Half-precision products run as tf32, which holds every bf16 and fp16 value exactly.

Legend: B utterances, H heads, T frames, D and P widths of heads; rows are targets, columns sources.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 32, 64  # of the scores, one tile


@triton.jit
def _scores(
    q, key, position_query, positions, row, column, frames, key_stride, position_stride, offset_stride,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, WIDTH: tl.constexpr, USE_POSITION: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(R, C) float32 of one head, before the mask; pointers are at its first frame, positions at offset 0."""
    dim = tl.arange(0, DIM_BLOCK)
    exists = (column < frames)[None, :] & (dim < DIM)[:, None]
    k = tl.load(key + column[None, :] * key_stride + dim[:, None], mask=exists, other=0.0).to(tl.float32)
    scores = tl.dot(q, k, input_precision=PRECISION)
    if USE_POSITION:
        offset = column[None, :] - row[:, None]
        exists = (row < frames)[:, None] & (column < frames)[None, :]
        for p in tl.static_range(WIDTH):
            by = tl.load(position_query + row * position_stride + p, mask=row < frames, other=0.0)
            at = tl.load(positions + offset * offset_stride + p, mask=exists, other=0.0)
            scores += by.to(tl.float32)[:, None] * at.to(tl.float32)
    return scores


@triton.jit
def _masked(scores, mask, row, column, frames, mask_stride, MASKED: tl.constexpr):
    if MASKED:
        exists = (row < frames)[:, None] & (column < frames)[None, :]
        at = mask + row[:, None] * mask_stride + column[None, :]
        scores += tl.load(at, mask=exists, other=0.0).to(tl.float32)
    return tl.where((column < frames)[None, :], scores, -float("inf"))


@triton.jit(do_not_specialize=["mask_batch", "mask_frame"])
def _weights(
    query, key, position_query, positions, mask, weights, signs, frames, heads, limit,
    query_batch, query_head, query_frame, key_batch, key_head, key_frame,
    position_batch, position_head, position_frame, table_head, table_offset, mask_batch, mask_frame,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, WIDTH: tl.constexpr, USE_POSITION: tl.constexpr,
    MASKED: tl.constexpr, SIGNS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Two walks along the sources: the first finds the softmax's top and sum, the second writes."""
    both = tl.program_id(1).to(tl.int64)
    b, h = both // heads, both % heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_BLOCK)
    exists = (row < frames)[:, None] & (dim < DIM)[None, :]
    at = query + b * query_batch + h * query_head + row[:, None] * query_frame + dim[None, :]
    q = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    key += b * key_batch + h * key_head
    position_query += b * position_batch + h * position_head
    positions += h * table_head + (frames - 1) * table_offset
    mask += b * mask_batch
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    start = 0
    while start < frames:
        column = start + tl.arange(0, COLUMNS)
        scores = _scores(
            q, key, position_query, positions, row, column, frames, key_frame, position_frame,
            table_offset, DIM, DIM_BLOCK, WIDTH, USE_POSITION, PRECISION,
        )  # fmt: skip
        scores = _masked(scores, mask, row, column, frames, mask_frame, MASKED)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(scores - higher[:, None]), axis=1)
        top = higher
        start += COLUMNS
    line = both * frames * frames + row[:, None].to(tl.int64) * frames
    start = 0
    while start < frames:
        column = start + tl.arange(0, COLUMNS)
        inside = (row < frames)[:, None] & (column < frames)[None, :]
        scores = _scores(
            q, key, position_query, positions, row, column, frames, key_frame, position_frame,
            table_offset, DIM, DIM_BLOCK, WIDTH, USE_POSITION, PRECISION,
        )  # fmt: skip
        if SIGNS:
            sign = tl.where(scores > limit, 1, 0) - tl.where(scores < -limit, 1, 0)
            tl.store(signs + line + column[None, :], sign.to(tl.int8), mask=inside)
        scores = _masked(scores, mask, row, column, frames, mask_frame, MASKED)
        value = tl.exp(scores - top[:, None]) / total[:, None]
        tl.store(weights + line + column[None, :], value.to(weights.dtype.element_ty), mask=inside)
        start += COLUMNS


@triton.jit
def _weight_and_gradient(weights, grad, again, first, place, place_first, inside, inside_first):
    w = tl.load(weights + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    g += tl.load(again + place, mask=inside, other=0.0).to(tl.float32)
    return w, g + tl.load(first + place_first, mask=inside & inside_first, other=0.0).to(tl.float32)


@triton.jit
def _scores_gradient(
    weights, grad, again, first, positions, signs, result, grad_position, frames, heads, penalty,
    table_head, table_offset,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, USE_POSITION: tl.constexpr, SIGNS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(1).to(tl.int64)
    b, h = both // heads, both % heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line = row[:, None].to(tl.int64) * frames
    place_first = b * frames * frames + line
    place = both * frames * frames + line
    positions += h * table_head + (frames - 1) * table_offset
    width = tl.arange(0, WIDTH_BLOCK)
    of_first = tl.where(h == 0, frames, 0)
    product = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    start = 0
    while start < frames:
        column = (start + tl.arange(0, COLUMNS))[None, :]
        inside = (row < frames)[:, None] & (column < frames)
        w, g = _weight_and_gradient(
            weights, grad, again, first, place + column, place_first + column, inside, column < of_first
        )
        product += tl.sum(w * g, axis=1)
        total += tl.sum(w, axis=1)
        start += COLUMNS
    # Rounded weights do not add up to 1; a constant added to all of a row's gradients must not count.
    product /= tl.maximum(total, 1.0e-20)
    by_position = tl.zeros([ROWS, WIDTH_BLOCK], tl.float32)
    start = 0
    while start < frames:
        column = (start + tl.arange(0, COLUMNS))[None, :]
        inside = (row < frames)[:, None] & (column < frames)
        w, g = _weight_and_gradient(
            weights, grad, again, first, place + column, place_first + column, inside, column < of_first
        )
        change = w * (g - product[:, None])
        if SIGNS:
            change += penalty * tl.load(signs + place + column, mask=inside, other=0).to(tl.float32)
        tl.store(result + place + column, change.to(result.dtype.element_ty), mask=inside)
        if USE_POSITION:
            offset = column - row[:, None]
            for p in tl.static_range(WIDTH):
                at = tl.load(positions + offset * table_offset + p, mask=inside, other=0.0).to(tl.float32)
                part = tl.sum(change * at, axis=1)
                by_position += tl.where(width == p, 1.0, 0.0)[None, :] * part[:, None]
        start += COLUMNS
    at = grad_position + ((b * frames + row[:, None]) * heads + h) * WIDTH + width[None, :]
    exists = (row < frames)[:, None] & (width < WIDTH)[None, :]
    tl.store(at, by_position.to(grad_position.dtype.element_ty), mask=exists)


@triton.jit
def _positions_gradient(
    grad, position_query, result, frames, heads, position_batch, position_head, position_frame,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, ROWS: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """Sums along the diagonals source - target = offset: for consecutive offsets, rows are read in order."""
    both = tl.program_id(1).to(tl.int64)
    b, h = both // heads, both % heads
    index = tl.program_id(0) * OFFSETS + tl.arange(0, OFFSETS)
    offset = index - (frames - 1)
    position_query += b * position_batch + h * position_head
    width = tl.arange(0, WIDTH_BLOCK)
    total = tl.zeros([OFFSETS, WIDTH_BLOCK], tl.float32)
    # Targets i whose sources i + offset exist.
    start = tl.maximum(0, frames - 1 - tl.program_id(0) * OFFSETS - (OFFSETS - 1))
    end = tl.minimum(frames, 2 * frames - 1 - tl.program_id(0) * OFFSETS)
    while start < end:
        row = start + tl.arange(0, ROWS)
        column = row[:, None] + offset[None, :]
        inside = (row < frames)[:, None] & (column >= 0) & (column < frames)
        place = both * frames * frames + row[:, None].to(tl.int64) * frames + column
        change = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        for p in tl.static_range(WIDTH):
            by = tl.load(position_query + row * position_frame + p, mask=row < frames, other=0.0)
            part = tl.sum(change * by.to(tl.float32)[:, None], axis=0)
            total += part[:, None] * tl.where(width == p, 1.0, 0.0)[None, :]
        start += ROWS
    at = result + ((b * (2 * frames - 1) + index[:, None]) * heads + h) * WIDTH + width[None, :]
    tl.store(at, total, mask=(index < 2 * frames - 1)[:, None] & (width < WIDTH)[None, :])


def attention_weights(
    query: Tensor,
    key: Tensor,
    position_query: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    use_position: bool,
    limit: float | None,
) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    batch, heads, frames, dim = query.shape
    weights = query.new_empty((batch, heads, frames, frames))
    signs = query.new_empty((0,) if limit is None else weights.shape, dtype=torch.int8)
    mask_strides = (0, 0)
    if mask is not None:
        mask = mask if mask.stride(3) == 1 else mask.contiguous()
        mask_strides = tuple(mask.stride(axis) if mask.shape[axis] > 1 else 0 for axis in (0, 2))
    _weights[(triton.cdiv(frames, _ROWS), batch * heads)](
        query, key, position_query, positions, query if mask is None else mask, weights, signs, frames, heads,
        0.0 if limit is None else limit,
        *query.stride()[:3], *key.stride()[:3], *position_query.stride()[:3],
        *positions.stride()[:2], *mask_strides,
        DIM=dim, DIM_BLOCK=max(16, triton.next_power_of_2(dim)), WIDTH=positions.shape[2],
        USE_POSITION=use_position, MASKED=mask is not None, SIGNS=limit is not None,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return weights, signs


def attention_scores_gradient(
    weights: Tensor,
    grad: Tensor,
    grad_again: Tensor,
    grad_first: Tensor,
    positions: Tensor,
    signs: Tensor,
    penalty: float,
    use_position: bool,
) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    batch, heads, frames, _ = weights.shape
    width = positions.shape[2]
    result, grad_position = torch.empty_like(weights), weights.new_empty((batch, frames, heads, width))
    _scores_gradient[(triton.cdiv(frames, 8), batch * heads)](
        weights, grad, grad_again, grad_first, positions, signs, result, grad_position, frames, heads,
        penalty, *positions.stride()[:2],
        WIDTH=width, WIDTH_BLOCK=triton.next_power_of_2(width), USE_POSITION=use_position,
        SIGNS=signs.numel() > 0, ROWS=8, COLUMNS=256,
    )  # fmt: skip
    return result, grad_position


def attention_positions_gradient(grad_scores: Tensor, position_query: Tensor) -> Tensor:
    """See ``operations``."""
    batch, heads, frames, width = position_query.shape
    result = grad_scores.new_empty((batch, 2 * frames - 1, heads, width), dtype=torch.float32)
    _positions_gradient[(triton.cdiv(2 * frames - 1, 64), batch * heads)](
        grad_scores, position_query, result, frames, heads, *position_query.stride()[:3],
        WIDTH=width, WIDTH_BLOCK=triton.next_power_of_2(width), ROWS=32, OFFSETS=64,
    )  # fmt: skip
    return result
