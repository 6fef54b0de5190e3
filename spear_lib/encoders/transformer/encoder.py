"""A Transformer encoder of WavLM Base's shape behind the interface of ``SpearEncoder`` (paper appendix F.3).

Names and shapes of its state dict are those of ``WavLMModel`` in transformers.

Shapes: B utterances, N samples, T frames at 50 Hz, C channels of the extractor, D channels of the layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.base import (
    MASKED_SCORE,
    EncoderOutput,
    check_trains_in,
    computing_as_in_evaluation,
)
from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.transformer.config import TransformerConfig
from spear_lib.encoders.transformer.extractor import WaveformExtractor, extracted_frames
from spear_lib.encoders.transformer.layer import ChannelDropout, TransformerLayer
from spear_lib.encoders.transformer.waveform import WaveformEncoder
from spear_lib.runtime.devices import on_host


class FeatureProjection(nn.Module):
    """Norm and linear layer between extractor and layers."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_channels)
        self.projection = nn.Linear(config.conv_channels, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, D)."""
        return self.projection(self.layer_norm(x))


class PositionalConvolution(nn.Module):
    """A wide grouped convolution whose output tells positions (wav2vec 2.0)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, kernel = config.hidden_dim, config.position_kernel
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=2.0 / math.sqrt(kernel * dim))
        nn.init.zeros_(conv.bias)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        y = self.conv(x.transpose(1, 2))[:, :, : x.shape[1]]  # an even kernel gives one frame too many
        return F.gelu(y).transpose(1, 2)


class TransformerLayers(nn.Module):
    """Positions and layers (``encoder`` of the state dict)."""

    def __init__(self, context: StepContext, config: TransformerConfig):
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = ChannelDropout(context, config.hidden_dim, config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(context, config, first=index == 0) for index in range(config.num_layers)
        )

    def forward(self, x: Tensor, valid: Tensor | None) -> list[Tensor]:
        """x (B, T, D), valid (B, T) bool or None without padding -> the output of every layer (B, T, D)."""
        unseen = None
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(2), 0.0)
            unseen = (~valid[:, None, None]).to(torch.float32) * MASKED_SCORE
        x = self.dropout(self.layer_norm(x + self.pos_conv_embed(x)))
        position_bias = self.layers[0].attention.position_bias(x.shape[1])
        outputs = []
        for layer in self.layers:
            x = layer(x, position_bias, unseen)
            outputs.append(x)
        return outputs


class TransformerEncoder(WaveformEncoder):
    """WavLM Base's shape, trained and used like a ``SpearEncoder``.

    The output of an utterance does not depend on its batch mates; without padding it is WavLM's. In training
    mode call ``begin_step`` before every forward; one of ``load_encoder`` may be trained without steps, then
    it computes as in evaluation mode, with gradients.

    Attributes:
      encoder_type: "transformer", as in exported folders.
      input_kind: "waveform": what ``forward`` takes.
      output_dim: channels of encoder_out.
      frame_rate: 50 Hz.
      first_frame_center_ms: 12.5.
      hidden_dims, hidden_frame_rates: the same of every hidden state; all are at 50 Hz.
      hidden_first_center_ms: 12.5.
      ends_with_hidden_state: True, encoder_out is the last hidden state.
      grouped_frames: 1, no frames are grouped.
      min_samples: the shortest audio with a frame, 25 ms.
    """

    encoder_type = "transformer"
    ends_with_hidden_state = True

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.context = StepContext()
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_dim).uniform_())
        self.feature_extractor = WaveformExtractor(config.conv_channels)
        self.feature_projection = FeatureProjection(config)
        self.projection_dropout = ChannelDropout(self.context, config.hidden_dim, config.dropout)
        self.encoder = TransformerLayers(self.context, config)
        self._needs_step = config.dropout > 0.0 or config.layerdrop > 0.0
        self.output_dim = config.hidden_dim
        self.hidden_dims = [config.hidden_dim] * config.num_layers
        self.hidden_frame_rates = [self.frame_rate] * config.num_layers
        for module in self.encoder.layers.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, waveforms: Tensor, lengths: Tensor, time_mask: Tensor | None = None) -> EncoderOutput:
        """Encode waveforms.

        Args:
          waveforms: (B, N) float in [-1, 1] at 16 kHz, N >= 400.
          lengths: (B,) int64, valid samples of each utterance, 400 <= length <= N.
          time_mask: (B, F) bool in fbank frames (10 ms), F = (N + 80) // 160, True = hidden: frames of the
            extractor are replaced by ``masked_spec_embed`` where ``masked_frames`` says so.

        Returns:
          encoder_out (B, T, D), the last of ``num_layers`` hidden states, and lengths in frames at 50 Hz.

        Raises:
          ValueError: wrong shapes or lengths. Lengths on an accelerator are not read (that would stall it).
          RuntimeError: training without ``begin_step``, or with weights in half precision.
        """
        self._check_input(waveforms, lengths, time_mask)
        if self.training and self._needs_step and self.context.without_steps():
            with computing_as_in_evaluation(self):
                return self._encode(waveforms, lengths, time_mask)
        return self._encode(waveforms, lengths, time_mask)

    def _encode(self, waveforms: Tensor, lengths: Tensor, time_mask: Tensor | None) -> EncoderOutput:
        if self.training and self._needs_step:
            check_trains_in(self.masked_spec_embed.dtype)
            self.context.take(waveforms.shape[0], waveforms.device)
        x = self.feature_extractor(waveforms.to(self.masked_spec_embed.dtype), lengths)
        x = self.projection_dropout(self.feature_projection(x))
        if time_mask is not None:
            masked = self.masked_frames(time_mask, x.shape[1]).unsqueeze(2)
            x = torch.where(masked, self.masked_spec_embed.to(x.dtype), x)
        elif self.training and self.masked_spec_embed.requires_grad:
            x = (
                x + 0.0 * self.masked_spec_embed.sum()
            )  # every parameter gets a gradient in every step, for DDP
        full = on_host(lengths) and int(lengths.min()) == waveforms.shape[1]
        frames = extracted_frames(lengths)
        valid = None if full else torch.arange(x.shape[1], device=x.device) < frames.unsqueeze(1)
        hidden_states = self.encoder(x, valid)
        return EncoderOutput(hidden_states[-1], frames, hidden_states)

    def extract(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        time_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
    ) -> EncoderOutput:
        """As ``forward``; ``channel_mask`` has no effect, as there are no mel bins to hide."""
        return self(waveforms, lengths, time_mask)
