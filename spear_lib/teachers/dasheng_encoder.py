"""The Dasheng encoder (Dinkel et al. 2024, arXiv 2406.06992), with the official names of its tensors.

Legend: G chunks, S tokens per chunk (40 ms), F = 64 mel bins, D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spear_lib.teachers.decibel_mel import NUM_MELS, decibel_mel, mel_filters
from spear_lib.teachers.patch_transformer import FRAMES_PER_TOKEN, NORM_EPSILON, Block

CHUNK_TOKENS = 252
"""Tokens with a time position, 10.08 s; longer audio starts again at position 0."""

_WINDOW_LENGTH = 512
_TOP_DB = 120.0


@dataclass(frozen=True)
class DashengSize:
    """Channels, blocks and attention heads of an encoder."""

    embed_dim: int
    depth: int
    num_heads: int


RELEASED = {
    "base": DashengSize(768, 12, 12),
    "06b": DashengSize(1280, 32, 16),
    "12b": DashengSize(1536, 40, 24),
}
"""The released encoders: 86 million, 0.6 and 1.2 billion parameters."""


class _Spectrogram(nn.Module):
    """Holds the STFT window under its official name."""

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Buffer(torch.hann_window(_WINDOW_LENGTH, device="cpu"))


class _MelScale(nn.Module):
    """Holds the mel filters (257, 64) under their official name."""

    def __init__(self) -> None:
        super().__init__()
        self.fb = nn.Buffer(mel_filters(_WINDOW_LENGTH, 0.0, 8000.0))


class _MelSpectrogram(nn.Module):
    """Waveforms to mel spectrogram in dB."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrogram = _Spectrogram()
        self.mel_scale = _MelScale()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return decibel_mel(waveforms, lengths, self.spectrogram.window, self.mel_scale.fb, _TOP_DB)


class _PatchEmbedding(nn.Module):
    """One token per patch of all mel bins and 4 frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, (NUM_MELS, FRAMES_PER_TOKEN), (NUM_MELS, FRAMES_PER_TOKEN))


class DashengEncoder(nn.Module):
    """Mel spectrogram, batch norm over its bins, patches with positions, transformer blocks, layer norm."""

    def __init__(self, size: DashengSize) -> None:
        super().__init__()
        dim = size.embed_dim
        self.time_pos_embed = nn.Parameter(torch.zeros(1, dim, 1, CHUNK_TOKENS))
        self.freq_pos_embed = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.front_end = nn.Sequential(_MelSpectrogram())
        # The identity stands where the official model swaps axes: it keeps the number in the names.
        self.init_bn = nn.Sequential(nn.Identity(), nn.BatchNorm1d(NUM_MELS))
        self.patch_embed = _PatchEmbedding(dim)
        self.blocks = nn.ModuleList(Block(dim, size.num_heads, True) for _ in range(size.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)

    def mel(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(B, N) samples -> (B, M, F) dB with M = N // 160 + 1; -100 behind an utterance's end."""
        return self.front_end[0](waveforms, lengths)

    def normalise(self, mel: Tensor) -> Tensor:
        """Batch norm over mel bins with the running statistics, also in training mode; (..., F)."""
        norm = self.init_bn[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (mel - norm.running_mean) * scale + norm.bias

    def tokens(self, mel: Tensor) -> Tensor:
        """(G, 4 S, F) dB -> (G, S, D): the input of block 1."""
        patches = self.patch_embed.proj(self.normalise(mel).transpose(1, 2).unsqueeze(1))
        patches = patches + self.time_pos_embed[..., : patches.shape[3]] + self.freq_pos_embed
        return patches.squeeze(2).transpose(1, 2)

    def layer(self, tokens: Tensor, mask: Tensor | None, layer: int) -> Tensor:
        """Output of block ``layer`` (from 1), or for the last one of the final norm; (G, S, D) each.

        Args:
          mask: (G, 1, 1, S), true for tokens that count; None if all do.
        """
        for block in self.blocks[:layer]:
            tokens = block(tokens, mask)
        return self.norm(tokens) if layer == len(self.blocks) else tokens
