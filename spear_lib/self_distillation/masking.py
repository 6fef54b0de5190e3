"""Which frames the student does not see (spec spidr §6).

Legend: B utterances, T frames of 20 ms, F fbank frames of 10 ms.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.encoders.transformer.extractor import extracted_frames
from spear_lib.encoders.zipformer.front_end import embedding_frames
from spear_lib.features.fbank import fbank_length
from spear_lib.features.masking import spread_spans, time_mask
from spear_lib.runtime.keyed_random import uniform

_SITE_COUNT, _SITE_START, _SITE_KEPT = 930_001, 930_002, 930_003
_FIRST_FBANK_FRAME = {"waveform": 0, "fbank": 4}
"""Fbank frame at the centre of frame 0 of an encoder, by its ``input_kind``."""


@dataclass(frozen=True)
class FrameMaskingConfig:
    """Spans of 20 ms frames, in training and validation alike."""

    probability: float = 0.8
    """Share of frames covered if spans never overlapped (reference)."""
    span: int = 10
    """Frames of 20 ms per span (reference)."""
    min_spans: int = 2
    """Fewest spans of an utterance, where so many fit side by side (reference)."""
    parity: bool = False
    """As the reference: short utterances may be masked completely, and all utterances of a batch lose masked
    frames until they have as few as the one with the fewest. Then a mask depends on the batch."""

    def __post_init__(self) -> None:
        if not 0.0 < self.probability <= 1.0:
            raise ValueError(
                f"masking.probability is {self.probability}, expected a share above 0: only masked frames "
                "are predicted"
            )
        if self.span < 1 or self.min_spans < 0:
            raise ValueError(
                f"masking.span is {self.span} and min_spans {self.min_spans}: at least 1 frame, and 0 spans"
            )


def frame_counts(num_samples: Tensor, input_kind: str) -> Tensor:
    """Frames of 20 ms of an encoder that reads waveforms or fbank, (B,) int64 for (B,) samples."""
    if input_kind == "waveform":
        return extracted_frames(num_samples)
    return embedding_frames(fbank_length(num_samples))


def frame_mask(lengths: Tensor, keys: Tensor, config: FrameMaskingConfig, num_frames: int) -> Tensor:
    """Masked frames of each utterance, a function of its key alone (but see ``parity``).

    Args:
      lengths: (B,) int64, valid frames.
      keys: (B,) int64, one key per utterance and epoch.
      num_frames: T.

    Returns:
      (B, T) bool; without ``parity`` every utterance keeps a visible frame.
    """
    if not config.parity:
        return time_mask(lengths, keys, config.probability, config.span, config.min_spans, num_frames)
    draws = uniform(keys, _SITE_COUNT)[:, 0].to(torch.float64)
    spans = torch.floor(lengths.to(torch.float64) * (config.probability / config.span) + draws)
    spans = spans.to(torch.int64).clamp(min=config.min_spans)
    width = max(num_frames, int((spans + 1).max()))  # starts may lie behind a short utterance
    mask = spread_spans(lengths, spans, keys, config.span, width, _SITE_START)[:, :num_frames]
    fewest = mask.sum(1).min()
    order = uniform(keys, _SITE_KEPT, num_frames).masked_fill(~mask, 2.0).argsort(dim=1, stable=True)
    kept = (torch.arange(num_frames) < fewest).expand_as(mask)
    return torch.zeros_like(mask).scatter_(1, order, kept)


def as_fbank_mask(mask: Tensor, num_samples: int, input_kind: str) -> Tensor:
    """The time mask that hides these frames from an encoder: (B, T) bool -> (B, F) bool for audio of
    ``num_samples``. ``masked_frames`` of an encoder of waveforms gives exactly ``mask`` back; a Zipformer
    sees nine fbank frames in each of its own, so that spans may gain or lose a frame at their ends."""
    width = fbank_length(num_samples)
    first = _FIRST_FBANK_FRAME[input_kind]
    mask = mask.repeat_interleave(2, dim=1)
    return F.pad(mask, (first, max(0, width - first - mask.shape[1])))[:, :width]
