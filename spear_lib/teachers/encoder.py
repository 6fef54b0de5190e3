"""Any encoder that ``load_encoder`` reads as a teacher: second-iteration pre-training (ours, after
HuBERT)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.encoders.base import EncoderOutput
from spear_lib.teachers.base import Teacher, weights_hash


class EncoderTeacher(Teacher):
    """Hidden states of a pre-trained encoder, 50 Hz.

    Args:
      path: encoder folder or checkpoint that ``spear_lib.encoders.load_encoder`` reads.
      layer: index into the encoder's hidden_states; negative counts from the last.
    """

    name = "spear"
    needs = "an encoder that load_encoder reads: a folder or a checkpoint"

    def __init__(self, path: str | Path, layer: int = -1) -> None:
        super().__init__()
        from spear_lib.encoders import load_encoder

        self._set_encoder(load_encoder(path), layer, str(path))

    def _set_encoder(self, encoder: Any, layer: int, where: str) -> None:
        self.encoder = encoder.eval()
        self.weights = weights_hash(self.encoder)
        per_layer = encoder.hidden_dims
        count = len(per_layer)
        index = layer + count if layer < 0 else layer
        if not 0 <= index < count:
            raise ValueError(f"layer is {layer}: the encoder at {where} has hidden states 0..{count - 1}")
        self.layer_index = index
        self.layer = f"hidden_states[{index}]"
        self.field_prefix = f"spear_l{index}"
        self.frame_rate = 50.0
        # Hidden states are at 50 Hz even where the output is averaged in pairs to 25 Hz.
        self.first_frame_center_ms = encoder.hidden_first_center_ms
        self.normalisation = "none (the encoder's own)"
        self.embedding_dim = per_layer[index]

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    def num_frames(self, num_samples: int) -> int:
        return self.encoder.hidden_length(num_samples)

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        self.encoder.eval()
        # Utterances that are too short for the encoder have no frames; they run with silence and are cut off.
        shortest = self.encoder.min_samples
        missing = max(0, shortest - waveforms.shape[1])
        waveforms = torch.nn.functional.pad(waveforms, (0, missing))
        with self.precision():
            output = self.encoder.extract(waveforms, lengths.clamp(min=shortest))
        return self.chosen(output, lengths)

    def chosen(self, output: EncoderOutput, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, T, D) and their lengths in frames, for (B,) samples."""
        hidden = output.hidden_states[self.layer_index]
        return hidden, self.encoder.hidden_length(lengths).clamp(max=hidden.shape[1])


class EncoderOutputTeacher(EncoderTeacher):
    """The output of a pre-trained encoder, at its own rate; of a SpidR encoder that of the last block.

    Args:
      path: as of ``EncoderTeacher``.
    """

    name = "spear_output"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)

    def _set_encoder(self, encoder: Any, layer: int, where: str) -> None:
        super()._set_encoder(encoder, layer, where)
        self.layer = "encoder_out"
        self.field_prefix = "spear_output"
        self.frame_rate = float(encoder.frame_rate)
        self.first_frame_center_ms = encoder.first_frame_center_ms
        self.embedding_dim = encoder.output_dim

    def num_frames(self, num_samples: int) -> int:
        return self.encoder.output_length(num_samples)

    def chosen(self, output: EncoderOutput, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = [self.num_frames(length) for length in lengths.tolist()]
        return output.encoder_out, torch.tensor(frames, dtype=torch.int64, device=lengths.device)
