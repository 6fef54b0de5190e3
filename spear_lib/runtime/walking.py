"""The files below a folder, as every reader of corpora finds them (ours)."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from spear_lib.runtime.text_files import is_companion

logger = logging.getLogger(__name__)


def files_below(folder: str | Path, *endings: str) -> list[str]:
    """Paths of the files in ``folder`` and below, by folder and then by name.

    Links to folders are followed, and no folder is walked twice, whatever name it is reached by: its real
    place comes before links to it. Files beginning with ``._``, which macOS leaves beside its own, are
    passed over.

    Args:
      endings: of the names, in lower case; none: all files.

    Raises:
      OSError: a folder that cannot be read: nothing is left out in silence.
    """
    found: list[tuple[list[str], str]] = []
    walked: set[str] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        linked: list[str] = []
        for start in waiting:
            for place, names in _walk(start, walked, linked):
                parts = place.split(os.sep)
                found += [(parts, name) for name in names if name.lower().endswith(endings or "")]
        waiting = sorted(linked)
    return [os.sep.join([*parts, name]) for parts, name in sorted(found)]


def _walk(start: str, walked: set[str], linked: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) without following links; those that lead to folders go to ``linked``."""
    places = [start]
    while places:
        place = places.pop()
        real = os.path.realpath(place)
        if real in walked:
            continue
        walked.add(real)
        names = []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    places.append(entry.path)
                elif entry.is_symlink() and entry.is_dir():
                    linked.append(entry.path)
                elif not is_companion(entry.name):
                    names.append(entry.name)
                    if entry.is_symlink() and not os.path.exists(entry.path):
                        logger.warning("%s is a link to nothing: what it stood for is left out", entry.path)
        yield place, names
