"""Depthwise convolution over time, channels last, so that nothing is transposed; both gradients too."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.operations import DEPTHWISE_PARTS

_TILE = {"ROWS": 64, "CHANNELS": 64}


@triton.jit
def _frames_of(x, utterance, frame, channel, frames, channels):
    """(R, C) float32 of one utterance, 0 where there is no such frame."""
    inside = ((frame >= 0) & (frame < frames))[:, None] & (channel < channels)[None, :]
    place = (utterance * frames + frame[:, None]) * channels + channel[None, :]
    return tl.load(x + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["frames", "tiles"])
def _convolve(
    x, weight, bias, y, frames, channels, tiles,
    KERNEL: tl.constexpr, FLIPPED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Flipped, and without bias, it is the gradient of the input."""
    both = tl.program_id(0).to(tl.int64)
    utterance = both // tiles
    frame = both % tiles * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    if not FLIPPED:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    for k in range(KERNEL):
        shift = KERNEL // 2 - k if FLIPPED else k - KERNEL // 2
        factor = tl.load(weight + channel * KERNEL + k, mask=channel < channels, other=0.0).to(tl.float32)
        total += factor[None, :] * _frames_of(x, utterance, frame + shift, channel, frames, channels)
    inside = (frame < frames)[:, None] & (channel < channels)[None, :]
    place = (utterance * frames + frame[:, None]) * channels + channel[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["frames", "tiles", "all_tiles", "steps"])
def _weights(
    x, grad, sums, frames, channels, tiles, all_tiles, steps,
    KERNEL: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (part, channels) adds up the tiles part, part + P, ...; column KERNEL is the bias."""
    part, parts = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([CHANNELS, WIDTH], tl.float32)
    step = 0
    while step < steps:
        both = part + step * parts
        utterance = both // tiles
        frame = both % tiles * ROWS + tl.arange(0, ROWS)
        kept = tl.where(both < all_tiles, frames, 0)  # beyond the last tile there is nothing
        change = _frames_of(grad, utterance, tl.where(frame < kept, frame, -1), channel, frames, channels)
        of_bias = tl.sum(change, axis=0)
        total += tl.where(column == KERNEL, 1.0, 0.0)[None, :] * of_bias[:, None]
        for k in range(KERNEL):
            shifted = tl.where(frame < kept, frame + k - KERNEL // 2, -1)
            value = _frames_of(x, utterance, shifted, channel, frames, channels)
            of_weight = tl.sum(change * value, axis=0)
            total += tl.where(column == k, 1.0, 0.0)[None, :] * of_weight[:, None]
        step += 1
    exists = channel < channels
    sums += part * channels * (KERNEL + 1)
    at = sums + channel[:, None] * KERNEL + column[None, :]
    tl.store(at, total, mask=exists[:, None] & (column < KERNEL)[None, :])
    at = sums + channels * KERNEL + channel[:, None] + 0 * column[None, :]
    tl.store(at, total, mask=exists[:, None] & (column == KERNEL)[None, :])


def _run(x: Tensor, weight: Tensor, bias: Tensor, flipped: bool) -> Tensor:
    batch, frames, channels = x.shape
    y = torch.empty_like(x)
    tiles = triton.cdiv(frames, _TILE["ROWS"])
    grid = batch * tiles, triton.cdiv(channels, _TILE["CHANNELS"])
    _convolve[grid](
        x, weight, bias, y, frames, channels, tiles, KERNEL=weight.shape[2], FLIPPED=flipped, **_TILE
    )
    return y


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ``operations``."""
    return _run(x, weight, bias, False)


def depthwise_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """See ``operations``."""
    return _run(grad, weight, weight, True)


def depthwise_weights_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """See ``operations``."""
    batch, frames, channels = x.shape
    parts = min(DEPTHWISE_PARTS, triton.cdiv(batch * frames, 512))
    sums = x.new_empty((parts, channels * (kernel + 1)), dtype=torch.float32)
    tiles = triton.cdiv(frames, _TILE["ROWS"])
    grid = parts, triton.cdiv(channels, _TILE["CHANNELS"])
    _weights[grid](
        x, grad, sums, frames, channels, tiles, batch * tiles, triton.cdiv(batch * tiles, parts),
        KERNEL=kernel, WIDTH=triton.next_power_of_2(kernel + 1), **_TILE,
    )  # fmt: skip
    return sums
