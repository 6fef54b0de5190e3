"""Progress of long work, for people and for log files (ours).

On a terminal: a tqdm bar. Elsewhere (batch job, pipe, pytest): one log line about every ten seconds with the
rate and the time that is left, so that a log file of a long run stays readable.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_SECONDS = 10.0  # between two log lines where there is no terminal


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3 min 05 s`` or ``2 h 07 min``: what a reader needs, no more."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def progress(
    iterable: Iterable[T],
    total: int | None = None,
    description: str = "",
    unit: str = "items",
    note: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Yields the items of ``iterable`` and shows how far it is.

    Args:
      total: number of items; taken from ``len(iterable)`` where that exists. Without it no ETA is shown.
      description: what is being done, e.g. ``"dumping tokens"``.
      unit: what is counted, in the plural, e.g. ``"cuts"``.
      note: what else is shown, as it is at that moment.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(iterable, total=total, desc=description or None, unit=f" {unit}")
        for item in bar:
            yield item
            if note is not None:
                bar.set_postfix_str(note(), refresh=False)
        return
    start = last_line = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last_line >= LOG_SECONDS:
            last_line = now
            line = _line(description, done, total, unit, now - start)
            logger.info("%s", line if note is None else f"{line}, {note()}")
    if last_line > start:  # something was shown, so say also that it ended
        logger.info(
            "%s: done, %d %s in %s", description, done, unit, format_seconds(time.monotonic() - start)
        )


def _line(description: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if not total:
        return f"{description}: {done} {unit}, {rate:.3g} {unit}/s"
    left = format_seconds((total - done) / max(rate, 1e-9))
    return (
        f"{description}: {done}/{total} {unit} ({100 * done / total:.0f} %), {rate:.3g} {unit}/s, {left} left"
    )


class RealTime:
    """Audio that was worked on, against the clock.

    Attributes:
      audio_seconds: of audio so far; the caller adds to it.
    """

    def __init__(self) -> None:
        self.audio_seconds, self._start = 0.0, time.monotonic()

    def __str__(self) -> str:
        """The real-time factor: seconds of work for a second of audio."""
        spent = time.monotonic() - self._start
        return (
            f"real-time factor {spent / self.audio_seconds:.3g}" if self.audio_seconds > 0 else "no audio yet"
        )
