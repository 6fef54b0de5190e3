"""What every teacher is: waveforms in, frame embeddings out, one utterance at a time in effect.

Legend: B utterances, N samples (16 kHz), T teacher frames, D channels.
"""

import hashlib
import itertools
import json
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Base class of teachers. A subclass sets the attributes below and implements ``frames`` and
    ``num_frames``. How it computes is set by ``configure``, after which its ``id`` is final.

    Attributes:
      needs: what its path must be, in words; empty for a teacher without weights.
      dtypes: number formats that it can compute in.
      dtype: the one it computes in. Not part of ``id``: the teacher is the same, and how many tokens differ
        is measured (``spear_lib.tokens.agreement``); ``describe`` has it.
      window_seconds, overlap_seconds: recordings longer than the window are cut into overlapping windows
        (``spear_lib.teachers.windows``).
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

    needs: str = ""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    dtype: str = "float32"
    window_seconds: float = 30.0
    overlap_seconds: float = 2.0

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
            "window_seconds": self.window_seconds,
            "overlap_seconds": self.overlap_seconds,
        }

    def describe(self) -> dict[str, Any]:
        """What is stored beside embeddings, quantisers and tokens."""
        facts = {"teacher_id": self.id, "field_prefix": self.field_prefix, "dtype": self.dtype}
        return {**facts, **self.identity()}

    def configure(
        self,
        dtype: str = "float32",
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
    ) -> "Teacher":
        """Set how the teacher computes; None keeps its own default. Returns the teacher.

        Raises:
          ValueError: a dtype that it cannot compute in, a window under one second, or an overlap of more
            than half a window.
        """
        if dtype not in self.dtypes:
            raise ValueError(
                f"dtype is {dtype!r}: the {self.name} teacher computes in {' or '.join(self.dtypes)}"
            )
        window = self.window_seconds if window_seconds is None else window_seconds
        overlap = self.overlap_seconds if overlap_seconds is None else overlap_seconds
        if window < 1:
            raise ValueError(f"window_seconds is {window:g}: a teacher's window must be 1 s or longer")
        if not 0 <= overlap <= window / 2:
            raise ValueError(
                f"overlap_seconds is {overlap:g}: it must be in 0..{window / 2:g}, half of the window of "
                f"{window:g} s"
            )
        self.dtype, self.window_seconds, self.overlap_seconds = dtype, float(window), float(overlap)
        return self

    @property
    def device(self) -> torch.device:
        """Where the teacher's tensors are."""
        tensor = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def precision(self) -> torch.autocast:
        """Context for the part of ``frames`` that may run in ``dtype``; all else is float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

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
        # Front ends and normalisation are float32 whatever the caller's precision is.
        with torch.autocast(self.device.type, enabled=False):
            embeddings, num_frames = self.frames(waveforms.float(), lengths)
        behind = torch.arange(embeddings.shape[1], device=embeddings.device) >= num_frames.unsqueeze(1)
        return embeddings.float().masked_fill(behind.unsqueeze(2), 0.0), num_frames


def weights_hash(module: nn.Module) -> str:
    """16 hex digits over names and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
