"""From frames to events and back, as heareval does (spec evaluation §2.3).

Legend: T frames, K classes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter

from spear_lib.evaluation.hear.scores import Event

MEDIAN_FILTER_MS = 250.0
MIN_DURATIONS_MS = (125.0, 250.0)
"""Of these the better one on validation is taken."""
_AFTER_END_MS = 0.0001  # an event still covers a frame so much behind its end


def frame_targets(events: Sequence[Event], times: np.ndarray, labels: list[str]) -> np.ndarray:
    """(T, K) bool: which classes sound at ``times`` (T,) in ms: start <= t < end + 0.0001."""
    targets = np.zeros((len(times), len(labels)), dtype=bool)
    for event in events:
        covered = (times >= event.start) & (times < event.end + _AFTER_END_MS)
        targets[covered, labels.index(event.label)] = True
    return targets


def find_events(
    probabilities: np.ndarray,
    times: np.ndarray,
    labels: list[str],
    median_filter_ms: float = MEDIAN_FILTER_MS,
    min_duration_ms: float = 0.0,
) -> list[Event]:
    """Events of one file, by their starts.

    Args:
      probabilities: (T, K).
      times: (T,) ms, evenly spaced.
      median_filter_ms: probabilities are filtered over so many ms (0: not).
      min_duration_ms: events whose last frame comes earlier than so much after their first are dropped.
    """
    hop = float(np.mean(np.diff(times))) if len(times) > 1 else 0.0
    width = round(median_filter_ms / hop) if hop else 0
    if width:
        probabilities = median_filter(probabilities, size=(width, 1))
    active = np.pad(probabilities > 0.5, ((1, 1), (0, 0)))
    events = []
    for label, column in zip(labels, active.T.astype(np.int8)):
        changes = np.diff(column)
        for first, behind in zip(np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)):
            start, end = float(times[first]), float(times[behind - 1])
            if end - start >= min_duration_ms:
                events.append(Event(label, start, end))
    return sorted(events, key=lambda event: event.start)
