"""Random numbers that are functions of their keys, to the bit those of keyed_random, and masks of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _unsigned(x):
    return x.to(tl.int64).to(tl.uint64, bitcast=True)


@triton.jit
def _mix(x):
    """As keyed_random._mix; shifts of unsigned numbers need no mask."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _uniform(key, position, site_key, site_counter):
    """Of int64 keys and positions."""
    counter = (_unsigned(position) + 1) * 0x9E3779B97F4A7C15 + _unsigned(site_counter)
    hashed = _mix(_mix(_unsigned(key) ^ _unsigned(site_key)) + counter)
    return (hashed >> 40).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit(do_not_specialize=["elements", "count", "site_key", "site_counter"])
def _draws(keys, result, elements, count, site_key, site_counter, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place // count, mask=place < elements, other=0)
    value = _uniform(key, place % count, site_key, site_counter)
    tl.store(result + place, value, mask=place < elements)


@triton.jit(do_not_specialize=["elements", "count", "stride"])
def _kept(draws, result, elements, count, stride, probability, value, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = draws + place // count * stride + place % count
    drawn = tl.load(at, mask=place < elements, other=0.0)
    tl.store(result + place, tl.where(drawn >= probability, value, 0.0), mask=place < elements)


@triton.jit(do_not_specialize=["rows", "key", "site_key", "site_counter"])
def _table(table, result, rows, width, key, site_key, site_counter, probability, value, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < rows * width
    offset = place // width - rows // 2
    drawn = _uniform(key + offset.to(tl.int64), place % width, site_key, site_counter)
    kept = tl.load(table + place, mask=inside, other=0.0) * tl.where(drawn >= probability, value, 0.0)
    tl.store(result + place, kept.to(result.dtype.element_ty), mask=inside)


def keyed_uniform(keys: Tensor, sites: list[int], count: int) -> Tensor:
    """See ``step_operations``."""
    result = keys.new_empty((*keys.shape, count), dtype=torch.float32)
    elements = result.numel()
    if elements:
        _draws[(triton.cdiv(elements, _BLOCK),)](
            keys.contiguous(), result, elements, count, *sites, BLOCK=_BLOCK
        )
    return result


def keep(draws: Tensor, probability: float, value: float) -> Tensor:
    """See ``step_operations``."""
    result = torch.empty_like(draws, memory_format=torch.contiguous_format)
    elements = result.numel()
    if elements:
        _kept[(triton.cdiv(elements, _BLOCK),)](
            draws, result, elements, draws.shape[1], draws.stride(0), probability, value, BLOCK=_BLOCK
        )
    return result


def table_dropout(
    table: Tensor, key: int, sites: list[int], probability: float, value: float, like: Tensor
) -> Tensor:
    """See ``step_operations``."""
    result = torch.empty_like(table, dtype=like.dtype)
    rows, width = table.shape
    _table[(triton.cdiv(rows * width, _BLOCK),)](
        table, result, rows, width, key, *sites, probability, value, BLOCK=_BLOCK
    )
    return result
