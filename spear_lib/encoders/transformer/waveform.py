"""What encoders of waveforms have in common: 50 Hz by one shape of extractor, 25 ms for a frame (ours)."""

import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.base import check_range, check_waveforms
from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.transformer.extractor import MIN_SAMPLES, extracted_frames
from spear_lib.runtime.devices import on_host


class WaveformEncoder(nn.Module):
    """Base of encoders that read (B, N) waveforms at 16 kHz and give frames at 50 Hz, frame m centred at
    20 m + 12.5 ms. A subclass makes ``context``."""

    input_kind = "waveform"
    sample_rate = 16000
    frame_rate = 50
    first_frame_center_ms = hidden_first_center_ms = 12.5
    min_samples = MIN_SAMPLES
    grouped_frames = 1
    context: StepContext

    def begin_step(
        self, batch_count: float, step_key: int, utterance_keys: Tensor, gradient_scale: float = 1.0
    ) -> None:
        """Prepare the next training forward; arguments as those of ``StepContext.begin``."""
        self.context.begin(batch_count, step_key, utterance_keys, gradient_scale)

    def limit_gradients(self) -> None:
        """Does nothing: this encoder limits no parameters."""

    def masked_frames(self, time_mask: Tensor, num_frames: int) -> Tensor:
        """Which frames are masked: (B, F) bool -> (B, num_frames) bool.

        Frame m is centred at 20 m + 12.5 ms and follows fbank frame 2 m + 1, centred at 20 m + 15 ms: a span
        of 10 fbank frames hides exactly 5 frames, wherever it starts.
        """
        masked = time_mask[:, 1::2]
        return F.pad(masked, (0, max(0, num_frames - masked.shape[1])))[:, :num_frames]

    def hidden_length(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of the hidden states for so many samples (int or integer tensor) at 16 kHz; 0 where that is
        too short."""
        return extracted_frames(num_samples)

    def output_length(self, num_samples: int) -> int:
        """Frames of encoder_out for ``num_samples`` samples at 16 kHz; 0 where that is too short."""
        return extracted_frames(num_samples)

    @staticmethod
    def _check_input(waveforms: Tensor, lengths: Tensor, time_mask: Tensor | None) -> None:
        check_waveforms(waveforms)
        batch, num_samples = waveforms.shape
        if lengths.shape != (batch,):
            raise ValueError(
                f"lengths must be ({batch},), one per utterance, got shape {tuple(lengths.shape)}"
            )
        if on_host(lengths):
            check_range("lengths", lengths, MIN_SAMPLES, num_samples, "samples (25 ms at 16 kHz)")
        if time_mask is not None and (time_mask.dim() != 2 or time_mask.shape[0] != batch):
            raise ValueError(f"time_mask must be ({batch}, fbank frames), got {tuple(time_mask.shape)}")
