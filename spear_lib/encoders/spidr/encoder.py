"""SpidR's encoder behind the interface of ``SpearEncoder`` (spec spidr §2 and §9).

Names and shapes of its state dict are those of the published checkpoints, without what belongs to training
alone: the teacher and the codebooks (``spear_lib.self_distillation``).

Shapes: B utterances, N samples, T frames at 50 Hz, D channels of the layers, K codes.
"""

import torch
from torch import Tensor, nn

from spear_lib.encoders.base import (
    EncoderOutput,
    computing_as_in_evaluation,
)
from spear_lib.encoders.spidr.config import SpidrConfig
from spear_lib.encoders.spidr.extractor import FeatureProjection, WaveformExtractor, standardise
from spear_lib.encoders.spidr.layers import SpidrTransformer
from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.transformer.extractor import extracted_frames
from spear_lib.encoders.transformer.waveform import WaveformEncoder
from spear_lib.runtime.devices import on_host


class SpidrEncoder(WaveformEncoder):
    """Extractor, student Transformer and heads.

    The output of an utterance does not depend on its batch mates. In training mode call ``begin_step`` before
    every forward. Hidden states are the feed-forward outputs of the blocks, the features that the published
    evaluations use; ``encoder_out`` is the output of the last block.

    Attributes:
      encoder_type: "spidr", as in exported folders.
      input_kind: "waveform".
      output_dim: channels of encoder_out.
      frame_rate: 50 Hz.
      first_frame_center_ms: 12.5.
      hidden_dims, hidden_frame_rates, hidden_first_center_ms: the same of the hidden states.
      ends_with_hidden_state: False, encoder_out is none of the hidden states.
      grouped_frames: 1, no frames are grouped.
      min_samples: the shortest audio with a frame, 25 ms.
    """

    encoder_type = "spidr"
    ends_with_hidden_state = False

    def __init__(self, config: SpidrConfig):
        super().__init__()
        self.config = config
        self.context = StepContext()
        dim = config.hidden_dim
        self.mask_embedding = nn.Parameter(torch.empty(dim).uniform_())
        self.feature_extractor = WaveformExtractor(config.conv_channels)
        self.feature_projection = FeatureProjection(config)
        self.student = SpidrTransformer(self.context, config)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, config.codebook_size)) for _ in range(config.num_codebooks)
        )
        self._needs_step = max(config.dropout, config.attention_dropout, config.layerdrop) > 0.0
        self.output_dim = dim
        self.hidden_dims = [dim] * config.num_layers
        self.hidden_frame_rates = [self.frame_rate] * config.num_layers

    def project(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Standardised waveforms to what student and teacher read.

        Args:
          waveforms: (B, N) float, standardised, N >= 400.
          lengths: (B,) int64, valid samples.

        Returns:
          (B, T, D) frames, their number (B,), and which are valid (B, T) bool or None without padding.
        """
        x = self.feature_projection(self.feature_extractor(waveforms.to(self.mask_embedding.dtype)))
        frames = extracted_frames(lengths)
        full = on_host(lengths) and int(frames.min()) == x.shape[1]
        valid = None if full else torch.arange(x.shape[1], device=x.device) < frames.unsqueeze(1)
        return x, frames, valid

    def hide(self, x: Tensor, masked: Tensor | None) -> Tensor:
        """x (B, T, D) with ``mask_embedding`` where masked (B, T) bool is set."""
        if masked is None:  # in training every parameter gets a gradient in every step, for DDP
            return x + 0.0 * self.mask_embedding.sum() if self.training else x
        return torch.where(masked.unsqueeze(2), self.mask_embedding.to(x.dtype), x)

    def head_inputs(self, hidden_states: list[Tensor], encoder_out: Tensor) -> list[Tensor]:
        """What each head reads, (B, T, D) each."""
        if self.config.heads_on == "output":
            return [encoder_out] * self.config.num_codebooks
        return list(hidden_states[-self.config.num_codebooks :])

    def forward(self, waveforms: Tensor, lengths: Tensor, time_mask: Tensor | None = None) -> EncoderOutput:
        """Encode standardised waveforms (``extract`` takes them as they are).

        Args:
          waveforms: (B, N) float at 16 kHz, mean 0 and variance 1 per utterance, N >= 400.
          lengths: (B,) int64, valid samples of each utterance, 400 <= length <= N.
          time_mask: (B, F) bool in fbank frames (10 ms), True = hidden, where ``masked_frames`` says so.

        Raises:
          ValueError: wrong shapes or lengths. Lengths on an accelerator are not read (that would stall it).
          RuntimeError: training without ``begin_step``.
        """
        self._check_input(waveforms, lengths, time_mask)
        if self.training and self._needs_step and self.context.without_steps():
            with computing_as_in_evaluation(self):
                return self._encode(waveforms, lengths, time_mask)
        return self._encode(waveforms, lengths, time_mask)

    def _encode(self, waveforms: Tensor, lengths: Tensor, time_mask: Tensor | None) -> EncoderOutput:
        self.take_step(waveforms.shape[0], waveforms.device)
        x, frames, valid = self.project(waveforms, lengths)
        masked = None if time_mask is None else self.masked_frames(time_mask, x.shape[1])
        hidden_states, output = self.student(self.hide(x, masked), valid)
        if self.training:  # a loss on encoder_out alone must reach the heads too, for DDP
            output = output + 0.0 * sum(p.sum() for p in self.heads.parameters())
        return EncoderOutput(output, frames, hidden_states)

    def take_step(self, batch_size: int, device: torch.device) -> None:
        """Use up the step that ``begin_step`` prepared, where anything is drawn."""
        if self.training and self._needs_step:
            self.context.take(batch_size, device)

    def extract(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        time_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
    ) -> EncoderOutput:
        """As ``forward``, for waveforms (B, N) in [-1, 1], which it standardises (spec spidr §2.1).
        ``channel_mask`` has no effect, as there are no mel bins to hide."""
        self._check_input(waveforms, lengths, time_mask)
        return self(standardise(waveforms, lengths), lengths, time_mask)

    def posteriors(self, output: EncoderOutput) -> dict[int, Tensor]:
        """Codebook posteriors from the heads: layer, counted from 1 -> (B, T, K) float32."""
        inputs = self.head_inputs(list(output.hidden_states), output.encoder_out)
        return {
            layer: head(x).float().softmax(-1)
            for layer, head, x in zip(self.config.head_layers, self.heads, inputs)
        }

    def units(self, output: EncoderOutput) -> Tensor:
        """The most probable code of every codebook, (B, T, num_codebooks) int64, in the order of layers."""
        inputs = self.head_inputs(list(output.hidden_states), output.encoder_out)
        return torch.stack([head(x).float().argmax(-1) for head, x in zip(self.heads, inputs)], dim=2)
