"""Dasheng as a teacher (base, 0.6B, 1.2B): 25 Hz, the paper's audio teacher.

Weights, official or in their format: a .pt file (Zenodo), a .safetensors file with the same names, a Hugging
Face folder (config.json beside model.safetensors), or hub:OWNER/NAME (``spear_lib.runtime.hub``).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.encoders.weights import load_strictly, read_weights
from spear_lib.runtime.files import read_json
from spear_lib.runtime.hub import HUB_PREFIX, download
from spear_lib.teachers.base import Teacher, weights_hash
from spear_lib.teachers.dasheng_encoder import CHUNK_TOKENS, RELEASED, DashengEncoder, DashengSize
from spear_lib.teachers.decibel_mel import mel_length
from spear_lib.teachers.patch_transformer import FRAMES_PER_TOKEN, num_blocks, run_in_chunks

_ANCHOR = "patch_embed.proj.weight"
_FRONT_END = "front_end."
_DOWNLOAD = (
    "download dasheng_base.pt, dasheng_06b.pt or dasheng_12b.pt from https://zenodo.org/records/11511780 (or "
    "config.json and model.safetensors from https://huggingface.co/mispeech/dasheng-base, -0.6B or -1.2B) "
    "and give the path of the file or folder"
)


class DashengTeacher(Teacher):
    """A layer of a Dasheng encoder.

    Audio longer than 10.08 s within one call is encoded in chunks of 252 tokens that do not see each other,
    the last one shorter (the rule of the package dasheng 0.0.9). Commands do not let it come to that: they
    cut longer recordings into overlapping windows of 10.08 s (``spear_lib.teachers.windows``).

    Args:
      path: the weights, see the module.
      layer: a block's number from 1, or counted from the end by a negative number. The last layer (default)
        is the encoder's output, after the final layer norm; the others are the raw output of their block.

    Raises:
      RuntimeError: no weights at ``path``; says what to download where.
      ValueError: weights that do not fit, every name listed; no such layer.
    """

    name = "dasheng"
    needs = "a .pt file or folder of Dasheng weights; " + _DOWNLOAD
    frame_rate = 25.0
    first_frame_center_ms = 15.0
    normalisation = "mel dB within 120 dB of the utterance's loudest bin; the encoder's running statistics"
    window_seconds = 10.08
    overlap_seconds = 1.0

    def __init__(self, path: str | Path, layer: int = -1) -> None:
        super().__init__()
        self.encoder, size = load_dasheng(path)
        self.weights = weights_hash(self.encoder)
        self.layer_index = size.depth + 1 + layer if layer < 0 else layer
        if not 1 <= self.layer_index <= size.depth:
            raise ValueError(f"layer is {layer}: the Dasheng encoder at {path} has layers 1..{size.depth}")
        last = self.layer_index == size.depth
        self.layer = f"{self.layer_index} of {size.depth}, {'after the final norm' if last else 'no norm'}"
        names = {released: name for name, released in RELEASED.items()}
        self.field_prefix = f"dasheng_{names.get(size, f'd{size.embed_dim}')}_l{self.layer_index}"
        self.embedding_dim = size.embed_dim

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    def num_frames(self, num_samples: int) -> int:
        return mel_length(num_samples) // FRAMES_PER_TOKEN

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens = mel_length(lengths) // FRAMES_PER_TOKEN
        mel = self.encoder.mel(waveforms, lengths)
        return run_in_chunks(mel, num_tokens, CHUNK_TOKENS, self._encode, self.embedding_dim), num_tokens

    def _encode(self, mel: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.encoder.tokens(mel)
        with self.precision():
            return self.encoder.layer(tokens, mask, self.layer_index)


def load_dasheng(path: str | Path) -> tuple[DashengEncoder, DashengSize]:
    """The encoder at ``path`` in evaluation mode, and its size; errors as of ``DashengTeacher``."""
    where = _find(str(path))
    content = read_weights(where)
    state, settings = content.get("model", content), content.get("config")
    if settings is None and (where.parent / "config.json").exists():
        settings = read_json(where.parent / "config.json")
    state = _encoder_part(state, where)
    size = _size(state, settings or {}, where)
    with torch.device("meta"):  # no time and memory for weights that are replaced
        encoder = DashengEncoder(size)
    if not any(name.startswith(_FRONT_END) for name in state):
        # Hugging Face copies leave window and mel filters to their feature extractor.
        state |= {name: each for name, each in encoder.state_dict().items() if name.startswith(_FRONT_END)}
    load_strictly(
        encoder, state, where, f"Dasheng encoder ({size.depth} blocks of {size.embed_dim} channels)"
    )
    return encoder.eval().float().requires_grad_(False), size


def _find(path: str) -> Path:
    """The file of the weights, fetched first where ``path`` is hub:OWNER/NAME."""
    if path.startswith(HUB_PREFIX):
        where = download(path.removeprefix(HUB_PREFIX), _DOWNLOAD)
    else:
        where = Path(path)
    where = where / "model.safetensors" if where.is_dir() else where
    if not where.exists():
        raise RuntimeError(f"no Dasheng weights at {where}: {_DOWNLOAD}")
    return where


def _encoder_part(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The encoder's tensors under their official names: Hugging Face puts "encoder." in front."""
    for prefix in ("", "encoder."):
        if prefix + _ANCHOR in state:
            return {
                name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)
            }
    raise ValueError(
        f"{path} holds no Dasheng encoder: neither {_ANCHOR} nor encoder.{_ANCHOR} is in it (first names: "
        f"{', '.join(list(state)[:5])})"
    )


def _size(state: dict[str, Tensor], settings: dict[str, Any], path: Path) -> DashengSize:
    """The released size with this width, as the official loaders do; otherwise what the file says."""
    dim = state[_ANCHOR].shape[0]
    for size in RELEASED.values():
        if size.embed_dim == dim:
            return size
    settings = {**settings, **(settings.get("encoder_kwargs") or {})}
    num_heads = settings.get("num_heads")
    if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"{path}: {dim} channels is no released size (768, 1280, 1536), and its config has num_heads "
            f"{num_heads!r}; a divisor of {dim} is needed there"
        )
    return DashengSize(dim, settings.get("depth", num_blocks(state)), num_heads)
