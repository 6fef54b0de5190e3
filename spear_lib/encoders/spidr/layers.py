"""SpidR's Transformer: positions from convolutions, post-norm blocks, what each block adds (spec spidr §2).

Shapes: B utterances, T frames at 50 Hz, D channels, H heads.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.spidr.config import SpidrConfig
from spear_lib.encoders.spidr.dropout import KeyedDropout
from spear_lib.encoders.step_context import StepContext


class PositionalConvolutions(nn.Module):
    """Grouped convolutions in series, each with a norm without parameters and GELU after it."""

    def __init__(self, config: SpidrConfig):
        super().__init__()
        dim, kernel = config.hidden_dim, config.convolution_kernel
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=config.position_groups)
            for _ in range(config.position_depth)
        )

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x (B, T, D), valid (B, T) bool or None without padding -> (B, T, D), 0 on padding."""
        num_frames = x.shape[1]
        for conv in self.convs:
            x = x if valid is None else x * valid.unsqueeze(2)
            x = conv(x.transpose(1, 2))[:, :, :num_frames]  # an even kernel gives one frame too many
            x = F.gelu(F.layer_norm(x.transpose(1, 2), x.shape[1:2]))
        return x if valid is None else x * valid.unsqueeze(2)


class Attention(nn.Module):
    """Self-attention; ``qkv`` holds queries, keys and values below each other."""

    def __init__(self, context: StepContext, config: SpidrConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.dropout = KeyedDropout(context, config.attention_dropout)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """x (B, T, D), seen (B, 1, 1, T) bool or None without padding -> (B, T, D)."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.training and self.dropout.rate > 0.0:
            # A weight that is dropped for every target frame is a value that is dropped.
            multiplier = self.dropout.multiplier(x.shape[1], self.num_heads, x.device)
            value = value * multiplier.transpose(1, 2).unsqueeze(3).to(value.dtype)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: SpidrConfig):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_dim, config.feedforward_dim)
        self.output_dense = nn.Linear(config.feedforward_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual and a norm after it."""

    def __init__(self, context: StepContext, config: SpidrConfig):
        super().__init__()
        self.context = context
        self.layerdrop = config.layerdrop
        self.attention = Attention(context, config)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.attention_dropout = KeyedDropout(context, config.dropout)
        self.feed_forward_dropout = KeyedDropout(context, config.dropout)
        self.draw = context.new_draws()

    def forward(self, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, D), seen (B, 1, 1, T) bool or None -> feed-forward output, output of the block."""
        h = self.layer_norm(x + self.attention_dropout(self.attention(x, seen)))
        added = self.feed_forward(h)
        h = self.final_layer_norm(h + self.feed_forward_dropout(added))
        if self.training and self.layerdrop > 0.0:
            h = torch.lerp(x, h, self.context.keep(self.draw, self.layerdrop).unsqueeze(2).to(x.dtype))
        return added, h


Outputs = tuple[list[Tensor], Tensor]
"""Of every block its feed-forward output, and the output of the last block."""


def run_blocks(blocks: nn.ModuleList, x: Tensor, seen: Tensor | None) -> Outputs:
    """x (B, T, D), seen (B, 1, 1, T) bool or None, through all ``blocks``."""
    outputs = []
    for block in blocks:
        added, x = block(x, seen)
        outputs.append(added)
    return outputs, x


class SpidrTransformer(nn.Module):
    """Positions and blocks: the student, and as a second one the teacher."""

    def __init__(self, context: StepContext, config: SpidrConfig):
        super().__init__()
        self.pos_conv_embed = PositionalConvolutions(config)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = KeyedDropout(context, config.dropout)
        self.layers = nn.ModuleList(Block(context, config) for _ in range(config.num_layers))
        self.redraw_blocks()

    @torch.no_grad()
    def redraw_blocks(self) -> None:
        """New random weights for the linear layers of the blocks (spec spidr §2.7; §3 for the teacher)."""
        for block in self.layers:
            attention, feed_forward = block.attention, block.feed_forward
            dim = attention.proj.in_features
            nn.init.uniform_(attention.qkv.weight, -math.sqrt(0.75 / dim), math.sqrt(0.75 / dim))
            nn.init.uniform_(attention.proj.weight, -math.sqrt(3.0 / dim), math.sqrt(3.0 / dim))
            nn.init.normal_(feed_forward.intermediate_dense.weight, std=0.02)
            nn.init.normal_(feed_forward.output_dense.weight, std=0.02)
            for linear in (attention.qkv, attention.proj, *feed_forward.children()):
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(
        self, x: Tensor, valid: Tensor | None, through_blocks: Callable[..., Outputs] = run_blocks
    ) -> Outputs:
        """Positions, then all blocks.

        Args:
          x: (B, T, D) projected frames.
          valid: (B, T) bool, or None without padding.
          through_blocks: ``run_blocks`` as something else runs it (torch.compile).

        Returns:
          Feed-forward output of every block, before dropout, residual and norm (each (B, T, D)): what the
          method calls a layer's output; and the output of the last block (B, T, D).
        """
        seen = None if valid is None else valid[:, None, None]
        x = self.dropout(self.layer_norm(x + self.pos_conv_embed(x, valid)))
        return through_blocks(self.layers, x, seen)
