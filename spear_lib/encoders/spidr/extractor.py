"""Waveforms to projected frames: the convolutions of wav2vec 2.0 with a norm after each, and a linear layer.

Shapes: B utterances, N samples, C channels of the extractor, T frames at 50 Hz, D channels of the layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.spidr.config import SpidrConfig
from spear_lib.encoders.transformer.extractor import KERNELS, STRIDES

_EPSILON = 1e-5  # of the variance of a waveform; at an RMS of 0.01 it takes 5 % off (reference)


def standardise(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Each utterance with mean 0 and variance 1 over its own samples (spec spidr §2.1).

    Args:
      waveforms: (B, N) float in [-1, 1].
      lengths: (B,) int64, valid samples.

    Returns:
      (B, N) float32, 0 behind the end.
    """
    waveforms = waveforms.float()
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths.unsqueeze(1)
    count = lengths.unsqueeze(1)
    mean = (waveforms * valid).sum(1, keepdim=True) / count
    centred = (waveforms - mean) * valid
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + _EPSILON).sqrt()


class ConvolutionLayer(nn.Module):
    """One convolution without bias, a norm over channels, GELU."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, kernel, stride=stride, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)
        self.layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C', t') -> (B, C, t)."""
        return F.gelu(self.layer_norm(self.conv(x).transpose(1, 2))).transpose(1, 2)


class WaveformExtractor(nn.Module):
    """The convolutional extractor; a valid frame sees valid samples alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_layers = nn.ModuleList(
            ConvolutionLayer(channels if index else 1, channels, kernel, stride)
            for index, (kernel, stride) in enumerate(zip(KERNELS, STRIDES))
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        """waveforms (B, N) -> (B, T, C)."""
        x = waveforms.unsqueeze(1)
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)


class FeatureProjection(nn.Module):
    """Norm and linear layer between extractor and blocks."""

    def __init__(self, config: SpidrConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_channels)
        self.projection = nn.Linear(config.conv_channels, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, D)."""
        return self.projection(self.layer_norm(x))
