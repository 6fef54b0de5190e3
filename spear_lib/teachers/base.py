"""What every teacher is: waveforms in, frame embeddings out, one utterance at a time in effect.

Legend: B utterances, N samples (16 kHz), T teacher frames, D channels.
"""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Base class of teachers. A subclass sets the attributes below and implements ``frames`` and
    ``num_frames``.

    Attributes:
      name: how ``create_teacher`` calls it, for example ``spectral``.
      field_prefix: start of the token field's name on a cut, for example ``spectral`` -> ``spectral_cb8``.
      sample_rate: samples per second that ``embed`` wants.
      frame_rate: teacher frames per second.
      embedding_dim: channels D.
      layer: which layer the embeddings are, in words; empty for a teacher without layers.
      normalisation: what is normalised, over what, in words.
      first_frame_center_ms: time of the centre of frame 0 after the utterance's first sample.

    The embeddings of an utterance must not depend on its batch mates nor on the padding (tested).
    """

    name: str
    field_prefix: str
    sample_rate: int = 16000
    frame_rate: float
    embedding_dim: int
    layer: str = ""
    normalisation: str = ""
    first_frame_center_ms: float

    @property
    def id(self) -> str:
        """``name-`` and 12 hex digits over everything that decides the embeddings (options, weights)."""
        text = json.dumps(self.identity(), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def identity(self) -> dict[str, Any]:
        """The JSON-able facts that ``id`` hashes; subclasses add their options and a hash of their
        weights."""
        return {
            "name": self.name,
            "frame_rate": self.frame_rate,
            "embedding_dim": self.embedding_dim,
            "layer": self.layer,
            "normalisation": self.normalisation,
            "first_frame_center_ms": self.first_frame_center_ms,
        }

    def describe(self) -> dict[str, Any]:
        """What is stored beside embeddings, quantisers and tokens."""
        return {"teacher_id": self.id, "field_prefix": self.field_prefix, **self.identity()}

    def num_frames(self, num_samples: int) -> int:
        """Exact number of frames for ``num_samples`` samples."""
        raise TypeError(f"{type(self).__name__} must define num_frames")

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The computation behind ``embed``, on checked input."""
        raise TypeError(f"{type(self).__name__} must define frames")

    @torch.inference_mode()
    def embed(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of a padded batch.

        Args:
          waveforms: (B, N) float, 16 kHz, about [-1, 1]; what lies behind an utterance's end is ignored.
          lengths: (B,) int64 samples.

        Returns:
          embeddings (B, T, D) float32, zero behind an utterance's end; lengths (B,) int64 in frames.

        Raises:
          ValueError: wrong shapes, or samples that are not finite.
        """
        if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
            raise ValueError(
                f"a teacher wants waveforms (B, N) and lengths (B,), got {tuple(waveforms.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        if not torch.isfinite(waveforms).all():
            raise ValueError("waveforms contain NaN or infinity; find the recording and drop it")
        embeddings, num_frames = self.frames(waveforms.float(), lengths)
        behind = torch.arange(embeddings.shape[1], device=embeddings.device) >= num_frames.unsqueeze(1)
        return embeddings.float().masked_fill(behind.unsqueeze(2), 0.0), num_frames


def weights_hash(module: nn.Module) -> str:
    """16 hex digits over names and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
