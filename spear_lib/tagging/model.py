"""The tagging model: an encoder with a linear layer, and one probability per class and clip (spec evaluation
§6).

Legend: B clips, T encoder frames, E encoder channels, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.runtime import keyed_random

# Which draw of keyed_random the dropout is (any number that no other module uses).
_DROPOUT_SITE = 0x544147

POOLINGS = ("mean", "linear_softmax")


@dataclass(frozen=True)
class TaggingConfig:
    """The head of the tagging model."""

    pooling: str = "mean"
    """mean: mean of the frames' logits (reference); linear_softmax: sum p^2 / sum p of the frames'
    probabilities p, in which frames that hear a sound outvote those that do not (spec evaluation §6)."""
    dropout: float = 0.1
    """Dropout before the linear layer (icefall)."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"model.pooling is {self.pooling!r}: use {' or '.join(POOLINGS)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}, expected a share from 0 to below 1")


class TaggingModel(nn.Module):
    """Encoder and linear layer; ``audio_tagging_proj`` is the layer's name in the reference.

    Args:
      encoder: anything with ``output_dim``.
      config: pooling and dropout.
      num_classes: K.
    """

    def __init__(self, encoder: nn.Module, config: TaggingConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; tagging needs at least one class")
        self.encoder, self.config, self.num_classes = encoder, config, num_classes
        self.audio_tagging_proj = nn.Linear(encoder.output_dim, num_classes)

    def frame_logits(self, encoder_out: Tensor, clip_keys: Tensor | None = None) -> Tensor:
        """(B, T, E) -> (B, T, K) logits of every frame, float32.

        Args:
          clip_keys: (B,) int64 keys of the dropout in training; without them there is none.
        """
        encoder_out = encoder_out.float()
        probability = self.config.dropout
        if self.training and clip_keys is not None and probability > 0:
            batch, frames, channels = encoder_out.shape
            draws = keyed_random.uniform(clip_keys.to(encoder_out.device), _DROPOUT_SITE, frames * channels)
            keep = (draws >= probability).reshape(batch, frames, channels)
            encoder_out = encoder_out * keep / (1.0 - probability)
        return self.audio_tagging_proj(encoder_out)

    def clip_logits(self, frame_logits: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, K) and valid frames (B,) -> (B, K) logits of the clips; frames behind the end do not
        count."""
        return pool(frame_logits, lengths, self.config.pooling)


def pool(frame_logits: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Logits of clips from logits of their frames.

    With p = sigmoid(x), the linear softmax q = sum p^2 / sum p has 1 - q = sum p (1 - p) / sum p, so that its
    logit is the difference of two logarithms of sums, which never overflow.

    Args:
      frame_logits: (B, T, K).
      lengths: (B,) valid frames; a clip without any counts its first frame.
      pooling: one of POOLINGS.

    Returns:
      (B, K).
    """
    lengths = lengths.to(frame_logits.device).clamp(min=1)
    valid = torch.arange(frame_logits.shape[1], device=frame_logits.device) < lengths.unsqueeze(1)
    valid = valid.unsqueeze(2)
    if pooling == "mean":
        return torch.where(valid, frame_logits, 0.0).sum(1) / lengths.unsqueeze(1)
    log_yes, log_no = F.logsigmoid(frame_logits), F.logsigmoid(-frame_logits)
    outside = torch.finfo(frame_logits.dtype).min
    yes = torch.where(valid, 2.0 * log_yes, outside).logsumexp(1)
    return yes - torch.where(valid, log_yes + log_no, outside).logsumexp(1)
