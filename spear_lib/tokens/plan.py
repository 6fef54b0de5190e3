"""What the tokens of a store are, and how a corpus is divided into shards."""

import hashlib
from dataclasses import dataclass

import numpy as np

from spear_lib.data.manifests import Manifest

SHARD_SECONDS = 80_000.0
"""Audio of one shard at most: 64 MB of WavLM Large tokens (16 codebooks at 50 Hz, 800 bytes per second)."""


@dataclass(frozen=True)
class TokenFacts:
    """What is the same for every token of a store."""

    field: str
    """Name of the field on the cuts, for example spectral_cb8."""
    teacher_id: str
    """Identity of the teacher (options and weights)."""
    quantizer_id: str
    """Content hash of the quantiser."""
    frame_rate: float
    """Token frames per second."""
    first_frame_center_ms: float
    """Centre of frame 0 after the cut's first sample, ms."""
    num_codebooks: int
    """Codes per frame."""
    codebook_size: int
    """Codes are 0..codebook_size-1."""
    cuts_id: str
    """Hash of the audio that the tokens were made for (``cuts_hash``)."""
    dtype: str = ""
    """Type on disk: uint8, or uint16 for codebooks of more than 256 entries; made from codebook_size."""
    refine_iters: int = 5
    """Refinements of the quantiser's search."""
    channels: str = "mean"
    """What was done with recordings of several channels: mean or first."""
    teacher_dtype: str = "float32"
    """Number format of the teacher's blocks."""

    def __post_init__(self) -> None:
        if not 2 <= self.codebook_size <= 65536:
            raise ValueError(f"codebook_size is {self.codebook_size}: tokens are stored for 2..65536 codes")
        fitting = "uint8" if self.codebook_size <= 256 else "uint16"
        if self.dtype not in ("", fitting):
            raise ValueError(
                f"dtype is {self.dtype!r}, but tokens of {self.codebook_size} codes are stored as {fitting}"
            )
        object.__setattr__(self, "dtype", fitting)

    @property
    def bytes_per_second(self) -> float:
        """Tokens of one second of audio, bytes."""
        return self.frame_rate * self.num_codebooks * np.dtype(self.dtype).itemsize

    def num_frames(self, duration: float) -> float:
        """Frames of an utterance of ``duration`` seconds, to within rounding: the last frame is as far from
        its end as the first from its beginning. (A Zipformer has none within 45 ms of either.)"""
        lost = frames_lost_at_the_edges(self.first_frame_center_ms, self.frame_rate)
        return max(0.0, duration * self.frame_rate - lost)


def frames_lost_at_the_edges(first_frame_center_ms: float, frame_rate: float) -> float:
    """Frames by which an utterance has fewer than duration x rate; -1 where frame 0 is at its start."""
    return 2e-3 * first_frame_center_ms * frame_rate - 1.0


@dataclass(frozen=True)
class ShardPlan:
    """Which cuts make which shard: consecutive positions of the manifest."""

    ends: tuple[int, ...]
    """Position behind each shard's last cut."""

    @staticmethod
    def over(durations: np.ndarray, shard_seconds: float) -> "ShardPlan":
        """Shards of about equal length, ``shard_seconds`` or less (a longer cut has one of its own)."""
        behind = np.cumsum(durations, dtype=np.float64)
        count = max(1, int(np.ceil(behind[-1] / shard_seconds - 1e-9)))
        targets = behind[-1] * np.arange(1, count) / count
        ends = np.unique(np.append(np.searchsorted(behind, targets - 1e-6, side="left") + 1, len(behind)))
        return ShardPlan(tuple(int(end) for end in ends))

    def __len__(self) -> int:
        return len(self.ends)

    def positions(self, shard: int) -> range:
        """Positions of a shard's cuts in the manifest."""
        return range(self.ends[shard - 1] if shard else 0, self.ends[shard])

    def share(self, split: int, num_splits: int) -> range:
        """Shards of part ``split`` (from 1): consecutive, numbers differ by one at most."""
        return range(len(self) * (split - 1) // num_splits, len(self) * split // num_splits)


def as_ranges(numbers: list[int]) -> str:
    """Sorted whole numbers as Slurm's --array takes them: 1-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def cuts_hash(audio_keys: np.ndarray) -> str:
    """Identity of a corpus: the audio of its cuts (``Manifest.audio_keys``), in order."""
    return hashlib.sha256(np.ascontiguousarray(audio_keys).tobytes()).hexdigest()[:16]


def refuse_same_audio(manifest: Manifest) -> None:
    """ValueError if two cuts are the same stretch of audio: tokens belong to audio, not to names."""
    keys, counts = np.unique(manifest.audio_keys, return_counts=True)
    if len(keys) == len(manifest):
        return
    key = keys[counts > 1][0]
    one, two = np.flatnonzero(np.asarray(manifest.audio_keys) == key)[:2].tolist()
    raise ValueError(
        f"{manifest.describe()}: {len(manifest) - len(keys)} cuts are the same audio (recording, channel, "
        f"start and duration) as another one, for example {manifest.ids[one]} and {manifest.ids[two]}; keep "
        "one of each"
    )
