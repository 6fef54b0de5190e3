"""Waveforms to frames at 50 Hz: seven convolutions without padding, as in wav2vec 2.0, HuBERT and WavLM Base.

Shapes: B utterances, N samples, C channels, t frames of a convolution, T frames at 50 Hz.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
MIN_SAMPLES = 400  # of the first frame: 25 ms
_HOP_SAMPLES = 320


def extracted_frames(num_samples: int | Tensor) -> int | Tensor:
    """Frames of so many samples (int or integer tensor): 1 + (N - 400) // 320, 0 where that is too short."""
    frames = (num_samples - MIN_SAMPLES) // _HOP_SAMPLES + 1
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)


class UtteranceNorm(nn.Module):
    """Normalises each channel of each utterance over its own frames (GroupNorm with a group per channel).

    WavLM Base takes the padding of a batch into these statistics, so that features of an utterance depend on
    its batch mates; without padding the numbers are the same.
    """

    def __init__(self, channels: int, epsilon: float = 1.0e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, C, t), lengths (B,) frames of each utterance -> (B, C, t)."""
        with torch.autocast(x.device.type, enabled=False):
            valid = torch.arange(x.shape[2], device=x.device) < lengths.unsqueeze(1)
            x32 = x.float().masked_fill(~valid.unsqueeze(1), 0.0)
            count = lengths.view(-1, 1)
            mean = x32.sum(dim=2) / count
            variance = (x32.square().sum(dim=2) / count - mean.square()).clamp(min=0.0)
            gain = self.weight * (variance + self.epsilon).rsqrt()
            offset = self.bias - mean * gain
            return torch.addcmul(offset.unsqueeze(2), x32, gain.unsqueeze(2)).to(x.dtype)


class ConvolutionLayer(nn.Module):
    """One convolution without bias, the norm in the first layer only, GELU."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, normalise: bool):
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, kernel, stride=stride, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)
        if normalise:
            self.layer_norm = UtteranceNorm(channels)
        self.normalise = normalise

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, C', t'), lengths (B,) valid frames of the output -> (B, C, t)."""
        x = self.conv(x)
        return F.gelu(self.layer_norm(x, lengths) if self.normalise else x)


class WaveformExtractor(nn.Module):
    """The convolutional extractor."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_layers = nn.ModuleList(
            ConvolutionLayer(channels if index else 1, channels, kernel, stride, normalise=index == 0)
            for index, (kernel, stride) in enumerate(zip(KERNELS, STRIDES))
        )

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """waveforms (B, N), lengths (B,) in samples -> (B, T, C); frames of padding are undefined."""
        x = waveforms.unsqueeze(1)
        for layer, kernel, stride in zip(self.conv_layers, KERNELS, STRIDES):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            x = layer(x, lengths)
        return x.transpose(1, 2)
