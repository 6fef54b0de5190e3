"""Audio of sets of cuts in batches, for evaluation: every cut exactly once, mates of similar duration.

Legend: B utterances, N samples (16 kHz).
"""

import logging
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from spear_lib.data.audio import AudioError, check_whole, load_audio
from spear_lib.data.batch import pad_waveforms
from spear_lib.data.manifests import Manifest
from spear_lib.data.sampling import BatchSampler
from spear_lib.features.fbank import SAMPLE_RATE

logger = logging.getLogger(__name__)

MIN_SAMPLES = 1600
"""Shorter utterances are filled up with silence to 0.1 s, so that the encoder has frames to look at."""


def position_batches(
    manifest: Manifest, batch_seconds: float, indices: list[int] | None = None
) -> list[list[int]]:
    """Positions in the manifest of the cuts of each batch.

    Args:
      manifest: cuts.
      batch_seconds: padded audio of a batch.
      indices: cuts to read; all by default.
    """
    chosen = np.arange(len(manifest)) if indices is None else np.asarray(indices)
    durations = np.asarray(manifest.durations)[chosen]
    sampler = BatchSampler(durations, max(batch_seconds, float(durations.max())), shuffle=False)
    return [
        [int(chosen[row]) for row in sampler.global_batch(0, number)]
        for number in range(sampler.num_batches(0))
    ]


def load_waveforms(manifest: Manifest, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Waveforms (B, N), lengths (B,) int64 in samples, each at least MIN_SAMPLES."""
    audio = []
    for position in positions:
        cut = manifest[position]
        try:
            check_whole(cut)
        except AudioError as error:
            logger.warning("%s. What can be read is used", error)
        audio.append(load_audio(cut, SAMPLE_RATE))
    return pad_waveforms([np.pad(samples, (0, max(0, MIN_SAMPLES - len(samples)))) for samples in audio])


def waveform_batches(
    manifest: Manifest, batch_seconds: float, indices: list[int] | None = None
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Positions in the manifest, waveforms and lengths of each batch (``position_batches``,
    ``load_waveforms``)."""
    for positions in position_batches(manifest, batch_seconds, indices):
        yield positions, *load_waveforms(manifest, positions)
