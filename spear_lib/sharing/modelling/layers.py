"""The parts of a Zipformer in evaluation.

Shapes: B utterances, T frames, D channels, H heads, P width of positional encodings.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.sharing.modelling.configuration import SpearConfig, numbers


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def swoosh(x: Tensor, kind: str) -> Tensor:
    """Swoosh activation of kind "L" or "R" (Zipformer)."""
    shift, offset = (4.0, 0.035) if kind == "L" else (1.0, 0.313261687)
    wide = _wide(x)
    return (F.softplus(wide - shift) - 0.08 * wide - offset).to(x.dtype)


class BiasNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_scale, 1.0)
        nn.init.normal_(self.bias, 0.0, 1e-4)

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        square = (wide - self.bias).square().mean(-1, keepdim=True).clamp(min=1e-20)
        return (wide * (self.log_scale.exp() * square.rsqrt())).to(self.bias.dtype)


class Bypass(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.bypass_scale, 0.5)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x + (h - x) * self.bypass_scale.to(x.dtype)


class Downsample(nn.Module):
    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.empty(factor))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, ceil(T / factor), D); from ``lengths`` on the last frame before."""
        batch, frames, dim = x.shape
        index = torch.arange(frames + -frames % self.factor, device=x.device).expand(batch, -1)
        last = frames - 1 if lengths is None else (lengths - 1).clamp(min=0).unsqueeze(1)
        index = index.clamp(max=last) if lengths is None else torch.minimum(index, last)
        groups = x.gather(1, index.unsqueeze(2).expand(-1, -1, dim)).unflatten(1, (-1, self.factor))
        return torch.einsum("btfd,f->btd", groups, self.bias.softmax(0).to(x.dtype))


def upsample(x: Tensor, factor: int, frames: int) -> Tensor:
    """Every frame ``factor`` times, cut to ``frames``."""
    return x if factor == 1 else x.repeat_interleave(factor, dim=1)[:, :frames]


class FrontEnd(nn.Module):
    """fbank (B, F, M) -> embeddings (B, T, D) at 50 Hz."""

    def __init__(self, config: SpearConfig):
        super().__init__()
        first, second, third = numbers(config.frontend_channels)
        self.exact = config.padding == "exact"
        self.conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(1, first, 3, padding=(0, 1)),
                "4": nn.Conv2d(first, second, 3, stride=2),
                "7": nn.Conv2d(second, third, 3, stride=(1, 2)),
            }
        )
        self.convnext = nn.Module()
        self.convnext.depthwise_conv = nn.Conv2d(third, third, 7, groups=third, padding=3)
        self.convnext.pointwise_conv1 = nn.Conv2d(third, 3 * third, 1)
        self.convnext.pointwise_conv2 = nn.Conv2d(3 * third, third, 1)
        dim, width = config.per_stack("encoder_dim")[0], ((config.num_mel_bins - 1) // 2 - 1) // 2
        self.out = nn.Linear(third * width, dim)
        self.out_norm = BiasNorm(dim)

    def forward(self, fbank: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = fbank.unsqueeze(1)
        for name in ("0", "4", "7"):
            x = swoosh(self.conv[name](x), "R")
        lengths = torch.div(lengths - 7, 2, rounding_mode="floor").clamp(min=0)
        if self.exact:
            x = x * (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, :, None].to(
                x.dtype
            )
        block = self.convnext
        x = x + block.pointwise_conv2(swoosh(block.pointwise_conv1(block.depthwise_conv(x)), "L"))
        return self.out_norm(self.out(x.transpose(1, 2).flatten(2))), lengths


class AttentionWeights(nn.Module):
    def __init__(self, dim: int, heads: int, query_dim: int, pos_head_dim: int, pos_dim: int):
        super().__init__()
        self.heads, self.widths = heads, [heads * query_dim, heads * query_dim, heads * pos_head_dim]
        self.in_proj = nn.Linear(dim, sum(self.widths))
        self.linear_pos = nn.Linear(pos_dim, heads * pos_head_dim, bias=False)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, D), table (2 T - 1, P), mask (B or 1, 1, T or 1, T) -> (B, H, T, T)."""
        parts = self.in_proj(x).split(self.widths, dim=-1)
        query, key, position = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        offsets = self.linear_pos(table.to(self.linear_pos.weight.dtype)).unflatten(1, (self.heads, -1))
        by_offset = torch.matmul(position, offsets.permute(1, 2, 0).to(position.dtype))  # (B, H, T, 2 T - 1)
        # With one more column a row is 2 T long: read in rows of 2 T - 1, each begins one offset earlier.
        frames = x.shape[1]
        rows = F.pad(by_offset, (0, 1)).flatten(2)[..., frames - 1 : frames - 1 + frames * (2 * frames - 1)]
        relative = rows.unflatten(2, (frames, 2 * frames - 1))[..., :frames]
        scores = torch.matmul(query, key.transpose(2, 3)) + relative + mask.to(query.dtype)
        return _wide(scores).softmax(dim=-1).to(query.dtype)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(dim, heads * head_dim), nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        values = self.in_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return self.out_proj(torch.matmul(weights, values).transpose(1, 2).flatten(2))


class NonlinAttention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        hidden = 3 * dim // 4
        self.in_proj, self.out_proj = nn.Linear(dim, 3 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        gate, values, output_gate = self.in_proj(x).chunk(3, dim=-1)
        return self.out_proj(torch.matmul(weights, values * gate.tanh()) * output_gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(swoosh(self.in_proj(x), "L"))


class ChunkCausalConv(nn.Module):
    """A causal convolution plus a symmetric one inside each chunk."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.causal_conv = nn.Conv1d(dim, dim, (kernel + 1) // 2, groups=dim)
        self.chunkwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, padding=kernel // 2)
        self.chunkwise_conv_scale = nn.Parameter(torch.empty(2, dim, kernel))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.chunkwise_conv_scale)

    def forward(self, x: Tensor, chunk: int | Tensor) -> Tensor:
        """x (B, D, T), chunk: frames of a chunk, or (B,) frames of the one chunk that each utterance is."""
        batch, dim, frames = x.shape
        causal, kernel = self.causal_conv(F.pad(x, (self.kernel // 2, 0))), self.kernel
        size = frames if isinstance(chunk, Tensor) else chunk
        ends = chunk if isinstance(chunk, Tensor) else torch.tensor([size], device=x.device)
        x = F.pad(x, (0, -frames % size)).unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)
        index = torch.arange(size, device=x.device)
        from_end = index - ends.unsqueeze(1) + kernel
        left, right = self.chunkwise_conv_scale
        near = 1.0 + left[:, index.clamp(max=kernel - 1)] * (index < kernel).to(x.dtype)
        inside = ((from_end >= 0) & (from_end < kernel)).to(x.dtype)
        scale = near + (right[:, from_end.clamp(0, kernel - 1)] * inside).transpose(0, 1)  # (B or 1, D, size)
        x = (self.chunkwise_conv(x) * scale).unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
        return causal + x[..., :frames]


class ConvolutionModule(nn.Module):
    def __init__(self, dim: int, kernel: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.in_proj, self.out_proj = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        conv = nn.Conv1d(dim, dim, kernel, groups=dim, padding=kernel // 2)
        self.depthwise_conv = ChunkCausalConv(dim, kernel) if causal else conv

    def forward(self, x: Tensor, valid: Tensor, chunk: int | Tensor) -> Tensor:
        values = F.glu(self.in_proj(x), dim=-1) * valid.to(x.dtype)
        values = values.transpose(1, 2)
        values = self.depthwise_conv(values, chunk) if self.causal else self.depthwise_conv(values)
        return self.out_proj(swoosh(values.transpose(1, 2), "R"))


class Layer(nn.Module):
    def __init__(self, config: SpearConfig, stack: int):
        super().__init__()
        names = (
            "encoder_dim",
            "feedforward_dim",
            "num_heads",
            "query_head_dim",
            "pos_head_dim",
            "value_head_dim",
        )
        dim, hidden, heads, query, pos, value = (config.per_stack(name)[stack] for name in names)
        kernel = config.per_stack("cnn_module_kernel")[stack]
        self.bypass_scale = nn.Parameter(torch.empty(dim))  # unused, but in every published file
        self.bypass, self.bypass_mid, self.norm = Bypass(dim), Bypass(dim), BiasNorm(dim)
        self.self_attn_weights = AttentionWeights(dim, heads, query, pos, config.pos_dim)
        self.self_attn1, self.self_attn2 = SelfAttention(dim, heads, value), SelfAttention(dim, heads, value)
        self.feed_forward1 = FeedForward(dim, 3 * hidden // 4)
        self.feed_forward2 = FeedForward(dim, hidden)
        self.feed_forward3 = FeedForward(dim, 5 * hidden // 4)
        self.nonlin_attention = NonlinAttention(dim)
        self.conv_module1 = ConvolutionModule(dim, kernel, config.causal)
        self.conv_module2 = ConvolutionModule(dim, kernel, config.causal)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.bypass_scale, 0.5)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor, valid: Tensor, chunk: int | Tensor) -> Tensor:
        weights = self.self_attn_weights(x, table, mask)
        h = x + self.feed_forward1(x)
        h = h + self.nonlin_attention(h, weights[:, 0])
        h = h + self.self_attn1(h, weights)
        h = h + self.conv_module1(h, valid, chunk)
        h = self.bypass_mid(x, h + self.feed_forward2(h))
        h = h + self.self_attn2(h, weights)
        h = h + self.conv_module2(h, valid, chunk)
        return self.bypass(x, self.norm(h + self.feed_forward3(h)))


def positional_table(frames: int, dim: int, device: torch.device) -> Tensor:
    """(2 T - 1, P): encodings of the offsets -(T - 1) ... T - 1, source minus target."""
    offsets, root = torch.arange(1 - frames, frames, device=device, dtype=torch.float32), math.sqrt(dim)
    angles = (
        root * offsets.sign() * ((offsets.abs() + root).log() - math.log(root)) * (2 * math.pi / dim)
    ).atan()
    angles = angles.unsqueeze(1) * torch.arange(1, dim // 2 + 1, device=device)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    return torch.cat([table[:, :-1], torch.ones_like(table[:, :1])], dim=1)
