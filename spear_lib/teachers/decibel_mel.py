"""Mel spectrogram in decibels of padded batches, torchaudio's convention: input of Dasheng and ATST-Frame.

Legend: B utterances, N samples (16 kHz), M mel frames (10 ms), W samples of the window (= FFT length),
F = 64 mel bins.

Frames are centred on samples 0, 160, 320, ...; the signal is reflected at both ends; power spectrum,
triangular filters on the HTK mel scale without area normalisation, 10 log10. Reflection and dynamic range are
the utterance's own; in torchaudio a batch shares them, and a loud neighbour changes a quiet one by 20 dB.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.features.fbank import SAMPLE_RATE

NUM_MELS = 64
"""Mel bins of both models."""

HOP = 160
"""Samples between mel frames, 10 ms."""

_SMALLEST_POWER = 1e-10  # -100 dB
_FRAMES_PER_FFT = 8192  # bounds the memory of the spectrum, whatever the length of the recording


def mel_length(num_samples):
    """Mel frames of n samples (int or integer tensor): n // 160 + 1."""
    return num_samples // HOP + 1


def mel_filters(window_length: int, f_min: float, f_max: float) -> Tensor:
    """Triangles (W / 2 + 1, F), float32 on the CPU, computed in float64; ``f_min`` and ``f_max`` in Hz."""
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    lowest, highest = (2595.0 * math.log10(1.0 + edge / 700.0) for edge in (f_min, f_max))
    mels = torch.linspace(lowest, highest, NUM_MELS + 2, **exact)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, window_length // 2 + 1, **exact).unsqueeze(1)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0).float()


def decibel_mel(waveforms: Tensor, lengths: Tensor, window: Tensor, filters: Tensor, top_db: float) -> Tensor:
    """Mel spectrogram in dB.

    Args:
      waveforms: (B, N) float32; what lies behind an utterance's end is ignored.
      lengths: (B,) samples. At most W / 2 samples cannot be reflected: such utterances' frames mean nothing.
      window: (W,) Hann window; filters: (W / 2 + 1, F).
      top_db: every utterance's values are raised to this many dB below its loudest bin.

    Returns:
      (B, M, F) float32 with M = N // 160 + 1; -100 dB behind an utterance's ``mel_length`` frames.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        num_frames = mel_length(waveforms.shape[1])
        frames = _reflected(waveforms, lengths, len(window) // 2).unfold(1, len(window), HOP)
        decibels = waveforms.new_empty(len(waveforms), num_frames, NUM_MELS)
        step = max(1, _FRAMES_PER_FFT // len(waveforms))
        for start in range(0, num_frames, step):
            part = slice(start, min(start + step, num_frames))
            spectrum = torch.view_as_real(torch.fft.rfft(frames[:, part] * window))
            power = spectrum.square().sum(dim=-1) @ filters
            decibels[:, part] = 10.0 * power.clamp(min=_SMALLEST_POWER).log10()
        behind = torch.arange(num_frames, device=lengths.device) >= mel_length(lengths).unsqueeze(1)
        decibels.masked_fill_(behind.unsqueeze(2), -100.0)
        floor = decibels.amax(dim=(1, 2), keepdim=True) - top_db
        return torch.maximum(decibels, floor).masked_fill_(behind.unsqueeze(2), -100.0)


def _reflected(waveforms: Tensor, lengths: Tensor, margin: int) -> Tensor:
    """(B, N) -> (B, N + 2 margin): every utterance between mirror images of its ends."""
    width = max(waveforms.shape[1], margin + 1)
    padded = nn.functional.pad(waveforms, (margin, margin + width - waveforms.shape[1]))
    steps = torch.arange(1, margin + 1, device=waveforms.device)
    padded[:, :margin] = padded[:, margin + 1 : 2 * margin + 1].flip(1)
    last = (margin + lengths - 1).unsqueeze(1)
    return padded.scatter(1, last + steps, padded.gather(1, (last - steps).clamp(min=0)))
