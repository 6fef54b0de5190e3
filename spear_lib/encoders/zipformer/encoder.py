"""The SPEAR encoder: masking, convolutional front end and Zipformer stacks behind one interface.

Shapes: B utterances, F fbank frames (100 Hz), T frames at 50 Hz, T' output frames, D output channels.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from spear_lib.encoders.base import (
    EncoderOutput,
    check_range,
    check_trains_in,
    check_waveforms,
    computing_as_in_evaluation,
)
from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.zipformer.config import ZipformerConfig
from spear_lib.encoders.zipformer.front_end import MIN_FBANK_FRAMES, ConvolutionalFrontEnd, embedding_frames
from spear_lib.encoders.zipformer.regularisers import limit_gradients
from spear_lib.encoders.zipformer.stack import Zipformer
from spear_lib.features.backends import create_fbank
from spear_lib.features.fbank import fbank_length
from spear_lib.features.masking import student_mask
from spear_lib.kernels.weights import on_working_copies
from spear_lib.runtime.devices import on_host

MIN_SAMPLES = 1360  # 9 fbank frames at 16 kHz


@cache
def _features(num_mel_bins: int, backend: str) -> nn.Module:
    """One extractor for all encoders: its tables are made when they are first needed."""
    return create_fbank(num_mel_bins, backend)


class SpearEncoder(nn.Module):
    """SPEAR's Zipformer encoder.

    In training mode call ``begin_step`` before every forward: it sets the schedule clock and the keys of all
    random draws, so that a step is reproducible and independent of the number of processes; call
    ``limit_gradients`` between the last backward and the optimiser. In evaluation mode the encoder is
    deterministic and needs nothing. One of ``load_encoder`` may be trained without steps: then it computes as
    in evaluation mode, with gradients.

    Attributes:
      output_dim: channels of encoder_out.
      encoder_type: "zipformer", as in exported folders.
      input_kind: "fbank": what ``forward`` takes.
      frame_rate: of encoder_out in Hz, 50 or 25.
      first_frame_center_ms: centre of the first frame of encoder_out in ms, 45 or 55.
      hidden_dims: channels of every hidden state.
      hidden_frame_rates: rate of every hidden state in Hz: 50, whatever ``frame_rate`` is.
      hidden_first_center_ms: centre of the first frame of the hidden states in ms.
      ends_with_hidden_state: whether encoder_out is the last hidden state.
      grouped_frames: frames at 50 Hz after which the groups of all down-sampled stacks start anew.
      min_samples: the shortest audio with a frame, 85 ms.
    """

    encoder_type = "zipformer"
    input_kind = "fbank"
    sample_rate = 16000
    hidden_first_center_ms = 45.0
    min_samples = MIN_SAMPLES

    def __init__(self, config: ZipformerConfig):
        super().__init__()
        self.config = config
        self.context = StepContext()
        self.fbank_backend = "torch"
        self.encoder_embed = ConvolutionalFrontEnd(self.context, config)
        self.encoder = Zipformer(self.context, config)
        self.mask_emb = nn.Parameter(torch.empty(config.num_mel_bins).normal_())
        self.output_dim = max(config.per_stack("encoder_dim"))
        widths = zip(config.per_stack("encoder_dim"), config.per_stack("num_encoder_layers"))
        self.hidden_dims = [dim for dim, num_layers in widths for _ in range(num_layers)]
        self.hidden_frame_rates = [50] * len(self.hidden_dims)
        self.ends_with_hidden_state = (
            config.downsampling_factor[-1] == 1
            and self.hidden_dims[-1] == self.output_dim
            and config.output_downsampling_factor == 1
        )
        self.grouped_frames = math.lcm(*config.downsampling_factor, config.output_downsampling_factor)
        self.frame_rate = 50 // config.output_downsampling_factor
        self.first_frame_center_ms = 45.0 if config.output_downsampling_factor == 1 else 55.0
        random_parts = (config.balancer, config.whiten, config.limit_gradients, config.stochastic)
        self._needs_step = any(random_parts) or (config.causal and len(config.chunk_size) > 1)

    def begin_step(
        self, batch_count: float, step_key: int, utterance_keys: Tensor, gradient_scale: float = 1.0
    ) -> None:
        """Prepare the next training forward.

        Arguments as those of ``StepContext.begin``.
        """
        self.context.begin(batch_count, step_key, utterance_keys, gradient_scale)

    def use_fbank_backend(self, backend: str) -> None:
        """What computes the features in ``extract``, of features.backends.FBANK_BACKENDS; ValueError if it
        cannot."""
        _features(self.config.num_mel_bins, backend)
        self.fbank_backend = backend

    def limit_gradients(self) -> None:
        """Keep scales of norms and bypasses in range, by the sign of their gradients (Zipformer).

        Call it once per training step after the last backward, on gradients that are summed over processes,
        before they are clipped and used. It belongs to the last ``begin_step``. Does nothing where
        ``config.limit_gradients`` is false, or for parameters without gradient.
        """
        if not self.config.limit_gradients:
            return
        if self.context.step_key is None:
            raise RuntimeError("limit_gradients before the first begin_step: it belongs to a training step")
        limit_gradients(self, self.context)

    def forward(
        self,
        fbank: Tensor,
        lengths: Tensor,
        time_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode log-mel features.

        Args:
          fbank: (B, F, M) float, F >= 9.
          lengths: (B,) int64, valid fbank frames of each utterance, 9 <= length <= F.
          time_mask: (B, F) bool, True = the frame is replaced by ``mask_emb``.
          channel_mask: (B, M) bool, True = the bin is set to 0 in the whole utterance.

        Raises:
          ValueError: wrong shapes or lengths. Lengths on an accelerator are not read (that would stall it).
          RuntimeError: training without ``begin_step``, or with weights in half precision.
        """
        self._check_input(fbank, lengths, time_mask, channel_mask)
        if self.training and self._needs_step and self.context.without_steps():
            with computing_as_in_evaluation(self):
                return self._encode(fbank, lengths, time_mask, channel_mask)
        return self._encode(fbank, lengths, time_mask, channel_mask)

    def _encode(
        self, fbank: Tensor, lengths: Tensor, time_mask: Tensor | None, channel_mask: Tensor | None
    ) -> EncoderOutput:
        # Half-precision features on a CPU, float32 ones of a float64 model.
        fbank = fbank.to(self.mask_emb.dtype)
        if self.training and self._needs_step:
            check_trains_in(fbank.dtype)
            self.context.take(fbank.shape[0], fbank.device)
        if channel_mask is not None:
            fbank = fbank.masked_fill(channel_mask.unsqueeze(1), 0.0)
        if time_mask is not None:
            fbank = torch.where(time_mask.unsqueeze(2), self.mask_emb.to(fbank.dtype), fbank)
        x, lengths = on_working_copies(self.encoder_embed, fbank, lengths)
        if self.training and time_mask is None and self.mask_emb.requires_grad:
            x = x + 0.0 * self.mask_emb.sum()  # every parameter gets a gradient in every step, as DDP needs
        x, lengths, hidden_states, _ = self.encoder(x, lengths)
        return EncoderOutput(x, lengths, hidden_states)

    def extract(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        time_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode waveforms: what every encoder of this repository can do, whatever its ``input_kind``.

        Sets neither evaluation mode nor no_grad: both are the caller's choice.

        Args:
          waveforms: (B, N) float in [-1, 1] at 16 kHz.
          lengths: (B,) int64, valid samples, at least 1360 (85 ms) each.
          time_mask: (B, F) bool, True = hidden, in fbank frames (10 ms); F = (N + 80) // 160.
          channel_mask: (B, M) bool, True = the mel bin is hidden in the whole utterance.
        """
        check_waveforms(waveforms)
        if on_host(lengths):
            check_range("lengths", lengths, MIN_SAMPLES, waveforms.shape[1], "samples (85 ms at 16 kHz)")
        fbank, num_frames = _features(self.config.num_mel_bins, self.fbank_backend)(waveforms, lengths)
        return self(fbank, num_frames, time_mask, channel_mask)

    def masked_frames(self, time_mask: Tensor, num_frames: int) -> Tensor:
        """Which output frames count as masked: (B, F) bool, frames of encoder_out -> (B, num_frames) bool."""
        return student_mask(time_mask, num_frames, self.frame_rate)

    def hidden_length(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of the hidden states for so many samples (int or integer tensor) at 16 kHz; 0 where that is
        too short."""
        return embedding_frames(fbank_length(num_samples))

    def output_length(self, num_samples: int) -> int:
        """Frames of encoder_out for ``num_samples`` samples at 16 kHz; 0 where the input is too short."""
        factor = self.config.output_downsampling_factor
        return (self.hidden_length(num_samples) + factor - 1) // factor

    def _check_input(
        self, fbank: Tensor, lengths: Tensor, time_mask: Tensor | None, channel_mask: Tensor | None
    ) -> None:
        num_mel_bins = self.config.num_mel_bins
        if fbank.dim() != 3 or fbank.shape[2] != num_mel_bins or not fbank.is_floating_point():
            raise ValueError(
                f"fbank must be float of (B, F, {num_mel_bins}), got {fbank.dtype} {tuple(fbank.shape)}; "
                f"compute {num_mel_bins} mel bins with spear_lib.features.fbank"
            )
        batch, num_frames, _ = fbank.shape
        if lengths.shape != (batch,):
            raise ValueError(
                f"lengths must be ({batch},), one per utterance, got shape {tuple(lengths.shape)}"
            )
        if num_frames < MIN_FBANK_FRAMES:
            raise ValueError(
                f"fbank has {num_frames} frames; the encoder needs at least {MIN_FBANK_FRAMES} "
                f"({MIN_SAMPLES} samples, 85 ms). Drop or pad such utterances"
            )
        if on_host(lengths):
            check_range("lengths", lengths, MIN_FBANK_FRAMES, num_frames, "fbank frames")
        if time_mask is not None and time_mask.shape != (batch, num_frames):
            raise ValueError(f"time_mask must be {(batch, num_frames)}, got {tuple(time_mask.shape)}")
        if channel_mask is not None and channel_mask.shape != (batch, num_mel_bins):
            raise ValueError(f"channel_mask must be {(batch, num_mel_bins)}, got {tuple(channel_mask.shape)}")
