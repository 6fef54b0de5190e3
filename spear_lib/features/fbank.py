"""Log-mel filterbank features of padded batches of waveforms (lhotse's 128-bin Kaldi convention).

Legend: B utterances, N samples (16 kHz), T frames (10 ms), F = 128 mel bins.

The values are those of ``lhotse.Fbank(FbankConfig(num_mel_bins=128))``: frames of 25 ms every 10 ms, povey
window, no dither, ``snip_edges=False`` (the signal is reflected at both ends), pre-emphasis 0.97, DC
removal, power spectrum, mel filters from 20 to 7600 Hz, natural logarithm. lhotse's own batch extraction
reflects at the end of the *padded* batch; here every utterance is reflected at its own end, so its frames do
not depend on its batch mates.
"""

import math

import torch
from lhotse.features.kaldi.layers import create_frame_window, get_mel_banks
from torch import Tensor, nn

from spear_lib.runtime.devices import on_host

SAMPLE_RATE = 16000
"""Samples per second of every waveform in the library (ours: one rate everywhere)."""

NUM_MEL_BINS = 128
"""Mel bins of the encoder's input (released weights)."""

PAD_VALUE = math.log(1e-10)
"""Value of the frames behind an utterance's end (the reference's padding value, -23.0259)."""

_FRAME_LENGTH = 400  # samples, 25 ms
_FRAME_SHIFT = 160  # samples, 10 ms
_FFT_LENGTH = 512
_LEFT = (_FRAME_LENGTH - _FRAME_SHIFT) // 2  # samples in front of the signal, 7.5 ms
_RIGHT = 200  # the most samples that a last frame can need behind the signal
_PREEMPHASIS = 0.97
_FLOOR = torch.finfo(torch.float32).eps  # smallest mel energy: ln gives -15.9424 for digital silence
_CHUNK = 4096  # frames per FFT call on the CPU: the temporaries stay in the cache


def fbank_length(num_samples):
    """Number of 10 ms frames of n samples (int or integer tensor): (n + 80) // 160, lhotse's rule."""
    return (num_samples + _FRAME_SHIFT // 2) // _FRAME_SHIFT


class FbankExtractor(nn.Module):
    """Waveforms to log-mel frames on the device of the waveforms; no parameters, no buffers, always float32.

    Args:
      num_mel_bins: number of mel bins F.
    """

    def __init__(self, num_mel_bins: int = NUM_MEL_BINS) -> None:
        super().__init__()
        self.num_mel_bins = num_mel_bins
        with torch.device("cpu"):  # also of a model that is made elsewhere, or has no memory
            window = create_frame_window(_FRAME_LENGTH, window_type="povey").to(torch.float32)
            bank, _ = get_mel_banks(
                num_bins=num_mel_bins,
                window_length_padded=_FFT_LENGTH,
                sample_freq=SAMPLE_RATE,
                low_freq=20.0,
                high_freq=-400.0,
            )
            mel_filters = nn.functional.pad(bank.to(torch.float32), (0, 1)).T.contiguous()
        # Not buffers: model.to(bfloat16) must not round them, DDP must not broadcast them, and checkpoints
        # must not hold them. One copy per device instead.
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {
            torch.device("cpu"): (window, mel_filters)
        }

    @property
    def mel_filters(self) -> Tensor:
        """The mel filterbank, (257, F): FFT bins by mel bins."""
        return self._constants[torch.device("cpu")][1]

    @torch.no_grad()
    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a padded batch.

        Args:
          waveforms: (B, N) float, in [-1, 1] (more is allowed), 16 kHz. What lies behind an utterance's end
            is ignored.
          num_samples: (B,) int64, samples of each utterance; at most N.

        Returns:
          fbank (B, T, F) float32 with T = (N + 80) // 160 and ``PAD_VALUE`` behind the ends;
          lengths (B,) int64 in frames.

        Raises:
          ValueError: shapes or dtype do not fit.
        """
        self.check(waveforms, num_samples)
        device = waveforms.device
        num_samples = num_samples.to(device=device, dtype=torch.int64)
        lengths = fbank_length(num_samples)
        num_frames = fbank_length(waveforms.shape[1])
        if num_frames == 0:
            return waveforms.new_zeros(
                (waveforms.shape[0], 0, self.num_mel_bins), dtype=torch.float32
            ), lengths
        with torch.autocast(device_type=device.type, enabled=False):
            padded = _reflect(waveforms.to(torch.float32), num_samples)
            frames = padded.unfold(1, _FRAME_LENGTH, _FRAME_SHIFT)[:, :num_frames]
            fbank = self._log_mel(frames)
        behind = torch.arange(num_frames, device=device) >= lengths.unsqueeze(1)
        return fbank.masked_fill_(behind.unsqueeze(2), PAD_VALUE), lengths

    def _log_mel(self, frames: Tensor) -> Tensor:
        """(B, T, 400) overlapping frames -> (B, T, F) log-mel energies."""
        window, mel_filters = self._on(frames.device)
        if not on_host(frames):
            return _log_mel_of(frames, window, mel_filters)
        result = torch.empty((*frames.shape[:2], self.num_mel_bins))
        for row, row_result in zip(frames, result):
            for start in range(0, row.shape[0], _CHUNK):
                part = slice(start, start + _CHUNK)
                row_result[part] = _log_mel_of(row[part], window, mel_filters)
        return result

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            window, mel_filters = self._constants[torch.device("cpu")]
            self._constants[device] = (window.to(device), mel_filters.to(device))
        return self._constants[device]

    @staticmethod
    def check(waveforms: Tensor, num_samples: Tensor) -> None:
        """Raises ValueError for shapes or a dtype that do not fit ``forward``."""
        if waveforms.dim() != 2 or not waveforms.is_floating_point():
            raise ValueError(
                f"fbank wants float waveforms of shape (B, N), got {waveforms.dtype} "
                f"{tuple(waveforms.shape)}; divide 16-bit integers by 32768 and add a batch dimension"
            )
        if num_samples.shape != waveforms.shape[:1]:
            raise ValueError(
                f"num_samples has shape {tuple(num_samples.shape)}, expected ({waveforms.shape[0]},): "
                "one length in samples per waveform"
            )
        if on_host(num_samples) and num_samples.numel():  # on a GPU the check would cost a sync
            longest, shortest = int(num_samples.max()), int(num_samples.min())
            if longest > waveforms.shape[1] or shortest < 0:
                raise ValueError(
                    f"num_samples lies in [{shortest}, {longest}], but the waveforms have "
                    f"{waveforms.shape[1]} samples"
                )


def _log_mel_of(frames: Tensor, window: Tensor, mel_filters: Tensor) -> Tensor:
    """(..., 400) samples -> (..., F): DC removal, pre-emphasis, window, power spectrum, mel, log."""
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat(
        (frames[..., :1], frames[..., :-1]), dim=-1
    )  # the first sample is its own predecessor
    frames = torch.sub(frames, previous, alpha=_PREEMPHASIS).mul_(window)
    spectrum = torch.view_as_real(torch.fft.rfft(frames, n=_FFT_LENGTH))
    power = spectrum.square().sum(dim=-1)
    return torch.matmul(power, mel_filters).clamp_(min=_FLOOR).log_()


def _reflect(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Puts every utterance between mirror images of its own ends.

    (B, N), (B,) -> (B, 120 + N + 200 or more); sample i of an utterance lies at 120 + i. Signals shorter
    than the mirrored part are mirrored again and again.
    """
    batch, width = waveforms.shape
    padded = waveforms.new_zeros((batch, _LEFT + width + _RIGHT + _FRAME_LENGTH))
    padded[:, _LEFT : _LEFT + width] = waveforms
    steps = torch.arange(max(_LEFT, _RIGHT), device=waveforms.device)
    count = num_samples.unsqueeze(1).clamp(min=1)

    def mirrored(position: Tensor) -> Tensor:
        folded = position.remainder(2 * count)
        return torch.where(folded < count, folded, 2 * count - 1 - folded).clamp(max=width - 1)

    left = torch.arange(-_LEFT, 0, device=waveforms.device).expand(batch, -1)
    padded[:, :_LEFT] = waveforms.gather(1, mirrored(left))
    right = num_samples.unsqueeze(1) + steps[:_RIGHT]
    padded.scatter_(1, _LEFT + right, waveforms.gather(1, mirrored(right)))
    return padded
