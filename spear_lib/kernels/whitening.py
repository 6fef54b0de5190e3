"""Whiten: the covariance of the channels in one sweep over the input, and what it adds in two more.

Rows are counted from a channel's mean over the first of them, so that products of deviations are added up
and no large mean is taken away from them afterwards. Where the metric is in order, the backward pass reads
the gradient alone.

Legend: n rows, G groups of d channels, S parts of the rows, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.operations import WHITENING_BLOCK, WHITENING_ROWS, whitening_parts, whitening_programs

_FLOOR = 1.0e-20


@triton.jit
def _block(x, row, channel, rows, stride, dim):
    """(R, C) float32 of rows x channels, 0 where there is none."""
    inside = (row < rows)[:, None] & (channel < dim)[None, :]
    return tl.load(x + row[:, None] * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _deviation(x, centre, row, channel, rows, stride, dim):
    inside = (row < rows)[:, None] & (channel < dim)[None, :]
    return tl.where(inside, _block(x, row, channel, rows, stride, dim) - centre[None, :], 0.0)


@triton.jit(do_not_specialize=["rows", "steps"])
def _products(
    x, products, sums, rows, stride, dim, groups, steps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (i, j; part and group) adds up one block of the upper half of a covariance."""
    i, j, both = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    parts = tl.num_programs(2) // groups
    part, group = both // groups, both % groups
    if i <= j:
        left, right = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
        x += group * dim
        row = tl.arange(0, ROWS).to(tl.int64)
        number = tl.minimum(rows, ROWS)
        centre_left = tl.sum(_block(x, row, left, rows, stride, dim), axis=0) / number
        centre_right = tl.sum(_block(x, row, right, rows, stride, dim), axis=0) / number
        total = tl.zeros([BLOCK, BLOCK], tl.float32)
        column_sum = tl.zeros([BLOCK], tl.float32)
        step = 0
        while step < steps:
            row = (part + step * parts) * ROWS + tl.arange(0, ROWS)
            a = _deviation(x, centre_left, row, left, rows, stride, dim)
            b = _deviation(x, centre_right, row, right, rows, stride, dim)
            total += tl.dot(tl.trans(a), b, input_precision=PRECISION)
            column_sum += tl.sum(b, axis=0)
            step += 1
        inside = (left < dim)[:, None] & (right < dim)[None, :]
        tl.store(products + (both * dim + left[:, None]) * dim + right[None, :], total, mask=inside)
        if i == 0:
            at = sums + group * dim + right
            tl.store(at + part * groups * dim, column_sum, mask=right < dim)
            if part == 0:
                tl.store(at + parts * groups * dim, centre_right, mask=right < dim)


@triton.jit(do_not_specialize=["parts", "rows"])
def _statistics(
    products, sums, covariance, mean, squares, dim, groups, parts, rows, BLOCK: tl.constexpr
):  # fmt: skip
    i, j, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    left, right = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    inside = (left < dim)[:, None] & (right < dim)[None, :]
    straight = left[:, None] * dim + right[None, :]
    mirrored = right[None, :] * dim + left[:, None]
    place = tl.where(i <= j, straight, mirrored)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    sum_left = tl.zeros([BLOCK], tl.float32)
    sum_right = tl.zeros([BLOCK], tl.float32)
    part = 0
    while part < parts:
        both = part * groups + group
        total += tl.load(products + both * dim * dim + place, mask=inside, other=0.0)
        sum_left += tl.load(sums + both * dim + left, mask=left < dim, other=0.0)
        sum_right += tl.load(sums + both * dim + right, mask=right < dim, other=0.0)
        part += 1
    total -= sum_left[:, None] * (sum_right / rows)[None, :]
    tl.store(covariance + group * dim * dim + straight, total, mask=inside)
    diagonal = tl.where(left[:, None] == right[None, :], total, 0.0)
    at = squares + 2 * ((group * tl.num_programs(0) + i) * tl.num_programs(1) + j)
    tl.store(at, tl.sum(tl.sum(total * total, axis=1), axis=0))
    tl.store(at + 1, tl.sum(tl.sum(diagonal, axis=1), axis=0))
    if i == 0:
        centre = tl.load(sums + (parts * groups + group) * dim + right, mask=right < dim, other=0.0)
        tl.store(mean + group * dim + right, centre + sum_right / rows, mask=right < dim)


@triton.jit
def _metric(squares, number, channels, FLOOR: tl.constexpr, SQUARES: tl.constexpr):
    """The metric, and what the covariance's diagonal would be if it were white."""
    index = tl.arange(0, SQUARES)
    square = tl.sum(tl.load(squares + 2 * index, mask=index < number, other=0.0), axis=0)
    middle = tl.sum(tl.load(squares + 2 * index + 1, mask=index < number, other=0.0), axis=0) / channels
    metric = square / channels / (middle * middle + FLOOR)
    return metric, metric * middle


@triton.jit(do_not_specialize=["rows", "steps"])
def _change(
    x, grad, covariance, mean, squares, change, norms, rows, stride, dim, groups, number, limit, steps,
    FLOOR: tl.constexpr, SQUARES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (p, group) walks through the rows p, p + P, ..., unless the metric is in order."""
    program, programs, group = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.program_id(1)
    channels = groups * dim
    metric, white = _metric(squares, number, channels, FLOOR, SQUARES)
    of_change = tl.zeros([ROWS], tl.float32)
    of_grad = tl.zeros([ROWS], tl.float32)
    x += group * dim
    covariance += group * dim * dim
    mean += group * dim
    if metric >= limit:
        step = 0
        while step < steps:
            row = (program + step * programs) * ROWS + tl.arange(0, ROWS)
            start = 0
            while start < dim:
                column = start + tl.arange(0, BLOCK)
                total = tl.zeros([ROWS, BLOCK], tl.float32)
                first = 0
                while first < dim:
                    k = first + tl.arange(0, BLOCK)
                    centre = tl.load(mean + k, mask=k < dim, other=0.0)
                    a = _deviation(x, centre, row, k, rows, stride, dim)
                    total += tl.dot(
                        a, _block(covariance, k, column, dim, dim, dim), input_precision=PRECISION
                    )
                    first += BLOCK
                centre = tl.load(mean + column, mask=column < dim, other=0.0)
                total -= white * _deviation(x, centre, row, column, rows, stride, dim)
                at = row[:, None] * channels + group * dim + column[None, :]
                inside = (row < rows)[:, None] & (column < dim)[None, :]
                tl.store(change + at, total.to(change.dtype.element_ty), mask=inside)
                g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
                of_change += tl.sum(total * total, axis=1)
                of_grad += tl.sum(g * g, axis=1)
                start += BLOCK
            step += 1
    at = norms + 2 * (group * programs + program)
    tl.store(at, tl.sum(of_change, axis=0))
    tl.store(at + 1, tl.sum(of_grad, axis=0))


@triton.jit(do_not_specialize=["elements"])
def _gradient(
    grad, change, norms, squares, result, elements, channels, programs, number, limit, grad_scale,
    FLOOR: tl.constexpr, SQUARES: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(grad + place, mask=place < elements, other=0.0).to(tl.float32)
    metric, _ = _metric(squares, number, channels, FLOOR, SQUARES)
    if metric >= limit:
        index = tl.arange(0, NORMS)
        of_change = tl.sum(tl.load(norms + 2 * index, mask=index < programs, other=0.0), axis=0)
        of_grad = tl.sum(tl.load(norms + 2 * index + 1, mask=index < programs, other=0.0), axis=0)
        size = grad_scale * tl.sqrt(of_grad) / (tl.sqrt(of_change) + FLOOR)
        g += size * tl.load(change + place, mask=place < elements, other=0.0).to(tl.float32)
    tl.store(result + place, g.to(result.dtype.element_ty), mask=place < elements)


def _blocks(dim: int) -> dict[str, int]:
    block = max(16, min(WHITENING_BLOCK, triton.next_power_of_2(dim)))
    return {"ROWS": WHITENING_ROWS, "BLOCK": block}


def _precision(precise: bool) -> str:
    return "ieee" if precise else "tf32"


def whitening_products(x: Tensor, groups: int, precise: bool) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    rows, dim = x.shape[0], x.shape[1] // groups
    parts, blocks = whitening_parts(rows, groups, dim), _blocks(dim)
    products = x.new_empty((parts, groups, dim, dim), dtype=torch.float32)
    sums = x.new_empty((parts + 1, groups * dim), dtype=torch.float32)
    sides = triton.cdiv(dim, blocks["BLOCK"])
    steps = triton.cdiv(triton.cdiv(rows, WHITENING_ROWS), parts)
    _products[(sides, sides, parts * groups)](
        x, products, sums, rows, x.stride(0), dim, groups, steps, PRECISION=_precision(precise), **blocks
    )
    return products, sums


def whitening_statistics(products: Tensor, sums: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ``operations``."""
    parts, groups, dim, _ = products.shape
    block = _blocks(dim)["BLOCK"]
    sides = triton.cdiv(dim, block)
    covariance, mean = products.new_empty((groups, dim, dim)), products.new_empty(groups * dim)
    squares = products.new_empty((groups * sides * sides, 2))
    _statistics[(sides, sides, groups)](
        products, sums, covariance, mean, squares, dim, groups, parts, rows, BLOCK=block
    )
    return covariance, mean, squares


def whitening_change(
    x: Tensor, grad: Tensor, covariance: Tensor, mean: Tensor, squares: Tensor, limit: float, precise: bool
) -> tuple[Tensor, Tensor]:
    """See ``operations``."""
    rows, (groups, dim, _) = x.shape[0], covariance.shape
    programs = whitening_programs(rows, groups)
    change = x.new_empty(x.shape)
    norms = x.new_empty((groups * programs, 2), dtype=torch.float32)
    steps = triton.cdiv(triton.cdiv(rows, WHITENING_ROWS), programs)
    number = squares.shape[0]
    _change[(programs, groups)](
        x, grad, covariance, mean, squares, change, norms, rows, x.stride(0), dim, groups, number, limit,
        steps, FLOOR=_FLOOR, SQUARES=triton.next_power_of_2(number), PRECISION=_precision(precise),
        **_blocks(dim),
    )  # fmt: skip
    return change, norms


def whitening_gradient(
    grad: Tensor, change: Tensor, norms: Tensor, squares: Tensor, limit: float, grad_scale: float
) -> Tensor:
    """See ``operations``."""
    result = torch.empty_like(grad)
    number, programs = squares.shape[0], norms.shape[0]
    _gradient[(triton.cdiv(grad.numel(), 4096),)](
        grad, change, norms, squares, result, grad.numel(), grad.shape[1], programs, number, limit,
        grad_scale, FLOOR=_FLOOR, SQUARES=triton.next_power_of_2(number),
        NORMS=triton.next_power_of_2(programs), BLOCK=4096,
    )  # fmt: skip
    return result
