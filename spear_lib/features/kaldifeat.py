"""Fbank by kaldifeat, which runs Kaldi's own algorithm on GPUs: an optional second backend of ``features``.

kaldifeat is imported when an extractor is made. It refuses what Kaldi refuses: a mel bin so narrow that no
bin of the FFT falls into it, which 128 bins at 16 kHz have (spec: released encoders), so it serves encoders
of up to 120 bins or so.
"""

from importlib import import_module

import torch
from torch import Tensor, nn

from spear_lib.features.fbank import PAD_VALUE, SAMPLE_RATE, FbankExtractor, fbank_length

INSTALL = "tools/install_kaldifeat.sh builds it (wheels: https://csukuangfj.github.io/kaldifeat)"


class KaldifeatFbank(nn.Module):
    """The same call, options, shapes and padding as ``FbankExtractor``.

    Args:
      num_mel_bins: number of mel bins F.

    Raises:
      ValueError: kaldifeat is not installed, or refuses so many bins.
    """

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        empty = (FbankExtractor(num_mel_bins).mel_filters.sum(0) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"fbank_backend kaldifeat refuses num_mel_bins = {num_mel_bins}: mel bin {empty[0]} is "
                "narrower than the FFT's 31.25 Hz and would be empty. Use fbank_backend torch, or 80 bins"
            )
        try:
            self._library = import_module("kaldifeat")
        except ImportError as error:
            raise ValueError(
                f"fbank_backend kaldifeat needs the package kaldifeat ({error}): {INSTALL}; or use "
                "fbank_backend torch, which needs nothing"
            ) from error
        self.num_mel_bins = num_mel_bins
        self._made: dict[torch.device, object] = {}

    @torch.no_grad()
    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveforms, (B,) samples -> fbank (B, T, F) float32, lengths (B,) frames.

        Every utterance is cut at its own end, which costs one host sync per batch on a GPU.
        """
        FbankExtractor.check(waveforms, num_samples)
        device = waveforms.device
        signals = [row[:count] for row, count in zip(waveforms.float(), num_samples.tolist())]
        lengths = fbank_length(num_samples.to(device=device, dtype=torch.int64))
        shape = (len(signals), fbank_length(waveforms.shape[1]), self.num_mel_bins)
        fbank = torch.full(shape, PAD_VALUE, device=device)
        used = [row for row, signal in enumerate(signals) if fbank_length(len(signal))]
        if used:
            frames = self._on(device)([signals[row] for row in used])
            for row, each in zip(used, frames):
                fbank[row, : len(each)] = each
        return fbank, lengths

    def _on(self, device: torch.device):
        """Kaldi's extractor for a device, with the options of ``FbankExtractor``."""
        if device not in self._made:
            options = self._library.FbankOptions()
            options.device = device
            options.frame_opts.samp_freq = SAMPLE_RATE
            options.frame_opts.dither = 0.0
            options.frame_opts.snip_edges = False
            options.mel_opts.num_bins = self.num_mel_bins
            options.mel_opts.low_freq = 20.0
            options.mel_opts.high_freq = -400.0
            self._made[device] = self._library.Fbank(options)
        return self._made[device]
