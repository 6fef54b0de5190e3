"""Log-mel features of padded batches of waveforms.

Shapes: B utterances, N samples (16 kHz), F fbank frames (10 ms), M mel bins.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SAMPLES = 1360  # 85 ms: the shortest audio with an output frame; shorter audio is padded with zeros
PAD_VALUE = math.log(1e-10)  # of frames behind the end of an utterance


class Fbank:
    """Log-mel features as Kaldi and lhotse compute them, each utterance mirrored at its own ends; float32."""

    def __init__(self, num_mel_bins: int, device: torch.device):
        low, high = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (20.0, 7600.0))
        edges = low + torch.arange(num_mel_bins + 2).unsqueeze(1) * ((high - low) / (num_mel_bins + 1))
        bins = 1127.0 * torch.from_numpy(np.log(1 + (31.25 * torch.arange(256) / 700).numpy()))
        left, middle, right = edges[:-2], edges[1:-1], edges[2:]
        slopes = torch.minimum((bins - left) / (middle - left), (right - bins) / (right - middle))
        self.filters = F.pad(slopes.clamp(min=0.0), (0, 1)).t().contiguous().to(device)
        self.window = torch.hann_window(400, periodic=False).pow(0.85).to(device)

    def __call__(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """audio (B, N), lengths (B,) -> fbank (B, F, M), lengths (B,) in frames."""
        batch, width = audio.shape
        count, frames = lengths.unsqueeze(1), (width + 80) // 160
        position = torch.arange(-120, width + 400, device=audio.device).expand(batch, -1).remainder(2 * count)
        position = torch.where(position < count, position, 2 * count - 1 - position)
        signal = audio.gather(1, position).unfold(1, 400, 160)[:, :frames]
        signal = signal - signal.mean(dim=-1, keepdim=True)
        previous = torch.cat([signal[..., :1], signal[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((signal - 0.97 * previous) * self.window, n=512)
        power = torch.view_as_real(spectrum).square().sum(-1)
        fbank = torch.matmul(power, self.filters).clamp(min=torch.finfo(torch.float32).eps).log()
        lengths = torch.div(lengths + 80, 160, rounding_mode="floor")
        behind = torch.arange(frames, device=audio.device) >= lengths.unsqueeze(1)
        return fbank.masked_fill(behind.unsqueeze(2), PAD_VALUE), lengths
