"""ATST-Frame as a teacher (Li et al. 2023, arXiv 2306.04186): 25 Hz, native.

Weights: the official Lightning file (Google Drive), of which the teacher encoder is taken, or a .pt or
.safetensors file with the encoder's own names.

Legend: B utterances, N samples, G chunks, S tokens per chunk (40 ms), F = 64 mel bins, D channels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.encoders.weights import load_strictly, read_weights
from spear_lib.teachers.base import Teacher, weights_hash
from spear_lib.teachers.decibel_mel import NUM_MELS, decibel_mel, mel_filters, mel_length
from spear_lib.teachers.patch_transformer import (
    FRAMES_PER_TOKEN,
    NORM_EPSILON,
    Block,
    num_blocks,
    run_in_chunks,
)

_CHUNK_TOKENS = 250  # 10 s
_WINDOW_LENGTH = 1024
_TOP_DB = 80.0
_DB_RANGE = (-79.6482, 50.6842)  # mapped to -1 and 1
_HEAD_WIDTH = 64  # small: 6 heads of 384 channels, base: 12 of 768
_PATCH = NUM_MELS * FRAMES_PER_TOKEN
_PREFIX = "model.teacher.encoder."
_ANCHOR = "patch_embed.patch_embed.weight"
_DOWNLOAD = (
    "download atstframe_base (Google Drive) by the link in "
    "https://github.com/Audio-WestlakeU/audiossl/tree/main/audiossl/methods/atstframe and give its path"
)


class _PatchEmbedding(nn.Module):
    """One token per patch of all mel bins and 4 frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(_PATCH, dim)


class AtstEncoder(nn.Module):
    """The transformer of ATST-Frame, with the official names of its tensors."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.mask_embed = nn.Parameter(torch.zeros(1, 1, dim))  # only used in its training
        self.pos_embed = nn.Parameter(torch.zeros(1, _CHUNK_TOKENS + 1, dim))
        self.patch_embed = _PatchEmbedding(dim)
        self.blocks = nn.ModuleList(Block(dim, dim // _HEAD_WIDTH, False) for _ in range(depth))
        self.norm_frame = nn.LayerNorm(dim, eps=NORM_EPSILON)

    def tokens(self, mel: Tensor) -> Tensor:
        """(G, 4 S, F) scaled mel -> (G, S, D): the input of block 1."""
        # A patch is flattened frequency by frequency, the four frames of each.
        patches = mel.unflatten(1, (-1, FRAMES_PER_TOKEN)).transpose(2, 3).flatten(2)
        # Position 0 belongs to a class token that this model does not have.
        return self.patch_embed.patch_embed(patches) + self.pos_embed[:, 1 : patches.shape[1] + 1]

    def layers(self, tokens: Tensor, mask: Tensor | None, first: int, last: int) -> Tensor:
        """Outputs of blocks ``first`` to ``last`` (from 1), each after the one final norm, side by side.

        (G, S, D), mask (G, 1, 1, S) or None -> (G, S, (last - first + 1) D).
        """
        taken = []
        for number, block in enumerate(self.blocks[:last], 1):
            tokens = block(tokens, mask)
            if number >= first:
                taken.append(self.norm_frame(tokens))
        return torch.cat(taken, dim=-1)


class AtstFrameTeacher(Teacher):
    """One or several layers of an ATST-Frame encoder.

    Audio longer than 10 s within one call is encoded in chunks of 250 tokens that do not see each other. The
    official code cuts 1001 mel frames instead and drops one of them, so that its frames drift by 10 ms per
    chunk; ours stay at 40 k + 15 ms. Commands do not let it come to that: they cut longer recordings into
    overlapping windows of 10 s (``spear_lib.teachers.windows``).

    Args:
      path: the weights, see the module.
      layer: a block's number from 1, or counted from the end by a negative number; default: the last (SPEAR).
        The encoder's final norm is applied to every layer.
      num_layers: so many layers up to ``layer`` are concatenated (the official embedding of a frame: all 12).

    Raises:
      RuntimeError: no weights at ``path``; says what to download where.
      ValueError: weights that do not fit, every name listed; no such layers.
    """

    name = "atst_frame"
    needs = "a checkpoint of ATST-Frame; " + _DOWNLOAD
    frame_rate = 25.0
    first_frame_center_ms = 15.0
    normalisation = "mel dB within 80 dB of the utterance's loudest bin, scaled by fixed limits"
    window_seconds = 10.0
    overlap_seconds = 1.0

    def __init__(self, path: str | Path, layer: int = -1, num_layers: int = 1) -> None:
        super().__init__()
        self.encoder = load_atst(path)
        self.weights = weights_hash(self.encoder)
        depth = len(self.encoder.blocks)
        last = depth + 1 + layer if layer < 0 else layer
        if not 1 <= last <= depth:
            raise ValueError(f"layer is {layer}: the ATST-Frame encoder at {path} has layers 1..{depth}")
        if not 1 <= num_layers <= last:
            raise ValueError(f"num_layers is {num_layers}: there are 1..{last} layers up to layer {last}")
        self.layers = (last - num_layers + 1, last)
        span = f"{last}" if num_layers == 1 else f"{self.layers[0]} to {last}"
        self.layer = f"{span} of {depth}, after the final norm"
        self.field_prefix = f"atst_frame_l{span.replace(' ', '')}"
        self.embedding_dim = num_layers * self.encoder.pos_embed.shape[2]
        self.window = nn.Buffer(torch.hann_window(_WINDOW_LENGTH), persistent=False)
        self.filters = nn.Buffer(mel_filters(_WINDOW_LENGTH, 60.0, 7800.0), persistent=False)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    def num_frames(self, num_samples: int) -> int:
        # Half a window must be reflected at either end.
        return mel_length(num_samples) // FRAMES_PER_TOKEN if num_samples > _WINDOW_LENGTH // 2 else 0

    def mel(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(B, N) samples -> (B, N // 160 + 1, F), about -1 to 1."""
        decibels = decibel_mel(waveforms, lengths, self.window, self.filters, _TOP_DB)
        low, high = _DB_RANGE
        return 2.0 * (decibels - low) / (high - low) - 1.0

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens = mel_length(lengths) // FRAMES_PER_TOKEN * (lengths > _WINDOW_LENGTH // 2)
        mel = self.mel(waveforms, lengths)
        return run_in_chunks(mel, num_tokens, _CHUNK_TOKENS, self._encode, self.embedding_dim), num_tokens

    def _encode(self, mel: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.encoder.tokens(mel)
        with self.precision():
            return self.encoder.layers(tokens, mask, *self.layers)


def load_atst(path: str | Path) -> AtstEncoder:
    """The encoder at ``path`` in evaluation mode; errors as of ``AtstFrameTeacher``."""
    path = Path(path)
    if not path.is_file():
        raise RuntimeError(f"no ATST-Frame weights at {path}: {_DOWNLOAD}")
    content = read_weights(path, entry="state_dict")
    state = content.get("state_dict", content)
    prefix = next((each for each in (_PREFIX, "") if each + _ANCHOR in state), None)
    if prefix is None:
        raise ValueError(
            f"{path} holds no ATST-Frame encoder: neither {_PREFIX}{_ANCHOR} nor {_ANCHOR} is in it "
            f"(first names: {', '.join(list(state)[:5])})"
        )
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    dim = state[_ANCHOR].shape[0]
    if dim % _HEAD_WIDTH:
        raise ValueError(
            f"{path}: {dim} channels is no multiple of {_HEAD_WIDTH}, the width of a head (small has 384 "
            "channels, base 768)"
        )
    with torch.device("meta"):  # no time and memory for weights that are replaced
        encoder = AtstEncoder(dim, num_blocks(state))
    load_strictly(
        encoder, state, path, f"ATST-Frame encoder ({len(encoder.blocks)} blocks of {dim} channels)"
    )
    return encoder.eval().float().requires_grad_(False)
