"""The spectral teacher: the shape of the log-mel spectrum around a frame, decorrelated. No weights (ours).

It lets the whole recipe run from nothing: no download, exact reproduction anywhere. Its tokens carry the
spectral envelope (which phone) and its change (which transition), with loudness and channel taken out per
utterance.

Legend: B utterances, F fbank frames (10 ms), T teacher frames, S = 100 / frame_rate fbank frames from one to
the next, W = 2 * context + 1 fbank frames per teacher frame, M mel coefficients, Q time coefficients,
D = M * Q.

Teacher frame m is centred on fbank frame S m + S / 2 - 1, so that every student's frame centre is one of the
teacher's: at 50 Hz frame m is at 20 m + 5 ms and the student's frame j, at 20 j + 45 ms, is teacher frame
j + 2; at 25 Hz they are at 40 m + 15 ms and 40 j + 55 ms, teacher frame j + 1.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.features.fbank import FbankExtractor, fbank_length
from spear_lib.teachers.base import Teacher

_NATS_PER_DB = math.log(10.0) / 10.0
FBANK_SHIFT_MS = 10.0
FRAME_RATES = (50.0, 25.0)
"""Teacher frames per second: those of the speech and of the audio teachers of the paper."""


class SpectralTeacher(Teacher):
    """Context-stacked log-mel in a two-dimensional cosine basis.

    Args:
      num_mel_coefficients: low-order DCT coefficients over the mel axis, M (the spectral envelope).
      num_time_coefficients: low-order DCT coefficients over the W frames, Q (level, slope, curvature, ...).
      context_frames: fbank frames (10 ms) on each side of the centre.
      dynamic_range_db: the spectrum is raised to this many dB below the utterance's loudest bin, so that the
        noise floor of silence does not eat tokens; 0 switches it off.
      mean_normalisation: subtract every mel bin's mean over the utterance (takes out gain and channel).
      energy_weight: factor on the coefficients of order 0 over the mel axis (loudness), which otherwise
        dominate.
      frame_rate: teacher frames per second, 50 or 25. Tokens at 25 Hz have a field of their own name, so that
        a cut can carry those of both.
    """

    name = "spectral"
    dtypes = ("float32",)

    def __init__(
        self,
        num_mel_coefficients: int = 20,
        num_time_coefficients: int = 4,
        context_frames: int = 4,
        dynamic_range_db: float = 60.0,
        mean_normalisation: bool = True,
        energy_weight: float = 0.5,
        frame_rate: float = 50.0,
    ) -> None:
        super().__init__()
        if frame_rate not in FRAME_RATES:
            known = " or ".join(f"{rate:g}" for rate in FRAME_RATES)
            raise ValueError(
                f"frame_rate is {frame_rate:g}: the spectral teacher has {known} frames per second"
            )
        self.frame_rate = float(frame_rate)
        self.field_prefix = "spectral" if frame_rate == 50.0 else f"spectral_{frame_rate:g}hz"
        self.stride = round(1000.0 / FBANK_SHIFT_MS / frame_rate)  # S
        self.first_center = self.stride // 2 - 1  # fbank frame on which teacher frame 0 is centred
        self.first_frame_center_ms = FBANK_SHIFT_MS * (self.first_center + 0.5)
        self.fbank = FbankExtractor()
        num_bins, width = self.fbank.num_mel_bins, 2 * context_frames + 1
        if context_frames < 0:
            raise ValueError(f"context_frames is {context_frames}: it must be 0 or more")
        if not 1 <= num_mel_coefficients <= num_bins:
            raise ValueError(f"num_mel_coefficients is {num_mel_coefficients}: it must be in 1..{num_bins}")
        if not 1 <= num_time_coefficients <= width:
            raise ValueError(
                f"num_time_coefficients is {num_time_coefficients}: it must be in 1..{width}, the frames "
                f"seen with context_frames {context_frames}"
            )
        if dynamic_range_db < 0:
            raise ValueError(f"dynamic_range_db is {dynamic_range_db}: it must be 0 (off) or positive")
        self.options = {
            "num_mel_coefficients": num_mel_coefficients,
            "num_time_coefficients": num_time_coefficients,
            "context_frames": context_frames,
            "dynamic_range_db": dynamic_range_db,
            "mean_normalisation": mean_normalisation,
            "energy_weight": energy_weight,
        }
        self.embedding_dim = num_mel_coefficients * num_time_coefficients
        self.normalisation = "mel bin mean per utterance" if mean_normalisation else "none"
        mel_basis = cosine_basis(num_bins, num_mel_coefficients)  # (128, M)
        mel_basis[:, 0] *= energy_weight
        self.mel_basis = nn.Buffer(mel_basis, persistent=False)
        self.time_basis = nn.Buffer(cosine_basis(width, num_time_coefficients), persistent=False)  # (W, Q)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "version": 1, **self.options}

    def num_frames(self, num_samples: int) -> int:
        return int(self._count(fbank_length(num_samples)))

    def _count(self, num_fbank_frames: int | Tensor) -> int | Tensor:
        """Teacher frames whose centre is one of the fbank frames."""
        return (num_fbank_frames + self.stride - 1 - self.first_center) // self.stride

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """One utterance after the other: an utterance's sums never see its batch mates, to the last bit."""
        fbank, fbank_lengths = self.fbank(waveforms, lengths)
        num_frames = self._count(fbank_lengths)
        result = fbank.new_zeros(fbank.shape[0], self._count(fbank.shape[1]), self.embedding_dim)
        for row, (length, count) in enumerate(zip(fbank_lengths.tolist(), num_frames.tolist())):
            if count > 0:
                result[row, :count] = self._one(fbank[row, :length])
        return result, num_frames

    def _one(self, fbank: Tensor) -> Tensor:
        """(F, 128) log-mel (nats) of one whole utterance -> (T, D)."""
        if self.options["dynamic_range_db"] > 0:
            floor = fbank.max() - self.options["dynamic_range_db"] * _NATS_PER_DB
            fbank = fbank.clamp(min=floor)
        if self.options["mean_normalisation"]:
            fbank = fbank - fbank.mean(dim=0)
        envelope = fbank @ self.mel_basis  # (F, M)
        context = self.options["context_frames"]
        # The first and last frames repeat themselves outwards.
        position = torch.arange(self.first_center - context, envelope.shape[0] + context, device=fbank.device)
        padded = envelope[position.clamp(0, envelope.shape[0] - 1)]
        windows = padded.unfold(0, 2 * context + 1, self.stride)  # (T, M, W)
        return (windows @ self.time_basis).flatten(1)


def cosine_basis(length: int, count: int) -> Tensor:
    """The first ``count`` orthonormal DCT-II vectors, (length, count) float32."""
    position = (torch.arange(length, dtype=torch.float64) + 0.5) * (math.pi / length)
    basis = torch.cos(position[:, None] * torch.arange(count, dtype=torch.float64)) * math.sqrt(2.0 / length)
    basis[:, 0] /= math.sqrt(2.0)
    return basis.float()
