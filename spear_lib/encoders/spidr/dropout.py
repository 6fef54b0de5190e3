"""Dropout whose every draw belongs to an utterance and a frame of it (ours).

So it depends neither on batch mates nor on padding, processes or how often a step is divided, and a resumed
run draws the same. A frame's own bits are hashed once and then scattered over the channels with a few 32-bit
operations, because one full hash per element would cost more than a layer's arithmetic.
"""

import torch
from torch import Tensor, nn

from spear_lib.encoders.step_context import StepContext
from spear_lib.runtime import keyed_random

_MULTIPLIER = 0x45D9F3B
_SITE_CHANNELS = 920_001
_BITS = 0x7FFFFFFF


def _scatter(bits: Tensor) -> Tensor:
    """A bijection of 32-bit integers whose every output bit depends on every input bit."""
    for _ in range(2):
        bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _MULTIPLIER
    return bits ^ ((bits >> 16) & 0xFFFF)


def keep_elements(frames: Tensor, num_channels: int, rate: float) -> Tensor:
    """Which elements stay.

    Args:
      frames: (B, T) int32, random bits of every frame.
      rate: probability of False.

    Returns:
      (B, T, num_channels) bool.
    """
    numbers = torch.arange(num_channels, device=frames.device)
    channels = keyed_random.bits(numbers, _SITE_CHANNELS)
    return (_scatter(frames.unsqueeze(2) ^ channels) & _BITS) >= int(rate * (_BITS + 1))


class KeyedDropout(nn.Module):
    """Dropout of single elements in training mode, keyed by ``context``."""

    def __init__(self, context: StepContext, rate: float):
        super().__init__()
        self.context = context
        self.rate = rate
        self.site = context.new_shared()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, ...) -> the same shape; the last dimension is what is drawn for."""
        if not self.training or self.rate == 0.0:
            return x
        return x * self.multiplier(x.shape[1], x.shape[-1], x.device).to(x.dtype)

    def multiplier(self, num_frames: int, num_channels: int, device: torch.device) -> Tensor:
        """(B, T, channels) float32: 0, or what makes up for the zeros."""
        keys = self.context.utterance_keys.to(device, non_blocking=True)
        frames = keyed_random.bits(keys.unsqueeze(1) + torch.arange(num_frames, device=device), self.site)
        return keep_elements(frames, num_channels, self.rate).to(torch.float32).div_(1.0 - self.rate)
