"""The Transformer layer of WavLM Base: attention with a gated relative position bias, norms after each part.

Shapes: B utterances, T frames at 50 Hz, D channels, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.transformer.config import TransformerConfig


class ChannelDropout(nn.Module):
    """Dropout of whole channels of an utterance, keyed by step and utterance, so that no draw depends on
    batch mates, padding or the number of processes (ours)."""

    def __init__(self, context: StepContext, dim: int, rate: float):
        super().__init__()
        self.context = context
        self.rate = rate
        self.draws = context.new_draws(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if not self.training or self.rate == 0.0:
            return x
        multiplier = self.context.dropout(self.draws, self.rate)
        return x * multiplier.unsqueeze(1).to(x.dtype)


def position_buckets(num_frames: int, num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Bucket of each relative position, (T, T) int64 by target and source: half of the buckets for each
    direction, single distances first, then logarithmically wider ones (T5)."""
    frames = torch.arange(num_frames, device=device)
    offset = frames.unsqueeze(0) - frames.unsqueeze(1)
    per_direction = num_buckets // 2
    exact = per_direction // 2
    distance = offset.abs()
    share = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    wide = (exact + share * (per_direction - exact)).long().clamp(max=per_direction - 1)
    return (offset > 0) * per_direction + torch.where(distance < exact, distance, wide)


class GatedAttention(nn.Module):
    """Self-attention whose position bias is scaled by a gate of the target frame (WavLM).

    ``first``: the layer that holds the table of biases for all layers.
    """

    def __init__(self, config: TransformerConfig, first: bool):
        super().__init__()
        dim, self.num_heads = config.hidden_dim, config.num_heads
        self.config = config
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(dim // self.num_heads, 8)
        if first:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, self.num_heads)

    def position_bias(self, num_frames: int) -> Tensor:
        """(H, T, T), of the first layer, for all layers."""
        table = self.rel_attn_embed.weight
        config = self.config
        buckets = position_buckets(num_frames, config.num_buckets, config.max_distance, table.device)
        return table.t()[:, buckets]

    def forward(self, x: Tensor, position_bias: Tensor, unseen: Tensor | None) -> Tensor:
        """x (B, T, D), position_bias (H, T, T), unseen (B, 1, 1, T) added to scores or None -> (B, T, D)."""

        def by_head(tensor: Tensor) -> Tensor:
            return tensor.view(*tensor.shape[:2], self.num_heads, -1).transpose(1, 2)

        gates = self.gru_rel_pos_linear(by_head(x)).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid()
        gate = gates[..., :1] * (gates[..., 1:] * self.gru_rel_pos_const - 1.0) + 2.0  # (B, H, T, 1)
        bias = gate * position_bias
        if unseen is not None:
            bias = bias + unseen
        query, key, value = (by_head(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_dim, config.feedforward_dim)
        self.output_dense = nn.Linear(config.feedforward_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a residual and a norm after it; skipped for some utterances."""

    def __init__(self, context: StepContext, config: TransformerConfig, first: bool):
        super().__init__()
        self.context = context
        self.layerdrop = 0.0 if first else config.layerdrop  # WavLM never skips the first layer
        self.attention = GatedAttention(config, first)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.attention_dropout = ChannelDropout(context, config.hidden_dim, config.dropout)
        self.feed_forward_dropout = ChannelDropout(context, config.hidden_dim, config.dropout)
        self.draw = context.new_draws()

    def forward(self, x: Tensor, position_bias: Tensor, unseen: Tensor | None) -> Tensor:
        """x (B, T, D), position_bias (H, T, T), unseen (B, 1, 1, T) or None -> (B, T, D)."""
        h = self.layer_norm(x + self.attention_dropout(self.attention(x, position_bias, unseen)))
        h = self.final_layer_norm(h + self.feed_forward_dropout(self.feed_forward(h)))
        if not self.training or self.layerdrop == 0.0:
            return h
        return torch.lerp(x, h, self.context.keep(self.draw, self.layerdrop).unsqueeze(-1).to(x.dtype))
