"""From the probabilities of frames to sounds with a start and an end (spec evaluation §2.3).

Legend: T frames, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spear_lib.tagging.inference import Tags


@dataclass(frozen=True)
class EventConfig:
    """How frames become events (spec evaluation §2.3)."""

    threshold: float = 0.5
    """A class is heard in frames of at least this probability."""
    median_seconds: float = 0.25
    """Length of the median filter over the probabilities, s; 0: none (HEAR)."""
    min_seconds: float = 0.125
    """Shorter events are left out, s (HEAR: 0.125 or 0.25)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"events.threshold is {self.threshold}, expected a probability between 0 and 1")
        if self.median_seconds < 0.0 or self.min_seconds < 0.0:
            raise ValueError(
                f"events.median_seconds is {self.median_seconds} and events.min_seconds {self.min_seconds}, "
                "expected 0 or more"
            )


@dataclass
class Event:
    """A sound of one class from ``start`` to ``end`` in s."""

    start: float
    end: float
    index: int
    """Class."""
    probability: float
    """The highest of its frames."""


def find_events(tags: Tags, config: EventConfig, chosen: Callable[[int], bool] | None = None) -> list[Event]:
    """The stretches of frames in which a class is heard, in the order of their starts.

    Args:
      chosen: classes to look at; all that reach the threshold anywhere by default.
    """
    if not len(tags.times):
        return []
    step = (tags.times[-1] - tags.times[0]) / max(1, len(tags.times) - 1) if len(tags.times) > 1 else 0.02
    width = 2 * int(round(config.median_seconds / step) // 2) + 1
    events = []
    for index in np.flatnonzero(tags.frames.max(axis=0) >= config.threshold).tolist():
        if chosen is not None and not chosen(index):
            continue
        smooth = _median(tags.frames[:, index], width)
        heard = np.concatenate(([False], smooth >= config.threshold, [False]))
        edges = np.flatnonzero(heard[1:] != heard[:-1])
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
            start, stop = tags.times[first] - step / 2, tags.times[end - 1] + step / 2
            if stop - start >= config.min_seconds - 1e-9:
                peak = float(tags.frames[first:end, index].max())
                events.append(Event(max(0.0, float(start)), float(stop), index, peak))
    return sorted(events, key=lambda event: (event.start, event.index))


def _median(values: np.ndarray, width: int) -> np.ndarray:
    """Running median of an odd width; the ends are repeated."""
    if width == 1:
        return values
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
