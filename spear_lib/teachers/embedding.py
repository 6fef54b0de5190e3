"""Teacher embeddings of many recordings: windows of long ones, batches by length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spear_lib.teachers.base import Teacher
from spear_lib.teachers.windows import plan_windows


@dataclass(frozen=True)
class Piece:
    """Embeddings of a stretch of a recording; its pieces, in order, are the whole recording.

    Attributes:
      position: of the recording among those that were given.
      first_frame: number, in the recording, of the first frame.
      embeddings: (T, D) on the teacher's device.
    """

    position: int
    first_frame: int
    embeddings: Tensor


def length_batches(lengths: Sequence[float], batch_total: float) -> list[list[int]]:
    """Positions in batches of at most ``batch_total`` of padded length (at least one position each), the
    shortest first; lengths and total in one unit."""
    order = sorted(range(len(lengths)), key=lambda position: lengths[position])
    batches: list[list[int]] = []
    for position in order:
        # Sorted upwards, so the newest is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * lengths[position] <= batch_total:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def embed_batches(
    teacher: Teacher, audio: Mapping[int, np.ndarray], batch_seconds: float
) -> Iterator[list[Piece]]:
    """The embeddings of recordings, one list for each call of the teacher: one piece per recording, or one
    per window where it is longer than the teacher's window.

    Args:
      audio: position -> samples (N,); batches are made of these alone.
      batch_seconds: padded audio of one teacher call, s, at most.

    Raises:
      ValueError: a number of frames other than the teacher's rule gives.
    """
    jobs = [
        (position, window)
        for position, samples in audio.items()
        for window in plan_windows(teacher, len(samples))
        if window.num_frames
    ]
    sizes = [window.num_samples for _, window in jobs]
    for batch in length_batches(sizes, batch_seconds * teacher.sample_rate):
        chosen = [jobs[number] for number in batch]
        lengths = torch.tensor([window.num_samples for _, window in chosen])
        padded = torch.zeros(len(batch), int(lengths.max()))
        for row, (position, window) in enumerate(chosen):
            samples = audio[position][window.start : window.start + window.num_samples]
            padded[row, : len(samples)] = torch.from_numpy(samples)
        embeddings, num_frames = teacher.embed(padded.to(teacher.device), lengths.to(teacher.device))
        pieces = []
        for row, ((position, window), count) in enumerate(zip(chosen, num_frames.tolist())):
            expected = teacher.num_frames(window.num_samples)
            if count != expected:
                raise ValueError(
                    f"recording {position}: the teacher gave {count} frames for {window.num_samples} "
                    f"samples, expected {expected}"
                )
            kept = embeddings[row, window.skip : window.skip + window.num_frames]
            pieces.append(Piece(position, window.first_frame, kept))
        yield pieces


NOT_FINITE = "embeddings that are not finite"


def not_finite(pieces: Sequence[Piece], dtype: torch.dtype = torch.float32) -> set[int]:
    """Positions of the recordings of which an embedding is NaN or infinite in ``dtype``: damaged audio that
    passed as audio, or a number format that is too narrow for the teacher. Waits for the device once."""
    good = torch.stack([torch.isfinite(piece.embeddings.to(dtype)).all() for piece in pieces]).tolist()
    return {piece.position for piece, fine in zip(pieces, good) if not fine}


def resolve_manifests(cuts: str | list[str]) -> list[Path]:
    """``--cuts`` as a list of paths."""
    return [Path(cuts)] if isinstance(cuts, str) else [Path(path) for path in cuts]
