"""Augmentations of fine-tuning: speed perturbation of waveforms, SpecAugment of fbank; draws are keyed.

Legend: B utterances, T fbank frames (10 ms), F mel bins.

Speed perturbation changes durations, so it is for fine-tuning alone: lhotse cuts, not stretches, the tokens
of a perturbed cut (spec augment_and_mask §6). What is mixed into waveforms is in spear_lib.data.mixing.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from lhotse.augmentation.resample import Resample
from torch import Tensor

from spear_lib.runtime.keyed_random import uniform

_SITE = 920_001  # first of this module's sites for keyed_random.uniform


@dataclass(frozen=True)
class SpecAugmentConfig:
    """What is hidden from the encoder in fine-tuning (Park et al. 2019; values: lhotse's defaults)."""

    enabled: bool = True
    """False: features are left as they are."""
    probability: float = 0.9
    """Share of utterances that are augmented (lhotse)."""
    time_warp: int = 80
    """Largest shift of the warped point in 10 ms frames; 0 switches warping off (lhotse: 80)."""
    num_frequency_masks: int = 2
    """Frequency masks per utterance (lhotse)."""
    frequency_mask_bins: int = 27
    """Most mel bins of a frequency mask (lhotse: 27 of 80; of 128 bins a smaller share)."""
    num_time_masks: int = 10
    """Most time masks per utterance (lhotse)."""
    time_mask_frames: int = 100
    """Most 10 ms frames of a time mask (lhotse)."""
    max_time_fraction: float = 0.15
    """Most of an utterance that its time masks cover together (lhotse)."""

    def __post_init__(self) -> None:
        for name in ("probability", "max_time_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"spec_augment.{name} is {getattr(self, name)}, expected a share between 0 and 1"
                )
        for name in (
            "time_warp",
            "num_frequency_masks",
            "frequency_mask_bins",
            "num_time_masks",
            "time_mask_frames",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"spec_augment.{name} is {getattr(self, name)}, expected 0 or more")


def spec_augment(
    fbank: Tensor, lengths: Tensor, keys: Tensor, config: SpecAugmentConfig | None = None
) -> Tensor:
    """SpecAugment of a batch on its device, without a loop over utterances and without host synchronisation.

    What is masked becomes the utterance's mean. Padding is left as it is, and no utterance depends on its
    batch mates.

    Args:
      fbank: (B, T, F), log-mel.
      lengths: (B,) int64, valid frames.
      keys: (B,) int64, one key per utterance and epoch (``Batch.keys``).
      config: defaults to ``SpecAugmentConfig()``.

    Returns:
      (B, T, F), a new tensor (the input itself where nothing is enabled).
    """
    config = config or SpecAugmentConfig()
    if not config.enabled or fbank.shape[1] == 0:
        return fbank
    lengths = lengths.to(device=fbank.device, dtype=torch.int64)
    keys = keys.to(fbank.device)
    valid = torch.arange(fbank.shape[1], device=fbank.device) < lengths.unsqueeze(1)
    chosen = uniform(keys, _SITE)[:, 0] < config.probability
    mean = (fbank * valid.unsqueeze(2)).sum(dim=(1, 2)) / (lengths.clamp(min=1) * fbank.shape[2])
    result = _time_warp(fbank, lengths, keys, config.time_warp) if config.time_warp else fbank
    hidden = _time_masks(fbank.shape[1], lengths, keys, config).unsqueeze(2)
    hidden = hidden | _frequency_masks(fbank.shape[2], keys, config).unsqueeze(1)
    result = torch.where(hidden, mean.to(fbank.dtype).view(-1, 1, 1), result)
    return torch.where(chosen.view(-1, 1, 1) & valid.unsqueeze(2), result, fbank)


def spec_augment_time_mask(
    num_frames: int, lengths: Tensor, keys: Tensor, config: SpecAugmentConfig
) -> Tensor:
    """The frames that the time masks of ``spec_augment`` hide, (B, num_frames) bool, for encoders that read
    waveforms and hide frames themselves; the other parts of SpecAugment need mel bins."""
    if not config.enabled:
        return torch.zeros((len(keys), num_frames), dtype=torch.bool, device=keys.device)
    lengths = lengths.to(device=keys.device, dtype=torch.int64)
    valid = torch.arange(num_frames, device=keys.device) < lengths.unsqueeze(1)
    chosen = uniform(keys, _SITE)[:, 0] < config.probability
    return _time_masks(num_frames, lengths, keys, config) & chosen.unsqueeze(1) & valid


def _time_masks(width: int, lengths: Tensor, keys: Tensor, config: SpecAugmentConfig) -> Tensor:
    """(B, T) bool: spans of 0 to ``time_mask_frames``, together at most ``max_time_fraction`` of a row."""
    count, longest = config.num_time_masks, config.time_mask_frames
    if count == 0 or longest == 0:
        return torch.zeros((len(keys), width), dtype=torch.bool, device=keys.device)
    budget = torch.floor(lengths.to(torch.float64) * config.max_time_fraction).to(torch.int64)
    masks = torch.clamp((budget + longest - 1) // longest, min=1, max=count)  # (B,)
    limit = torch.clamp(budget // masks, max=longest)
    used = torch.arange(count, device=keys.device) < masks.unsqueeze(1)
    return _spans(width, lengths, torch.where(used, limit.unsqueeze(1), 0), keys, _SITE + 1)


def _frequency_masks(num_bins: int, keys: Tensor, config: SpecAugmentConfig) -> Tensor:
    """(B, F) bool: ``num_frequency_masks`` spans of 0 to ``frequency_mask_bins`` bins."""
    bins = torch.full_like(keys, num_bins)
    limit = torch.full(
        (len(keys), config.num_frequency_masks), min(config.frequency_mask_bins, num_bins), device=keys.device
    )
    return _spans(num_bins, bins, limit, keys, _SITE + 3)


def _spans(width: int, lengths: Tensor, limits: Tensor, keys: Tensor, site: int) -> Tensor:
    """Union of spans, (B, width) bool: span m of row b has 0..limits[b, m] positions inside lengths[b]."""
    count = limits.shape[1]
    size = torch.floor(uniform(keys, site, count) * (limits + 1)).to(torch.int64)
    size = torch.minimum(size, lengths.unsqueeze(1))
    start = torch.floor(uniform(keys, site + 1, count) * (lengths.unsqueeze(1) - size + 1)).to(torch.int64)
    position = torch.arange(width, device=keys.device).view(1, 1, -1)
    inside = (position >= start.unsqueeze(2)) & (position < (start + size).unsqueeze(2))
    return inside.any(dim=1)


def _time_warp(fbank: Tensor, lengths: Tensor, keys: Tensor, most: int) -> Tensor:
    """Stretches one side of a random point and squeezes the other; lengths stay. Short utterances are left
    alone.

    Piecewise linear in time with linear interpolation (B, T, F); the point moves by up to ``most`` frames
    and keeps at least as many from both ends.
    """
    frames = lengths.to(torch.float32)
    draws = uniform(keys, _SITE + 5, 2)
    long_enough = lengths > 2 * most + 2
    center = (most + 1) + draws[:, 0] * (frames - 2 * most - 2)
    moved = center + (2.0 * draws[:, 1] - 1.0) * most
    center = torch.where(long_enough, center, frames / 2 + 1).unsqueeze(1)
    moved = torch.where(long_enough, moved, frames / 2 + 1).unsqueeze(1)
    last = (frames - 1).clamp(min=0).unsqueeze(1)
    position = torch.arange(fbank.shape[1], device=fbank.device, dtype=torch.float32)
    before = position * (center / moved)
    after = center + (position - moved) * ((last - center) / (last - moved).clamp(min=1e-3))
    source = torch.where(position < moved, before, after)
    source = torch.where(long_enough.unsqueeze(1), source, position)
    source = torch.minimum(source.clamp(min=0.0), last)
    low = source.floor().to(torch.int64)
    high = torch.minimum(low + 1, last.to(torch.int64))
    weight = (source - low).unsqueeze(2).to(fbank.dtype)

    def frame(index: Tensor) -> Tensor:
        return fbank.gather(1, index.unsqueeze(2).expand(-1, -1, fbank.shape[2]))

    return torch.lerp(frame(low), frame(high), weight)


def perturb_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """The waveform played ``factor`` times as fast, by resampling, so the pitch moves along (N,) -> about (N
    / factor,).

    Raises:
      ValueError: factor outside 0.5..2.
    """
    if not 0.5 <= factor <= 2.0:
        raise ValueError(f"speed factor is {factor}, expected between 0.5 and 2")
    if factor == 1.0:
        return waveform
    with torch.no_grad():
        changed = _resampler(round(factor * 1000))(
            torch.from_numpy(np.ascontiguousarray(waveform)).unsqueeze(0)
        )
    return changed[0].numpy()


@functools.lru_cache(maxsize=16)
def _resampler(thousandths: int) -> Resample:
    return Resample(orig_freq=thousandths, new_freq=1000)
