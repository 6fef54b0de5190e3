"""An encoder for X-ARES: a class of its own for every encoder. xares caches features under the name of the
class and would hand those of one checkpoint to the next.

The file that xares takes on its command line:

    from spear_lib.interfaces.xares_encoder import encoder_class
    SpearEncoder = encoder_class("exp/pretrain/encoder")
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.interfaces.upstreams import load_upstream


def encoder_class(path: str | Path, layers: str | int = "output", **options: Any) -> type:
    """A class without constructor arguments whose name tells the encoder and its layers from all others.

    Args:
      path: what ``load_upstream`` reads.
      layers, options: as of AlignedEncoder; one state.

    Raises:
      ValueError: ``layers`` that give several states.
    """
    if layers == "all":
        raise ValueError("X-ARES wants one state: use layers 'output', 'concat' or the number of a layer")
    encoder = load_upstream(path)

    class Encoder(AlignedEncoder):
        """AlignedEncoder with the attributes that xares reads."""

        sampling_rate = SAMPLE_RATE

        def __init__(self) -> None:
            super().__init__(encoder, layers=layers, **options)
            self.hop_size_in_ms = 1000 // self.frame_rate

        @torch.no_grad()
        def forward(self, audio: Tensor) -> Tensor:
            """audio (B, N) or (N,) -> (B, T, output_dim) float32."""
            return super().forward(audio).states[0].float()

    Encoder.__name__ = Encoder.__qualname__ = f"Spear_{Encoder().identity()}_Encoder"
    return Encoder
