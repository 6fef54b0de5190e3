"""ScaledAdam's step of many tensors at once: one sweep over parameters and gradients for all sums that it
needs, a small one over those, and one over parameters, moments and gradients.

The kernels find the tensors by a table of their addresses, so nothing is stacked before and split after. A
program works on one chunk of one tensor.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.step_operations import ADAM_CHUNK
from spear_lib.kernels.tiles import on_device

_BLOCK = 1024


@triton.jit
def _tensor(table, number):
    return tl.load(table + number).to(tl.pointer_type(tl.float32))


@triton.jit
def _sums(
    table, owners, chunks, sizes, sums, tensors, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    size, start = tl.load(sizes + owner), tl.load(chunks + program) * CHUNK
    params, grads = _tensor(table, owner), _tensor(table, tensors + owner)
    of_params = tl.zeros([BLOCK], tl.float32)
    of_both = tl.zeros([BLOCK], tl.float32)
    of_grads = tl.zeros([BLOCK], tl.float32)
    for step in tl.static_range(CHUNK // BLOCK):
        place = start + step * BLOCK + tl.arange(0, BLOCK)
        param = tl.load(params + place, mask=place < size, other=0.0)
        grad = tl.load(grads + place, mask=place < size, other=0.0)
        of_params += param * param
        of_both += param * grad
        of_grads += grad * grad
    at = sums + 3 * program
    tl.store(at, tl.sum(of_params, axis=0))
    tl.store(at + 1, tl.sum(of_both, axis=0))
    tl.store(at + 2, tl.sum(of_grads, axis=0))


@triton.jit
def _totals(sums, starts, totals, tensors, WIDTH: tl.constexpr):
    """Program t adds up the chunks of tensor t, always in the same order."""
    tensor = tl.program_id(0)
    start, end = tl.load(starts + tensor), tl.load(starts + tensor + 1)
    of_params = tl.zeros([WIDTH], tl.float32)
    of_both = tl.zeros([WIDTH], tl.float32)
    of_grads = tl.zeros([WIDTH], tl.float32)
    while start < end:
        chunk = start + tl.arange(0, WIDTH)
        of_params += tl.load(sums + 3 * chunk, mask=chunk < end, other=0.0)
        of_both += tl.load(sums + 3 * chunk + 1, mask=chunk < end, other=0.0)
        of_grads += tl.load(sums + 3 * chunk + 2, mask=chunk < end, other=0.0)
        start += WIDTH
    tl.store(totals + tensor, tl.sum(of_params, axis=0))
    tl.store(totals + tensors + tensor, tl.sum(of_both, axis=0))
    tl.store(totals + 2 * tensors + tensor, tl.sum(of_grads, axis=0))


@triton.jit
def _update(
    table, owners, chunks, sizes, factor, rms, size_step, tensors,
    beta1, beta2, correction, eps, least_rms, rate,
    SIZED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    size, start = tl.load(sizes + owner), tl.load(chunks + program) * CHUNK
    params, deltas = _tensor(table, owner), _tensor(table, tensors + owner)
    squares, grads = _tensor(table, 2 * tensors + owner), _tensor(table, 3 * tensors + owner)
    clip = tl.load(factor)
    own_rate = tl.maximum(tl.load(rms + owner), least_rms) * rate
    for step in tl.static_range(CHUNK // BLOCK):
        place = start + step * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        param = tl.load(params + place, mask=inside, other=0.0)
        grad = tl.load(grads + place, mask=inside, other=0.0) * clip
        change = tl.load(deltas + place, mask=inside, other=0.0) * beta1
        square = tl.load(squares + place, mask=inside, other=0.0) * beta2 + (1.0 - beta2) * grad * grad
        if SIZED:
            change += (1.0 - beta1) * param * tl.load(size_step + owner)
        change += own_rate * grad / (tl.sqrt(square) * correction + eps)
        tl.store(squares + place, square, mask=inside)
        tl.store(deltas + place, change, mask=inside)
        tl.store(params + place, param + change, mask=inside)


class _Chunks(NamedTuple):
    """How tensors are cut up, int64 on their device."""

    owners: Tensor
    """Tensor that each chunk belongs to."""
    chunks: Tensor
    """Which of its chunks it is."""
    sizes: Tensor
    """Numbers of each tensor."""
    starts: Tensor
    """First chunk of each tensor, and the end."""


@lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> _Chunks:
    size = torch.tensor(sizes, dtype=torch.int64)
    number = (size + ADAM_CHUNK - 1) // ADAM_CHUNK
    owners = torch.repeat_interleave(torch.arange(len(sizes)), number)
    starts = torch.cat([number.new_zeros(1), number.cumsum(0)])
    chunks = torch.arange(len(owners)) - starts[owners]
    return _Chunks(*(each.to(device) for each in (owners, chunks, size, starts)))


def _sizes(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(each.numel() for each in tensors)


def _table(lists: list[list[Tensor]]) -> Tensor:
    """Addresses of the tensors, list after list."""
    addresses = [each.data_ptr() for tensors in lists for each in tensors]
    return on_device(torch.tensor(addresses, dtype=torch.int64), lists[0][0].device)


def scaled_adam_sums(params: list[Tensor], grads: list[Tensor]) -> Tensor:
    """See ``step_operations``."""
    owners, chunks, sizes, _ = _chunks(_sizes(params), params[0].device)
    sums = params[0].new_empty((len(owners), 3))
    _sums[(len(owners),)](
        _table([params, grads]), owners, chunks, sizes, sums, len(params), CHUNK=ADAM_CHUNK, BLOCK=_BLOCK
    )
    return sums


def scaled_adam_totals(sums: Tensor, sizes: list[int]) -> Tensor:
    """See ``step_operations``."""
    totals = sums.new_empty((3, len(sizes)))
    starts = _chunks(tuple(sizes), sums.device).starts
    _totals[(len(sizes),)](sums, starts, totals, len(sizes), WIDTH=128)
    return totals


def scaled_adam_update_(
    params: list[Tensor],
    deltas: list[Tensor],
    squares: list[Tensor],
    grads: list[Tensor],
    factor: Tensor,
    rms: Tensor,
    size_step: Tensor | None,
    numbers: list[float],
) -> None:
    """See ``step_operations``."""
    owners, chunks, sizes, _ = _chunks(_sizes(params), params[0].device)
    table = _table([params, deltas, squares, grads])
    sized = rms if size_step is None else size_step  # some address, which is not read
    _update[(len(owners),)](
        table, owners, chunks, sizes, factor, rms, sized, len(params), *numbers,
        SIZED=size_step is not None, CHUNK=ADAM_CHUNK, BLOCK=_BLOCK,
    )  # fmt: skip
