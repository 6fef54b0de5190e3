"""Which frames and mel bins the encoder does not see (SPEAR's wav2vec2-style spans), vectorised and keyed.

Legend: B utterances, T fbank frames (10 ms), F mel bins, T' student frames (20 or 40 ms).

Spans of a fixed length start at distinct uniformly drawn positions and may overlap. Every draw is a pure
function of the utterance's key, so masks depend neither on batch mates nor on the number of processes, and a
resumed run draws the same ones. Counts and start ranges are those of the reference (spec augment_and_mask
§1-3); where the reference raises (utterances shorter than a span, utterances masked entirely) we do not
mask, or leave the last frame visible.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spear_lib.runtime.keyed_random import uniform

# Which draw is meant, see keyed_random.uniform. Any fixed distinct numbers do.
_SITE_TIME_COUNT, _SITE_TIME_START = 910_001, 910_002
_SITE_CHANNEL_COUNT, _SITE_CHANNEL_START = 910_003, 910_004

STUDENT_WINDOWS = {50.0: (2, 9), 25.0: (4, 11)}
"""Student frame rate (Hz) -> (fbank frames per student frame, fbank frames that a student frame sees)."""


@dataclass(frozen=True)
class MaskingConfig:
    """What is hidden from the encoder in pre-training."""

    enabled: bool = True
    """False: nothing is masked (the reference's validation)."""
    time_probability: float = 0.5
    """Share of frames covered if spans never overlapped (spec §2: 0.5 speech, 0.65 audio and mixed)."""
    time_span: int = 10
    """Length of a time span in 10 ms frames (spec §2: 10, 100 ms)."""
    time_min_spans: int = 2
    """Fewest time spans of an utterance (reference)."""
    channel_probability: float = 0.25
    """Share of mel bins covered if spans never overlapped (spec §2)."""
    channel_span: int = 15
    """Length of a channel span in mel bins (spec §2: 15 speech, 20 audio and mixed)."""

    def __post_init__(self) -> None:
        for name in ("time_probability", "channel_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"masking.{name} is {getattr(self, name)}, expected a share between 0 and 1")
        for name in ("time_span", "channel_span"):
            if getattr(self, name) < 1:
                raise ValueError(f"masking.{name} is {getattr(self, name)}, expected at least 1")
        if self.time_min_spans < 0:
            raise ValueError(f"masking.time_min_spans is {self.time_min_spans}, expected 0 or more")


def time_mask(
    lengths: Tensor,
    keys: Tensor,
    probability: float,
    span: int,
    min_spans: int = 2,
    max_frames: int | None = None,
) -> Tensor:
    """Masked fbank frames of each utterance (spec augment_and_mask §1; reference's "static" spans).

    Args:
      lengths: (B,) int64, valid frames.
      keys: (B,) int64, one key per utterance (and epoch).
      probability: share of frames covered if spans did not overlap.
      span: frames per span.
      min_spans: fewest spans of an utterance (never more than fit side by side).
      max_frames: T, width of the result; default the longest length (costs a host sync on a GPU).

    Returns:
      (B, T) bool, True = masked. Padding is never masked; an utterance of at least ``span`` + 2 frames keeps
      its last frame, every utterance keeps at least one.
    """
    if max_frames is None:
        max_frames = int(lengths.max()) if lengths.numel() else 0
    return _span_mask(
        lengths, keys, probability, span, min_spans, max_frames, _SITE_TIME_COUNT, _SITE_TIME_START
    )


def channel_mask(
    keys: Tensor, probability: float = 0.25, span: int = 15, num_mel_bins: int = 128, min_spans: int = 0
) -> Tensor:
    """Masked mel bins of each utterance, (B, F) bool; one draw for its whole duration (spec §2)."""
    lengths = torch.full(keys.shape, num_mel_bins, dtype=torch.int64, device=keys.device)
    return _span_mask(
        lengths, keys, probability, span, min_spans, num_mel_bins, _SITE_CHANNEL_COUNT, _SITE_CHANNEL_START
    )


def span_counts(lengths: Tensor, draws: Tensor, probability: float, span: int, min_spans: int) -> Tensor:
    """Number of spans, (B,) int64, for uniform ``draws`` (B,): floor(p n / L + U) in [min_spans, n // L]."""
    counts = torch.floor(lengths.to(torch.float64) * (probability / span) + draws.to(torch.float64)).to(
        torch.int64
    )
    return torch.minimum(counts.clamp(min=min_spans), lengths // span)


def _span_mask(
    lengths: Tensor,
    keys: Tensor,
    probability: float,
    span: int,
    min_spans: int,
    width: int,
    site_count: int,
    site_start: int,
) -> Tensor:
    lengths = lengths.to(device=keys.device, dtype=torch.int64)
    counts = span_counts(lengths, uniform(keys, site_count)[:, 0], probability, span, min_spans)
    mask = spread_spans(lengths, counts, keys, span, width, site_start)
    # Nothing visible: show the last frame (the reference raises).
    all_masked = (mask.sum(dim=1) == lengths) & (lengths > 0)
    last = torch.arange(width, device=keys.device) == (lengths - 1).unsqueeze(1)
    return mask & ~(last & all_masked.unsqueeze(1))


def spread_spans(lengths: Tensor, counts: Tensor, keys: Tensor, span: int, width: int, site: int) -> Tensor:
    """Spans at distinct uniformly drawn starts, cut at the end of the utterance.

    Args:
      lengths, counts: (B,) int64, valid frames and spans of each utterance.
      keys: (B,) int64.
      span: frames per span.
      width: T.
      site: of the draws of the starts, see ``keyed_random.uniform``.

    Returns:
      (B, T) bool; a row may be masked completely.
    """
    free = lengths - span
    num_starts = torch.where(free <= counts, counts + 1, free)  # M of the spec: starts lie in [0, M)
    position = torch.arange(width, device=keys.device)
    draws = uniform(keys, site, width)
    draws = torch.where(position < num_starts.unsqueeze(1), draws, torch.full_like(draws, 2.0))
    # The c smallest of M independent uniform numbers sit at a uniform sample without replacement. Stable, so
    # that equal numbers (24 bits) are ordered alike on every device.
    order = torch.argsort(draws, dim=1, stable=True)
    smallest = (position < counts.unsqueeze(1)).to(torch.int32)
    starts = torch.zeros_like(smallest).scatter_(1, order, smallest)
    begun = torch.cumsum(starts, dim=1, dtype=torch.int32)
    ended = torch.nn.functional.pad(begun, (span, 0))[:, :width]
    return (begun > ended) & (position < lengths.unsqueeze(1))


def student_mask_fraction(mask: Tensor, num_frames: int, frame_rate: float) -> Tensor:
    """Share of the fbank frames seen by each student frame that are masked, (B, T') float32 (spec
    augment_and_mask §4).

    At 50 Hz student frame j sees fbank frames 2j..2j+8, at 25 Hz 4j..4j+10; what lies behind the tensor
    counts as visible, so the share of an utterance's frames does not depend on its padding.

    Args:
      mask: (B, T) bool, time mask of the fbank frames.
      num_frames: T', student frames.
      frame_rate: of the student, 50 or 25 Hz.

    Raises:
      ValueError: other frame rates.
    """
    if float(frame_rate) not in STUDENT_WINDOWS:
        raise ValueError(f"student frame rate is {frame_rate} Hz, expected one of {sorted(STUDENT_WINDOWS)}")
    hop, window = STUDENT_WINDOWS[float(frame_rate)]
    if num_frames <= 0:
        return mask.new_zeros((mask.shape[0], 0), dtype=torch.float32)
    missing = max(0, (num_frames - 1) * hop + window - mask.shape[1])
    padded = torch.nn.functional.pad(mask, (0, missing))
    seen = padded.unfold(1, window, hop)[:, :num_frames]
    return seen.sum(dim=2).to(torch.float32) / window


def student_mask(mask: Tensor, num_frames: int, frame_rate: float = 50.0) -> Tensor:
    """Student frames that count as masked, (B, T') bool: at least 5 of 9, or 6 of 11, seen are (ours)."""
    return student_mask_fraction(mask, num_frames, frame_rate) >= 0.5
