"""Long recordings in overlapping windows, and the join of their frames.

A teacher's memory grows with the square of a recording's length, and no teacher was trained on hours. A
recording longer than the teacher's window is therefore cut into windows that each count as an utterance of
their own (normalisation included):

* The fewest windows whose neighbours overlap by at least ``overlap_seconds``, all of the same length (the
  last one shorter by less than a frame), evenly spread, each starting on the teacher's frame grid. So frame m
  of a window that starts at frame a is frame a + m of the recording, with the same centre.
* Of a frame that two windows have, the one that is farther from its window's edge is kept; on a tie, the
  earlier window's. With the default overlap of 2 s, every kept frame has 1 s of context on either side.
* Together the kept frames are exactly those of the formula for the whole recording.

The windows follow from the number of samples and the teacher alone, never from the batch.
"""

import math
from dataclasses import dataclass

from spear_lib.teachers.base import Teacher


@dataclass(frozen=True)
class Window:
    """A stretch of a recording that is embedded by itself, and which of its frames are kept.

    Attributes:
      start: first sample.
      num_samples: its length in samples.
      first_frame: number, in the recording, of the first frame that is kept.
      skip: frames of the window before that one, dropped.
      num_frames: frames kept.
    """

    start: int
    num_samples: int
    first_frame: int
    skip: int
    num_frames: int


def plan_windows(teacher: Teacher, num_samples: int) -> list[Window]:
    """The windows of a recording of ``num_samples`` samples, in order; one for a recording that fits."""
    total = teacher.num_frames(num_samples)
    hop = frame_hop(teacher)
    length = math.floor(teacher.window_seconds * teacher.sample_rate / hop)
    overlap = math.ceil(teacher.overlap_seconds * teacher.sample_rate / hop)
    # In frames from here on: where the last window starts, and how many steps lead there.
    last = math.ceil((num_samples - length * hop) / hop)
    if last <= 0:
        return [Window(0, num_samples, 0, 0, total)]
    steps = math.ceil(last / max(1, length - overlap))
    starts = [last * step // steps for step in range(steps + 1)]
    sizes = [length * hop] * steps + [num_samples - last * hop]
    ends = [start + teacher.num_frames(size) for start, size in zip(starts, sizes)]
    if ends[-1] != total:
        raise RuntimeError(
            f"the {teacher.name} teacher has {total} frames for {num_samples} samples, but {ends[-1] - last} "
            f"for {last * hop} samples fewer: num_frames must grow by one frame per {hop} samples"
        )
    # The first frame that the later of two neighbours holds farther from its edge.
    borders = [(start + end + 1) // 2 for start, end in zip(starts[1:], ends)]
    begins, stops = [0, *borders], [*borders, total]
    return [
        Window(start * hop, size, begin, begin - start, stop - begin)
        for start, size, begin, stop in zip(starts, sizes, begins, stops)
    ]


def frame_hop(teacher: Teacher) -> int:
    """Samples from one frame of the teacher to the next.

    Raises:
      ValueError: a frame rate that is no whole number of samples.
    """
    hop = round(teacher.sample_rate / teacher.frame_rate)
    if hop * teacher.frame_rate != teacher.sample_rate:
        raise ValueError(
            f"the {teacher.name} teacher has {teacher.frame_rate:g} frames per second, which is no whole "
            f"number of samples at {teacher.sample_rate} Hz"
        )
    return hop
