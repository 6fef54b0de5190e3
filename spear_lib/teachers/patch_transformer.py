"""What Dasheng and ATST-Frame share: pre-norm transformer blocks over time patches, run in chunks.

Legend: B utterances, M mel frames (10 ms), F mel bins, T tokens (40 ms), G chunks in one call, S tokens per
chunk, D channels. Module names are those of the official checkpoints (timm's ViT).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

FRAMES_PER_TOKEN = 4
"""Mel frames in a patch: 40 ms."""

NORM_EPSILON = 1e-6
"""Of every LayerNorm in both models."""

_CHUNKS_PER_CALL = 32  # 5 minutes of audio; bounds the memory of long recordings


class Attention(nn.Module):
    """Multi-head self-attention; rows of ``qkv`` are queries, keys, values, each head after head."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(G, S, D), mask (G, 1, 1, S) true for keys that count -> (G, S, D)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, G, H, S, D / H)
        return self.proj(scaled_dot_product_attention(*qkv, attn_mask=mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers, four times as wide inside, exact GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def num_blocks(state: dict[str, Tensor]) -> int:
    """How many blocks a state dict holds: the largest number in ``blocks.<number>.`` plus one."""
    return 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)


def run_in_chunks(
    mel: Tensor,
    num_tokens: Tensor,
    chunk_tokens: int,
    encode: Callable[[Tensor, Tensor | None], Tensor],
    dim: int,
) -> Tensor:
    """Encode every utterance in consecutive chunks that do not see each other.

    Args:
      mel: (B, M, F), M at least 4 T.
      num_tokens: (B,) tokens of every utterance.
      chunk_tokens: tokens per chunk; an utterance's last chunk is shorter.
      encode: chunks (G, 4 S, F), mask (G, 1, 1, S) or None -> (G, S, D).
      dim: D.

    Returns:
      (B, T, D) float32, zero behind an utterance's tokens.
    """
    counts = num_tokens.tolist()
    result = mel.new_zeros(len(counts), max(counts, default=0), dim)
    for group in _groups(counts, chunk_tokens):
        longest = group[0][2]
        chunks = mel.new_zeros(len(group), FRAMES_PER_TOKEN * longest, mel.shape[2])
        for chunk, (row, start, count) in zip(chunks, group):
            frames = slice(FRAMES_PER_TOKEN * start, FRAMES_PER_TOKEN * (start + count))
            chunk[: FRAMES_PER_TOKEN * count] = mel[row, frames]
        mask = None
        if group[-1][2] < longest:
            sizes = torch.tensor([count for _, _, count in group], device=mel.device)
            mask = (torch.arange(longest, device=mel.device) < sizes.unsqueeze(1))[:, None, None]
        for tokens, (row, start, count) in zip(encode(chunks, mask), group):
            result[row, start : start + count] = tokens[:count]
    return result


def _groups(counts: list[int], chunk_tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    """(utterance, first token, tokens) of all chunks, the longest first, in groups for one call."""
    chunks = [
        (row, start, min(chunk_tokens, count - start))
        for row, count in enumerate(counts)
        for start in range(0, count, chunk_tokens)
    ]
    chunks.sort(key=lambda chunk: -chunk[2])
    for begin in range(0, len(chunks), _CHUNKS_PER_CALL):
        yield chunks[begin : begin + _CHUNKS_PER_CALL]
