"""An encoder as a module of HEAR 2021: load_model, scene and timestamp embeddings (API of hearvalidator).

    model = load_model("exp/pretrain/encoder")            # or without a path: SPEAR_ENCODER names it

The paper's tables use the last layer; ``layers="concat"`` is the concatenation of all (paper Tables 5, 15).
"""

import os
from typing import Any

import torch
from torch import Tensor

from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.interfaces.upstreams import load_upstream

ENCODER_VARIABLE = "SPEAR_ENCODER"


class HearModel(AlignedEncoder):
    """An encoder with the attributes that HEAR reads."""

    sample_rate = 16000

    def __init__(self, encoder: torch.nn.Module, **options: Any) -> None:
        super().__init__(encoder, **options)
        self.scene_embedding_size = self.timestamp_embedding_size = int(self.output_dim)


def load_model(model_file_path: str = "", layers: str | int = "output", **options: Any) -> HearModel:
    """The model for ``model_file_path`` (what ``load_upstream`` reads); ``options`` as of AlignedEncoder."""
    path = model_file_path or os.environ.get(ENCODER_VARIABLE, "")
    if not path:
        raise ValueError(f"no encoder: give load_model a path, or set {ENCODER_VARIABLE} to one")
    if layers == "all":
        raise ValueError("HEAR wants one embedding: use layers 'output', 'concat' or the number of a layer")
    return HearModel(load_upstream(path), layers=layers, **options).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """audio (B, N) at 16 kHz -> embeddings (B, T, D) and their times (B, T) in ms, float32, none of them
    beyond the end; one at least."""
    (frames,) = model(audio).states
    milliseconds = 1000.0 * audio.shape[-1] / model.sample_rate
    hop = 1000.0 / model.frame_rate
    count = min(frames.shape[1], max(1, int((milliseconds - model.first_center_ms) // hop) + 1))
    times = model.first_center_ms + hop * torch.arange(count, device=frames.device)
    return frames[:, :count].float(), times.float().expand(len(frames), -1).contiguous()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """audio (B, N) at 16 kHz -> the mean of the encoder's frames, (B, D) float32."""
    return model.means(audio)[0].float()
