"""Long recordings in overlapping windows, to transcribe or to tag (ours).

The windows of a recording are of the same length and evenly spread, so that what is in a window does not
depend on anything but the recording's length.
"""

import math
from dataclasses import dataclass

_GRID = 0.02  # s, windows start on the frames of the whole recording


@dataclass(frozen=True)
class WindowConfig:
    """How long recordings are cut."""

    window_seconds: float = 30.0
    """Longest audio that is recognised in one piece, s; about the longest utterance of training (ours)."""
    overlap_seconds: float = 4.0
    """Audio that neighbouring windows share at least, s; half of it is context on either side (ours)."""
    batch_seconds: float = 120.0
    """Padded audio that goes through the model at once, s; changes speed and memory, not results."""

    def __post_init__(self) -> None:
        if not 0 < self.overlap_seconds <= self.window_seconds / 2:
            raise ValueError(
                f"overlap_seconds is {self.overlap_seconds:g} with window_seconds {self.window_seconds:g}; "
                "it must be positive and at most half of a window"
            )
        if self.batch_seconds <= 0:
            raise ValueError(f"batch_seconds is {self.batch_seconds:g}; it must be positive")


def plan_windows(seconds: float, config: WindowConfig) -> list[tuple[float, float]]:
    """(begin, end) in s of each window of a recording, in order."""
    spare = seconds - config.window_seconds
    if spare <= 0:
        return [(0.0, seconds)]
    steps = math.ceil(spare / (config.window_seconds - config.overlap_seconds))
    begins = [round(math.floor(spare * step / steps / _GRID) * _GRID, 3) for step in range(steps)]
    windows = [(begin, begin + config.window_seconds) for begin in begins]
    return [*windows, (seconds - config.window_seconds, seconds)]
