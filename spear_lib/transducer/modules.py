"""Prediction network without recurrence (Ghodsi et al. 2020) and the joiner (spec rnnt §6).

Legend: B utterances, U label positions, D decoder channels, E encoder channels, J joiner channels, V classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_linear(input_dim: int, output_dim: int, scale: float = 0.25) -> nn.Linear:
    """Linear layer whose weights start ``scale`` times smaller and whose bias starts in +-0.1 * scale.

    Small initial logits keep the first lattices near uniform (spec rnnt §6).
    """
    linear = nn.Linear(input_dim, output_dim)
    with torch.no_grad():
        linear.weight.mul_(scale)
        linear.bias.uniform_(-0.1 * scale, 0.1 * scale)
    return linear


class StatelessDecoder(nn.Module):
    """Prediction network that sees the last ``context_size`` labels only.

    Negative ids give the zero vector (the left context of the first position, in training and in search).
    """

    def __init__(self, vocab_size: int, decoder_dim: int = 512, context_size: int = 2, blank_id: int = 0):
        super().__init__()
        if context_size < 1:
            raise ValueError(
                f"context_size is {context_size}; the decoder needs at least 1 label of context."
            )
        if context_size > 1 and decoder_dim % 4:
            raise ValueError(
                f"decoder_dim is {decoder_dim}; it must be a multiple of 4 (channels per group)."
            )
        self.context_size = context_size
        self.blank_id = blank_id
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        if context_size > 1:
            self.conv = nn.Conv1d(decoder_dim, decoder_dim, context_size, groups=decoder_dim // 4, bias=False)

    def forward(self, labels: Tensor, pad: bool = True) -> Tensor:
        """Args:
          labels: (B, U) int64; in training blank followed by the labels, in search the last labels.
          pad: put zero vectors before the first label so that U stays U (training); without, U must be
            at least context_size and U - context_size + 1 positions come out (search: 1).

        Returns:
          (B, U, D) or (B, U - context_size + 1, D).
        """
        embedded = self.embedding(labels.clamp(min=0)) * (labels >= 0).unsqueeze(-1)
        if self.context_size > 1 and not pad and labels.shape[1] == self.context_size:
            return F.relu(self._one_position(embedded))
        if self.context_size > 1:
            embedded = embedded.transpose(1, 2)
            if pad:
                embedded = F.pad(embedded, (self.context_size - 1, 0))
            embedded = self.conv(embedded).transpose(1, 2)
        return F.relu(embedded)

    def _one_position(self, embedded: Tensor) -> Tensor:
        """The convolution of (N, context_size, D) to (N, 1, D) as a matrix product per group of channels.

        A search calls it every frame; on a CPU it takes a third of the convolution's time (ours).
        """
        groups, channels = self.conv.groups, self.conv.out_channels
        inputs = embedded.transpose(1, 2).unflatten(1, (groups, -1)).flatten(2).transpose(0, 1)
        weights = self.conv.weight.unflatten(0, (groups, -1)).flatten(2).transpose(1, 2)
        return torch.bmm(inputs, weights).transpose(0, 1).reshape(-1, 1, channels)


class Joiner(nn.Module):
    """logits = output_linear(tanh(encoder_proj(e) + decoder_proj(d)))."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int):
        super().__init__()
        self.encoder_proj = scaled_linear(encoder_dim, joiner_dim)
        self.decoder_proj = scaled_linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """encoder_out (..., E or J), decoder_out (..., D or J) of broadcastable shapes -> (..., V)."""
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
