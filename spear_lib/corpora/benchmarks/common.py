"""What the readers of benchmark corpora share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from spear_lib.data.audio import cut_of, unreadable
from spear_lib.runtime import keyed_random
from spear_lib.runtime.tables import read_table

TRAIN, VALID, TEST = "train", "valid", "test"
PARTS = (TRAIN, VALID, TEST)


@dataclass
class Read:
    """What a reader finds beside the cuts."""

    fold: int = 1
    """Corpora of folds: which one is tested, from 1."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> content of files that belong to the manifests (trials, relevance)."""


Labelled = Iterator[tuple[str, Cut]]
"""Part, cut."""


def clip_cut(
    path: Path,
    name: str,
    speaker: str | None = None,
    text: str | None = None,
    custom: dict | None = None,
    start: float = 0.0,
    seconds: float | None = None,
) -> Cut:
    """The whole file, or a stretch of it, as a cut with one supervision.

    Args:
      custom: fields of the cut: "label" (a word or a list), "slots", "sources".

    Raises:
      AudioError: the file cannot be read.
      ValueError: it is not there.
    """
    recording = recording_of(path)
    length = recording.duration - start if seconds is None else seconds
    one = SupervisionSegment(name, recording.id, 0.0, length, text=text, speaker=speaker)
    return cut_of(recording, name, start, length, one, custom or None)


def recording_of(path: Path) -> Recording:
    """Of a file; only its header is read."""
    if not path.is_file():
        raise ValueError(f"{path} is named by the corpus and is not there: complete the corpus")
    try:
        return Recording.from_file(path)
    except Exception as error:  # which one depends on the library that reads the format
        raise unreadable(path, error) from error


def rows_of(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Of a table (.csv, .tsv).

    Raises:
      ValueError: it is not there, lacks a column, or is no table.
    """
    return [row for _, row in read_table(needed(path), columns)]


def needed(path: Path, what: str = "") -> Path:
    """``path``, or ValueError where it is not there."""
    if not path.exists():
        raise ValueError(f"{path} is not there{': ' + what if what else ''}; name the corpus's own folder")
    return path


def lines_of(path: Path, words: int, what: str) -> Iterator[list[str]]:
    """The words of each line that is not empty; ValueError where there are fewer than ``words``."""
    for number, line in enumerate(needed(path, what).read_text(encoding="utf-8").splitlines(), 1):
        found = line.split()
        if found and len(found) < words:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} has {len(found)} words, expected {words}")
        if found:
            yield found


def share(name: str, purpose: str) -> float:
    """A number in [0, 1) that ``name`` alone decides, for splits that the corpus does not publish."""
    return keyed_random.key(purpose, name) / float(1 << 63)


def audio_below(folder: Path, ending: str = ".wav") -> list[Path]:
    """In order; ValueError if there is none."""
    found = sorted(needed(folder).rglob(f"*{ending}"))
    if not found:
        raise ValueError(f"{folder} holds no {ending} files: complete the corpus")
    return found
