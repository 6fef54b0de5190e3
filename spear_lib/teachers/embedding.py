"""Teacher embeddings of many cuts: windows of long ones, batches by length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples
from torch import Tensor

from spear_lib.data.audio import load_audio
from spear_lib.teachers.base import Teacher
from spear_lib.teachers.windows import Window, plan_windows


@dataclass(frozen=True)
class Piece:
    """Embeddings of a stretch of a cut; the pieces of a cut, in order, are the whole cut.

    Attributes:
      position: of the cut among those that were given.
      first_frame: number, in the cut, of the first frame.
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


def count_frames(teacher: Teacher, cut: Cut) -> int:
    """Frames of a cut, windows or not."""
    return teacher.num_frames(compute_num_samples(cut.duration, teacher.sample_rate))


def count_windows(teacher: Teacher, cuts: Sequence[Cut]) -> int:
    """Pieces that ``embed_pieces`` will yield."""
    return sum(
        len(plan_windows(teacher, compute_num_samples(cut.duration, teacher.sample_rate))) for cut in cuts
    )


def load_window(cut: Cut, window: Window, teacher: Teacher) -> Tensor:
    """The window's samples (N,), read without the rest of the recording.

    Raises:
      RuntimeError: audio that cannot be read (names the file).
    """
    rate = teacher.sample_rate
    if window.start or window.num_samples < compute_num_samples(cut.duration, rate):
        cut = cut.truncate(offset=window.start / rate, duration=window.num_samples / rate, preserve_id=True)
    return torch.from_numpy(load_audio(cut, rate))


def embed_pieces(teacher: Teacher, cuts: Sequence[Cut], batch_seconds: float) -> Iterator[Piece]:
    """The embeddings of every cut; one piece, or for a cut longer than the teacher's window one per window.

    Pieces come in the order of their lengths. At no time is more in memory than one batch.

    Raises:
      RuntimeError: audio that cannot be read (names the file).
      ValueError: a number of frames other than the teacher's rule gives.
    """
    jobs = [
        (position, window)
        for position, cut in enumerate(cuts)
        for window in plan_windows(teacher, compute_num_samples(cut.duration, teacher.sample_rate))
    ]
    sizes = [window.num_samples for _, window in jobs]
    for batch in length_batches(sizes, batch_seconds * teacher.sample_rate):
        audio = [load_window(cuts[jobs[number][0]], jobs[number][1], teacher) for number in batch]
        lengths = torch.tensor([len(each) for each in audio])
        padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True).to(teacher.device)
        embeddings, num_frames = teacher.embed(padded, lengths.to(teacher.device))
        for row, number in enumerate(batch):
            position, window = jobs[number]
            expected = teacher.num_frames(window.num_samples)
            if num_frames[row] != expected:
                raise ValueError(
                    f"cut {cuts[position].id}: the teacher gave {int(num_frames[row])} frames for "
                    f"{int(lengths[row])} samples, expected {expected} for {window.num_samples}"
                )
            kept = embeddings[row, window.skip : window.skip + window.num_frames]
            yield Piece(position, window.first_frame, kept)


def resolve_manifests(cuts: str | list[str]) -> list[Path]:
    """``--cuts`` as a list of paths."""
    return [Path(cuts)] if isinstance(cuts, str) else [Path(path) for path in cuts]
