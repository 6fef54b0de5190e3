"""Random numbers that are functions of their keys, to the bit those of keyed_random, and masks of them."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.tiles import on_device

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


@triton.jit(do_not_specialize=["elements", "width"])
def _kept(draws, parts, table, result, elements, width, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    part = tl.load(parts + place % width, mask=inside, other=0)
    probability = tl.load(table + 2 * part, mask=inside, other=0.0)
    value = tl.load(table + 2 * part + 1, mask=inside, other=0.0)
    drawn = tl.load(draws + place, mask=inside, other=0.0)
    tl.store(result + place, tl.where(drawn >= probability, value, 0.0), mask=inside)


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


@lru_cache(maxsize=16)
def _parts(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Which part each draw belongs to, int64 (N,)."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)


def keep_all(draws: Tensor, counts: list[int], probabilities: list[float], values: list[float]) -> Tensor:
    """See ``step_operations``."""
    result = torch.empty_like(draws)
    parts = _parts(tuple(counts), draws.device)
    table = on_device(torch.tensor([*zip(probabilities, values)]), draws.device)
    elements = result.numel()
    if elements:
        _kept[(triton.cdiv(elements, _BLOCK),)](
            draws, parts, table, result, elements, draws.shape[1], BLOCK=_BLOCK
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
