"""Audio decoded by threads while something else computes (ours): what stages 3 and 5 read.

Decoding is C code that lets other threads run, so threads are enough, and nothing is copied between
processes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from lhotse.cut import Cut

from spear_lib.data.audio import AudioError, AudioProblems, check_whole, load_audio, source_of
from spear_lib.data.manifests import Manifest
from spear_lib.features.fbank import SAMPLE_RATE

AHEAD_SECONDS = 600.0
"""Audio that may lie decoded in memory, s (64 kB each), beside the group being worked on."""


@dataclass(frozen=True)
class Decoded:
    """A group of cuts that were decoded together; unreadable ones are missing from ``audio``."""

    cuts: dict[int, Cut]
    """Position in the manifest -> cut."""
    audio: dict[int, np.ndarray]
    """Position -> samples (N,) float32."""
    errors: dict[int, tuple[str, str]]
    """Position -> kind of the problem and what to say about it."""
    notes: dict[str, int] = field(default_factory=dict)
    """Things worth telling, e.g. {"resampled": 3}."""


def decode(manifest: Manifest, group: Sequence[int], channels: str = "mean") -> Decoded:
    """The cuts at the positions ``group`` and their samples, 16 kHz mono."""
    noted = AudioProblems()
    decoded = Decoded({}, {}, {}, noted.notes)
    for position in group:
        cut = decoded.cuts[position] = manifest[position]
        try:
            samples = load_audio(cut, SAMPLE_RATE, noted, channels)
            check_whole(cut)
            decoded.audio[position] = samples
        except AudioError as error:
            decoded.errors[position] = (error.kind, f"{cut.id} ({source_of(cut)}): {error}")
    return decoded


def decode_ahead(
    manifest: Manifest,
    groups: Iterable[Sequence[int]],
    num_workers: int = 4,
    channels: str = "mean",
    ahead_seconds: float = AHEAD_SECONDS,
) -> Iterator[Decoded]:
    """``decode`` of each of ``groups``, in order, made ahead of time by threads.

    Args:
      num_workers: threads; 0 decodes when asked for.
      ahead_seconds: audio that may wait in memory, s; at least one group always does.
    """
    if num_workers == 0:
        yield from (decode(manifest, group, channels) for group in groups)
        return
    waiting: deque[tuple[float, Future[Decoded]]] = deque()
    left, seconds = iter(groups), 0.0
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        while True:
            while not waiting or (seconds < ahead_seconds and len(waiting) < 4 * num_workers):
                group = next(left, None)
                if group is None:
                    break
                length = float(manifest.durations[list(group)].sum())
                waiting.append((length, pool.submit(decode, manifest, group, channels)))
                seconds += length
            if not waiting:
                return
            length, future = waiting.popleft()
            seconds -= length
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
