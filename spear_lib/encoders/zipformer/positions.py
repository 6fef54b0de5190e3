"""Encodings of relative positions, with dropout.

Shapes: B utterances, T frames, D channels, P width of the positional encoding. Offsets are source minus
target frame.
"""

import math

import torch
from torch import Tensor, nn

from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.zipformer.modules import product_dtype
from spear_lib.kernels import fused
from spear_lib.runtime import keyed_random

_TABLE_FRAMES = 512  # the kept table grows by so many


def positional_table(
    num_frames: int, dim: int, device: torch.device | str = "cpu", left_context: int = 0
) -> Tensor:
    """Encodings (2 T - 1 + left_context, P) of the offsets -(T + left_context - 1) ... T - 1; float32."""
    offsets = torch.arange(-(num_frames + left_context - 1), num_frames, device=device, dtype=torch.float32)
    root = math.sqrt(dim)
    compressed = root * offsets.sign() * ((offsets.abs() + root).log() - math.log(root))
    angles = (compressed * (2.0 * math.pi / dim)).atan()
    angles = angles.unsqueeze(1) * torch.arange(1, dim // 2 + 1, device=device, dtype=torch.float32)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    table[:, -1] = 1.0
    return table


class PositionalEncoding(nn.Module):
    """The positional table of one stack call, with dropout keyed by (step, offset)."""

    def __init__(self, context: StepContext, dim: int, stochastic: bool = True, dropout: float = 0.15):
        super().__init__()
        self.context = context
        self.dim = dim
        self.dropout = dropout
        self.stochastic = stochastic
        self.site = context.new_shared()

    def forward(self, x: Tensor) -> Tensor:
        """Table (2 T - 1, P) for x (B, T, D); float32 at least, or in the format of products already."""
        num_frames, drops = x.shape[1], self.training and self.stochastic
        if drops and fused("draws", x):
            sites = keyed_random.constants(self.site)
            scale, like = 1.0 / (1.0 - self.dropout), x.new_empty(0, dtype=product_dtype(x))
            return torch.ops.spear.table_dropout(
                self._kept_table(x), self.context.step_key, sites, self.dropout, scale, like
            )
        table = positional_table(num_frames, self.dim, x.device)
        if drops:
            offsets = torch.arange(-(num_frames - 1), num_frames, device=x.device)
            kept = self.context.shared(self.site, offsets, self.dim) >= self.dropout
            table = table * kept.to(table.dtype).div_(1.0 - self.dropout)
        return table.to(torch.promote_types(x.dtype, torch.float32))

    def _kept_table(self, x: Tensor) -> Tensor:
        """A row belongs to its offset, whatever T is: one table for all stacks and steps."""
        name, num_frames = (self.dim, x.device), x.shape[1]
        table = self.context.tables.get(name)
        if table is None or table.shape[0] < 2 * num_frames - 1:
            size = -(-num_frames // _TABLE_FRAMES) * _TABLE_FRAMES
            table = self.context.tables[name] = positional_table(size, self.dim, x.device)
        middle = table.shape[0] // 2
        return table[middle - num_frames + 1 : middle + num_frames]
